import pytest
import torch

from undula.geometry.frames import random_rotation
from undula.nn.radial_sums import FIRST, KNOTS, REACH, radial_sums

MIRROR = torch.diag(torch.tensor([-1.0, 1.0, 1.0])).double()


def spline(place):
    """Return the quadratic B-spline of support (-3/2, 3/2)."""
    away = place.abs()
    middle, side = 0.75 - away**2, 0.5 * (1.5 - away).clamp(min=0) ** 2
    return torch.where(away < 0.5, middle, side)


def molecule(seed=0, atoms=80):
    generator = torch.Generator().manual_seed(seed)
    positions = 6 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    radii = 1.2 + 0.8 * torch.rand(atoms, generator=generator, dtype=torch.float64)
    channels = torch.randn(atoms, 3, generator=generator)
    points = 9 * torch.randn(150, 3, generator=generator, dtype=torch.float64)
    return points, positions, radii, channels


def sums_at(distances, radius=1.7, channels=None):
    """Return the sums of one atom at distances from its sphere."""
    points = torch.zeros(len(distances), 3, dtype=torch.float64)
    points[:, 1] = distances + radius
    one = torch.tensor([[1.0, -3.0]]) if channels is None else channels
    return radial_sums(points, torch.zeros(1, 3).double(), torch.tensor([radius]).double(), one)


def test_one_atom_gives_the_closed_form():
    distances = torch.linspace(-1.69, REACH - 1e-6, 333, dtype=torch.float64)
    found = sums_at(distances)
    places = distances[:, None] - FIRST - torch.arange(KNOTS)
    expected = spline(places)[:, :, None] * torch.tensor([1.0, -3.0])
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)


def test_the_splines_are_a_partition_of_unity_and_know_the_distance():
    distances = torch.linspace(FIRST + 1.0, FIRST + KNOTS - 1.5, 200, dtype=torch.float64)
    weights = sums_at(distances, channels=torch.ones(1, 1))[:, :, 0].double()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(200).double(), rtol=0, atol=1e-6)
    centres = FIRST + torch.arange(KNOTS, dtype=torch.float64)
    torch.testing.assert_close(weights @ centres, distances, rtol=0, atol=1e-5)
    assert (weights >= 0).all()


def test_equals_a_sum_over_all_pairs():
    points, positions, radii, channels = molecule()
    distances = torch.cdist(points, positions) - radii
    weights = spline(distances[:, :, None] - FIRST - torch.arange(KNOTS))
    weights[distances >= REACH] = 0
    expected = torch.einsum("nak,ac->nkc", weights, channels.double()).float()
    torch.testing.assert_close(radial_sums(*molecule()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("matrix", "shift"),
    [
        (random_rotation(torch.Generator().manual_seed(1)), 0.0),
        (MIRROR, 0.0),
        (torch.eye(3).double(), 60.0),
    ],
    ids=["turned", "mirrored", "shifted"],
)
def test_does_not_change_when_the_molecule_is(matrix, shift):
    points, positions, radii, channels = molecule()
    moved = radial_sums(points @ matrix.T + shift, positions @ matrix.T + shift, radii, channels)
    torch.testing.assert_close(moved, radial_sums(*molecule()), rtol=0, atol=1e-5)


def test_does_not_change_when_the_atoms_are_relabelled():
    points, positions, radii, channels = molecule()
    order = torch.randperm(len(radii), generator=torch.Generator().manual_seed(3))
    moved = radial_sums(points, positions[order], radii[order], channels[order])
    torch.testing.assert_close(moved, radial_sums(*molecule()), rtol=0, atol=1e-5)


def test_every_point_is_on_its_own():
    points, *atoms = molecule()
    assert torch.equal(radial_sums(points.flip(0), *atoms).flip(0), radial_sums(points, *atoms))
    assert torch.equal(radial_sums(points[7:9], *atoms), radial_sums(points, *atoms)[7:9])


def test_far_away_nothing_is_felt():
    points, *atoms = molecule()
    assert not radial_sums(points + 500, *atoms).any()
    assert not sums_at(torch.tensor([REACH + 1e-6]).double()).any()


def test_an_atom_leaves_without_a_jump():
    ends = sums_at(torch.tensor([REACH - 1e-6, REACH + 1e-6]).double())
    assert float((ends[0] - ends[1]).abs().max()) < 1e-4


def test_without_atoms_all_sums_are_zero_and_without_points_there_are_none():
    points, positions, radii, channels = molecule()
    assert not radial_sums(points, positions[:0], radii[:0], channels[:0]).any()
    assert radial_sums(points[:0], positions, radii, channels).shape == (0, KNOTS, 3)
