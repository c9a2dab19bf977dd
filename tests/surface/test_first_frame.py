from dataclasses import replace

import numpy as np
import pytest
import torch

from undula.data.bundled import villin
from undula.errors import UsageError
from undula.geometry.frames import random_rotation
from undula.io.structures import load_structure
from undula.nn.radial_sums import KNOTS
from undula.surface import first_frame
from undula.surface.atoms import CHANNELS
from undula.surface.first_frame import REACH, FirstFrame, LocalConfig

MIRROR = torch.diag(torch.tensor([-1.0, 1.0, 1.0])).double()
ROTATION = random_rotation(torch.Generator().manual_seed(3))
SHIFT = torch.tensor([25.0, -40.0, 12.0]).double()
POSES = pytest.mark.parametrize(
    ("matrix", "shift"),
    [(ROTATION, 0 * SHIFT), (MIRROR, 0 * SHIFT), (torch.eye(3).double(), SHIFT), (ROTATION, SHIFT)],
    ids=["turned", "mirrored", "shifted", "turned and shifted"],
)
CONFIG = LocalConfig(modes=5)


@pytest.fixture(scope="module")
def structure():
    whole = load_structure(villin()[0])
    return whole.select(whole.residue_index < 12)


@pytest.fixture(scope="module")
def first(structure):
    return FirstFrame(structure, CONFIG)


@pytest.fixture(scope="module")
def points(structure):
    """Return places within the reach of the surface, in the structure's pose."""
    generator = torch.Generator().manual_seed(5)
    chosen = torch.randint(len(structure), (500,), generator=generator)
    noise = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    return structure.positions[chosen] + 2.5 * noise


def told(first, points):
    return first.local(first.to_own(points))


def noise(first, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(4, first.modes, generator=generator),
        torch.randn(4, first.residues, generator=generator),
    )


@POSES
def test_what_points_know_stays_when_they_and_the_molecule_are_moved(
    structure, first, points, matrix, shift
):
    moved = replace(structure, positions=structure.positions @ matrix.T + shift)
    again = told(FirstFrame(moved, CONFIG), points @ matrix.T + shift)
    known = told(first, points)
    for name in ("points", "distance", "direction", "features"):
        found, expected = (getattr(one, name).double() for one in (again, known))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@POSES
def test_random_motions_turn_with_the_molecule(structure, first, points, matrix, shift):
    moved = replace(structure, positions=structure.positions @ matrix.T + shift)
    other = FirstFrame(moved, CONFIG)
    found = other.tremble(told(other, points @ matrix.T + shift), *noise(first))
    expected = first.tremble(told(first, points), *noise(first))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_order_of_the_atoms_within_a_residue_does_not_matter(structure, first, points):
    drawn = np.random.default_rng(2).random(len(structure))
    order = np.lexsort((drawn, structure.residue_index))
    other = FirstFrame(structure.select(order), CONFIG)
    again, known = told(other, points), told(first, points)
    torch.testing.assert_close(again.features, known.features, rtol=0, atol=1e-4)
    torch.testing.assert_close(again.distance, known.distance, rtol=0, atol=1e-5)


def test_a_point_is_told_as_many_numbers_as_the_configuration_says(first, points):
    assert told(first, points).features.shape == (500, CONFIG.size)
    assert CONFIG.size == 6 + KNOTS * len(CHANNELS)


def test_distance_and_direction_are_those_of_the_exact_surface(structure, first, points):
    unturned = FirstFrame(structure, CONFIG, turned=False)
    assert torch.equal(unturned.axes, torch.eye(3).double())
    value, gradient = unturned.surface.signed_distance_and_gradient(unturned.to_own(points))
    known = told(first, points)
    torch.testing.assert_close(known.distance, value.float(), rtol=0, atol=1e-5)
    straight = known.direction.double() @ first.axes.T
    torch.testing.assert_close(straight, gradient, rtol=0, atol=1e-4)


def test_the_own_frame_is_the_same_molecule(structure, first):
    own = first.structure.positions
    apart, expected = torch.cdist(own, own), torch.cdist(*[structure.positions] * 2)
    torch.testing.assert_close(apart, expected, rtol=0, atol=1e-5)
    assert own.mean(dim=0).abs().max() < 1e-9
    assert first.scale == pytest.approx(1.1 * float(own.norm(dim=1).max()))


def test_a_blurred_inside_goes_from_one_within_to_zero_far_away(structure):
    whole = load_structure(villin()[0])
    narrow = FirstFrame(whole, LocalConfig(blurs=(0.7, 4.0)))
    own = narrow.structure.positions
    deep = own[narrow.surface.signed_distance(own).argmin()][None]
    outside = narrow.lattice.points()[:1]
    inner, outer = (
        [float(narrow.lattice.interpolate(b, place)[0]) for b in narrow.blurred]
        for place in (deep, outside)
    )
    assert 0.99 < inner[0] <= 1.0 + 1e-6
    assert inner[1] < inner[0]
    assert max(outer) < 1e-3


def test_the_blurred_inside_is_about_one_half_on_the_surface_and_less_where_it_bulges(first):
    on = first.surface.cloud(1.0).points
    means = [float(first.lattice.interpolate(blurred, on).mean()) for blurred in first.blurred]
    assert means[0] == pytest.approx(0.5, abs=0.1)
    assert means == sorted(means, reverse=True)


def test_the_residues_tremble_by_one_angstrom(first):
    size, way = first.residue_modes
    square = (size.square()[:, None, None] * way.square()).sum() / first.residues
    assert float(square) == pytest.approx(1.0)
    assert len(size) == first.modes == 5
    assert (size.diff() <= 0).all()


def test_a_shift_of_all_residues_moves_the_surface_along_its_normal(first, points, monkeypatch):
    way = torch.zeros(1, first.residues, 3, dtype=torch.float64)
    way[:, :, 0] = 1.0
    monkeypatch.setitem(first.__dict__, "residue_modes", (torch.ones(1, dtype=torch.float64), way))
    known = told(first, points)
    known = known[known.distance.abs() < REACH / 2]
    modes = torch.tensor([[1.0], [-2.0]])
    found = first.tremble(known, modes, torch.ones(2, first.residues))
    torch.testing.assert_close(found[0, 0], known.direction[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, 0], -2 * known.direction[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[:, 1], torch.ones(2, len(known)), rtol=0, atol=1e-5)


def test_random_motions_are_linear_in_their_numbers(first, points):
    known = told(first, points)
    modes, residues = noise(first)
    one, two = first.tremble(known, modes, residues), first.tremble(known, 3 * modes, 3 * residues)
    torch.testing.assert_close(two[:, :2], 3 * one[:, :2], rtol=0, atol=1e-4)
    assert not first.tremble(known, 0 * modes, 0 * residues)[:, :2].any()
    assert (one[:, 2] == 1).all()


def test_a_short_chain_has_fewer_modes(structure):
    pair = FirstFrame(structure.select(structure.residue_index < 2), CONFIG)
    assert pair.modes == 0
    known = pair.local(pair.structure.positions + 1.0)
    found = pair.tremble(known, torch.zeros(1, 0), torch.ones(1, 2))
    assert torch.isfinite(found).all()
    assert torch.isfinite(known.features).all()


def test_no_points_are_no_difficulty(first):
    known = first.local(torch.zeros(0, 3, dtype=torch.float64))
    assert known.features.shape == (0, CONFIG.size)
    assert first.tremble(known, *noise(first)).shape == (4, 3, 0)


def test_refuses_what_cannot_be_meant():
    with pytest.raises(UsageError, match="blurs"):
        LocalConfig(blurs=())
    with pytest.raises(UsageError, match="blurs"):
        LocalConfig(blurs=(1.0, -0.5))
    with pytest.raises(UsageError, match="modes"):
        LocalConfig(modes=-1)


def test_a_large_first_frame_is_blurred_in_blocks_to_the_same_numbers(
    structure, first, monkeypatch
):
    near = first.structure.positions + torch.tensor([0.3, 1.1, 1.9]).double()
    near = near[first.surface.signed_distance(near).abs() < REACH]
    expected = first.blurs_at(near)
    monkeypatch.setattr(first_frame, "SLAB", 30_000)
    large = FirstFrame(structure, CONFIG)
    for found, one in zip(large.blurs_at(near), expected, strict=True):
        assert torch.equal(found, one)
    assert "blurred" not in vars(large)
    large.forget_blurs()
    assert torch.equal(large.blurs_at(near)[0], expected[0])
