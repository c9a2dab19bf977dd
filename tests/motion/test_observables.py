"""Facts about observables: closed forms, limits, symmetries, and what real argon is known to do."""

from __future__ import annotations

from math import e, log2, pi

import mdtraj
import numpy as np
import pytest
import torch

from undula.errors import InputError, UsageError
from undula.geometry import periodic
from undula.geometry.frames import random_rotation
from undula.motion import observables
from undula.motion.observables import (
    angle_triples,
    backbone_torsions,
    bond_angles,
    bond_lengths,
    bonded_within,
    clash_rate,
    closest_contacts,
    decorrelation_time,
    diffusion_coefficient,
    divergence,
    drift_free,
    mean_squared_displacement,
    minimum_distance,
    radial_distribution,
    ramachandran,
    ramachandran_divergence,
    rdf_error,
    shares,
    torsion_decorrelation,
    torsions,
    torus_shares,
    velocity_autocorrelation,
)
from undula.types import MolecularSystem, Structure

CUBE = 10 * torch.eye(3).double()
SKEWED = torch.tensor([[10.0, 0, 0], [0, 10.0, 0], [5.0, 5.0, 50**0.5]]).double()


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(frames: int, atoms: int, box: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(frames, atoms, 3, generator=generator, dtype=torch.float64) @ box


def system(names: list[str], residues: list[int], bonds: list[tuple[int, int]]) -> MolecularSystem:
    count = len(names)
    structure = Structure(
        name="chain",
        positions=torch.zeros(count, 3),
        elements=np.array([name[0] for name in names]),
        atom_names=np.array(names),
        residue_names=np.array(["ALA"] * count),
        residue_numbers=np.array(residues),
        insertion_codes=np.array([""] * count),
        chain_ids=np.array(["A"] * count),
        residue_index=np.array(residues),
        file_index=np.arange(count),
        file_atoms=count,
    )
    return MolecularSystem(
        structure=structure,
        bonds=torch.tensor(bonds, dtype=torch.long).reshape(-1, 2).T,
        molecules=torch.zeros(count, dtype=torch.long),
        kinds=np.array(names),
        masses=torch.ones(count),
    )


def dipeptide() -> MolecularSystem:
    """ACE-ALA-NME without hydrogens; the methyl carbon of NME is called C."""
    names = ["CH3", "C", "O", "N", "CA", "CB", "C", "O", "N", "C"]
    bonds = [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9)]
    return system(names, [0, 0, 0, 1, 1, 1, 1, 1, 2, 2], bonds)


# Radial distribution


@pytest.mark.parametrize("box", [CUBE, SKEWED], ids=["cube", "skewed"])
def test_an_ideal_gas_has_the_distribution_one(box):
    edges = torch.linspace(0.5, 3.5, 7).double()
    found = radial_distribution(uniform(400, 30, box), box, edges)
    torch.testing.assert_close(found, torch.ones(6).double(), atol=0.1, rtol=0)
    assert abs(float(found.mean()) - 1) < 0.02


def test_a_lattice_has_its_neighbours_in_their_shells():
    side = torch.arange(5).double() * 2
    lattice = torch.cartesian_prod(side, side, side)[None]
    edges = torch.tensor([0.0, 1.9, 2.1, 2.7, 2.9, 3.3]).double()
    found = radial_distribution(lattice + 3.7, CUBE, edges)
    shells = 4 / 3 * pi * edges.pow(3).diff()
    expected = torch.tensor([0.0, 6, 0, 12, 0]).double() * 1000 / 124 / shells
    torch.testing.assert_close(found, expected)


def test_a_distribution_counts_only_the_kinds_it_is_asked_for():
    positions = torch.tensor([[[1.0, 1, 1], [2, 1, 1], [1, 3, 1]]]).double()
    edges = torch.tensor([0.5, 1.5, 2.1]).double()
    first, second = torch.tensor([0]), torch.tensor([1, 2])
    found = radial_distribution(positions, CUBE, edges, first=first, second=second)
    shells = 4 / 3 * pi * edges.pow(3).diff()
    torch.testing.assert_close(found, 1000 / 2 / shells)
    back = radial_distribution(positions, CUBE, edges, first=second, second=first)
    torch.testing.assert_close(found, back)


def test_pairs_of_one_molecule_do_not_count():
    positions = torch.tensor([[[1.0, 1, 1], [2, 1, 1], [1, 3, 1]]]).double()
    edges = torch.tensor([0.5, 1.5, 2.3]).double()
    found = radial_distribution(positions, CUBE, edges, molecules=torch.tensor([0, 0, 1]))
    shells = 4 / 3 * pi * edges.pow(3).diff()
    torch.testing.assert_close(found, torch.tensor([0.0, 1]).double() * 1000 / shells[1])


def test_a_distribution_does_not_change_with_images_order_or_blocks(monkeypatch):
    positions = uniform(6, 20, SKEWED)
    edges = torch.linspace(0, 3.5, 8).double()
    found = radial_distribution(positions, SKEWED, edges)
    images = torch.randint(-3, 4, (6, 20, 3)).double() @ SKEWED
    turned = random_rotation(torch.Generator().manual_seed(1))
    for other, box in (
        (positions + images, SKEWED),
        (positions[:, torch.randperm(20)], SKEWED),
        (positions @ turned.T, SKEWED @ turned.T),
        (positions, SKEWED.expand(6, 3, 3)),
    ):
        torch.testing.assert_close(radial_distribution(other, box, edges), found)
    monkeypatch.setattr(periodic, "BLOCK_ON_CPU", 50)
    torch.testing.assert_close(radial_distribution(positions, SKEWED, edges), found)


def test_frames_with_boxes_of_their_own_are_weighted_by_their_volume():
    positions = uniform(2, 20, CUBE)
    edges = torch.linspace(0, 4.0, 5).double()
    boxes = torch.stack([CUBE, 1.5 * CUBE])
    each = [radial_distribution(positions[[f]], boxes[f], edges) for f in range(2)]
    torch.testing.assert_close(radial_distribution(positions, boxes, edges), sum(each) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_compiled_loop_counts_what_is_counted_on_any_device(dtype):
    edges = torch.arange(0, 13, 0.2, dtype=dtype).square()
    generator = torch.Generator().manual_seed(0)
    some = 200 * torch.rand(3, 40, len(edges), generator=generator, dtype=dtype)
    odd = torch.tensor([float("nan"), float("inf"), -1e-7, 0.0], dtype=dtype)
    some[0, 0], some[0, 1, :4] = edges, odd
    some[0, 2] = edges.nextafter(torch.zeros_like(edges))
    excluded = torch.rand(40, len(edges), generator=generator) < 0.1
    excluded[:3] = False
    found = [torch.zeros(3, len(edges) - 1, dtype=torch.long) for _ in range(2)]
    observables._counted_on_cpu(some, excluded, edges, found[0])
    observables._counted(some.clone(), excluded, edges, found[1])
    assert found[0].sum() > 3000
    assert torch.equal(*found)


def test_refuses_shells_that_reach_out_of_the_box_and_atoms_without_pairs():
    edges = torch.tensor([0.0, 4.0]).double()
    with pytest.raises(UsageError, match=r"reach to 4 Å, but only 3\.5"):
        radial_distribution(uniform(1, 5, SKEWED), SKEWED, edges[:2].clone())
    with pytest.raises(UsageError, match="increase"):
        radial_distribution(uniform(1, 5, CUBE), CUBE, edges.flip(0))
    for frames, atoms in ((1, 1), (0, 5)):
        with pytest.raises(InputError, match="no pairs"):
            radial_distribution(uniform(frames, atoms, CUBE), CUBE, edges)
    one = torch.zeros(5, dtype=torch.long)
    with pytest.raises(InputError, match="no pairs"):
        radial_distribution(uniform(1, 5, CUBE), CUBE, edges, molecules=one)


def test_the_error_of_a_distribution_is_the_mean_absolute_difference():
    assert float(rdf_error(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 1, 5]))) == 1


# Dynamics


def test_straight_flight_has_the_squared_displacement_of_its_speed():
    velocity = normal(7, 3)
    positions = torch.arange(30).double()[:, None, None] * velocity + normal(7, 3, seed=1)
    lags = torch.tensor([0, 1, 5, 29])
    expected = velocity.square().sum(dim=1).mean() * lags.double().square()
    torch.testing.assert_close(mean_squared_displacement(positions, lags), expected)
    assert (
        mean_squared_displacement(drift_free(velocity[None].expand(4, 7, 3)), lags[:2]) == 0
    ).all()


def test_a_random_walk_diffuses_at_the_rate_of_its_steps():
    walk = normal(4000, 60, 3).mul(0.3).cumsum(dim=0)
    lags = torch.arange(1, 40)
    displacement = mean_squared_displacement(walk, lags)
    found = diffusion_coefficient(displacement, lags * 0.1, (0.5, 3.9))
    assert found == pytest.approx(0.09 / 2 / 0.1, rel=0.03)


def test_diffusion_is_the_slope_whatever_the_offset():
    lags = torch.linspace(0, 10, 11).double()
    displacement = torch.where(lags < 3, lags**2, 5 + 4.2 * lags)
    assert diffusion_coefficient(displacement, lags, (3.0, 10.0)) == pytest.approx(0.7)
    flat = diffusion_coefficient(displacement, lags, (3.0, 10.0), dimensions=1)
    assert flat == pytest.approx(2.1)
    with pytest.raises(InputError, match="fewer than two lags"):
        diffusion_coefficient(displacement, lags, (9.5, 10.5))


def test_without_drift_the_centre_stays_and_relative_positions_do_too():
    positions, masses = normal(9, 5, 3), torch.arange(1.0, 6).double()
    still = drift_free(positions, masses)
    centres = (still * masses[:, None]).sum(dim=1) / masses.sum()
    torch.testing.assert_close(centres, centres[:1].expand(9, 3))
    torch.testing.assert_close(still.diff(dim=1), positions.diff(dim=1))
    torch.testing.assert_close(still[0], positions[0])


def test_oscillating_velocities_have_the_correlation_of_a_cosine():
    time, phases = torch.arange(50).double()[:, None], torch.arange(6).double() * pi / 3
    velocities = (0.3 * time + phases).cos()[:, :, None] * torch.tensor([1.0, 2, 0]).double()
    lags = torch.tensor([0, 1, 7, 40])
    found = velocity_autocorrelation(velocities, lags)
    torch.testing.assert_close(found, (0.3 * lags.double()).cos())


def test_the_dynamics_do_not_change_when_all_is_turned_or_summed_in_parts(monkeypatch):
    positions, lags = normal(30, 8, 3), torch.tensor([0, 3, 9])
    turned = positions @ random_rotation(torch.Generator().manual_seed(0)).T
    for function in (mean_squared_displacement, velocity_autocorrelation):
        torch.testing.assert_close(function(turned, lags), function(positions, lags))
    whole = mean_squared_displacement(positions, lags)
    monkeypatch.setattr(observables, "_NUMBERS_AT_ONCE", 100)
    torch.testing.assert_close(mean_squared_displacement(positions, lags), whole)


def test_refuses_lags_that_do_not_exist_and_velocities_without_correlation():
    for lag in (-1, 5):
        with pytest.raises(UsageError, match=f"a lag of {lag} frames"):
            mean_squared_displacement(normal(5, 2, 3), torch.tensor([0, lag]))
    with pytest.raises(InputError, match="no atoms"):
        mean_squared_displacement(normal(5, 0, 3), torch.tensor([0]))
    with pytest.raises(InputError, match="all 0"):
        velocity_autocorrelation(torch.zeros(5, 2, 3), torch.tensor([1]))
    assert velocity_autocorrelation(normal(5, 2, 3), torch.tensor([]).long()).shape == (0,)


# Shapes of molecules


def test_bonds_and_angles_of_a_right_triangle():
    corners = torch.tensor([[3.0, 0, 0], [0, 0, 0], [0, 4.0, 0]]).double()
    bonds = torch.tensor([[0, 1, 0], [1, 2, 2]])
    torch.testing.assert_close(bond_lengths(corners, bonds), torch.tensor([3.0, 4, 5]).double())
    triples = angle_triples(bonds)
    assert triples.T.tolist() == [[1, 0, 2], [0, 1, 2], [0, 2, 1]]
    angles = bond_angles(corners, triples)
    torch.testing.assert_close(angles[1], torch.tensor(pi / 2).double())
    torch.testing.assert_close(angles.sum(), torch.tensor(pi).double())


def test_a_straight_angle_is_exact_and_frames_keep_their_dimensions():
    line = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [2.0, 0, 0]])
    assert float(bond_angles(line, torch.tensor([[0], [1], [2]]))) == pytest.approx(pi, abs=1e-6)
    many = line.expand(2, 5, 3, 3)
    assert bond_lengths(many, torch.tensor([[0], [1]])).shape == (2, 5, 1)
    assert bond_angles(many, torch.zeros(3, 0).long()).shape == (2, 5, 0)
    assert angle_triples(torch.zeros(2, 0).long()).shape == (3, 0)


@pytest.mark.parametrize("degrees", [-179, -120, -60, 0, 60, 90, 150, 180])
def test_torsions_have_the_angle_they_were_built_with(degrees):
    angle = torch.tensor(degrees * pi / 180).double()
    last = torch.stack([angle.cos(), -angle.sin(), torch.tensor(-1.7).double()])
    chain = torch.stack(
        [torch.tensor(p).double() for p in ([1.0, 0, 0.4], [0.0] * 3, [0, 0, -1.3])]
    )
    chain = torch.cat([chain, last[None]])
    quadruple = torch.arange(4)[:, None]
    turn = random_rotation(torch.Generator().manual_seed(2))
    found = torsions(chain @ turn.T + 5, quadruple)
    torch.testing.assert_close(found.cos(), angle.cos()[None])
    torch.testing.assert_close(found.sin(), angle.sin()[None])
    torch.testing.assert_close(torsions(-chain, quadruple).sin(), -angle.sin()[None])
    torch.testing.assert_close(torsions(chain.flip(0), quadruple).sin(), angle.sin()[None])


def test_alanine_dipeptide_has_one_pair_of_backbone_torsions():
    phi, psi = backbone_torsions(dipeptide())
    assert phi.T.tolist() == [[1, 3, 4, 6]]
    assert psi.T.tolist() == [[3, 4, 6, 8]]


def test_backbone_torsions_need_neighbours_on_both_sides_and_no_break():
    names, residues = ["N", "CA", "C"] * 4, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    bonds = [(a, a + 1) for a in range(11)]
    phi, psi = backbone_torsions(system(names, residues, bonds))
    assert phi.T.tolist() == [[2, 3, 4, 5], [5, 6, 7, 8]]
    assert psi.T.tolist() == [[3, 4, 5, 6], [6, 7, 8, 9]]
    broken = [bond for bond in bonds if bond != (5, 6)]
    assert backbone_torsions(system(names, residues, broken))[0].shape == (4, 0)
    ions = backbone_torsions(system(["C", "N"], [0, 1], []))
    assert [rows.shape for rows in ions] == [(4, 0), (4, 0)]


# Distributions


def test_shares_add_up_to_one_and_lose_nothing():
    values = torch.tensor([[-5.0, 0.0], [0.5, 1.0], [1.5, 99.0]])
    found = shares(values, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5]).double())
    for bad in (torch.zeros(0), torch.tensor([torch.nan])):
        with pytest.raises(InputError, match="values"):
            shares(bad, torch.tensor([0.0, 1.0]))
    with pytest.raises(UsageError, match="increase"):
        shares(values, torch.tensor([1.0, 1.0]))


def test_the_divergence_is_zero_for_equals_one_without_overlap_and_known_between():
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 7.0])
    assert float(divergence(p, p)) == 0
    assert float(divergence(p, 3 * p)) == 0
    assert float(divergence(p, q)) == pytest.approx(1)
    half = torch.tensor([1.0, 0.0, 0.0])
    expected = -(0.75 * log2(0.75) + 0.25 * log2(0.25)) - 0.5
    assert float(divergence(p, half)) == pytest.approx(expected)
    assert float(divergence(half, p)) == pytest.approx(expected)
    for bad in (torch.zeros(3), torch.tensor([-1.0, 1, 1]), torch.tensor([torch.inf, 1, 1])):
        with pytest.raises(InputError, match="distribution"):
            divergence(p, bad)


def test_the_torus_has_no_edge():
    rows = [[pi, -pi], [-pi, pi], [3 * pi + 1e-9, -pi], [0.0, 0.0]]
    angles = torch.tensor(rows, dtype=torch.float64)
    found = torus_shares(angles, 4)
    assert found[0, 0] == 0.75
    assert found[2, 2] == 0.25
    with pytest.raises(InputError, match="finite"):
        torus_shares(torch.zeros(0, 2), 4)


def test_the_ramachandran_divergence_shrinks_with_the_number_of_frames():
    draws = [0.3 * normal(20000, 2, seed=seed) for seed in (0, 1)]
    few, many = (float(ramachandran_divergence(*(d[:n] for d in draws))) for n in (500, 20000))
    assert many < 0.01 < few < 0.3
    assert float(ramachandran_divergence(draws[0], draws[0] + 2 * pi)) == pytest.approx(0, abs=1e-6)
    assert float(ramachandran_divergence(draws[0], draws[1] * 0.1 + 2.5)) == pytest.approx(1)


# Decorrelation of torsions


def test_a_steadily_turning_angle_has_the_correlation_of_a_cosine():
    angles = torch.arange(60).double()[:, None] * torch.tensor([2 * pi / 20, 2 * pi / 12]).double()
    lags = torch.tensor([0, 1, 5, 10])
    found = torsion_decorrelation(angles, lags)
    expected = (lags[:, None].double() * angles[1]).cos()
    torch.testing.assert_close(found, expected)
    wrapped = torch.atan2(angles.sin(), angles.cos())
    torch.testing.assert_close(torsion_decorrelation(wrapped, lags), expected)


def test_independent_angles_forget_at_once_and_frozen_ones_never():
    angles = torch.cat([normal(20000, 1), torch.full((20000, 1), 1.234).double()], dim=1)
    found = torsion_decorrelation(angles, torch.tensor([0, 1, 100]))
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 0, 0]).double(), atol=0.03, rtol=0)
    assert (found[:, 1] == 1).all()
    time = decorrelation_time(found, torch.tensor([0.0, 1, 100]))
    assert float(time[0]) == pytest.approx(1 - 1 / e, abs=0.03)
    assert torch.isinf(time[1])


def test_an_exponential_decorrelates_in_its_own_time():
    lags = torch.linspace(0, 10, 2001).double()
    times = torch.tensor([0.5, 3.0, 20.0]).double()
    found = decorrelation_time((-lags[:, None] / times).exp(), lags)
    torch.testing.assert_close(found[:2], times[:2], atol=1e-4, rtol=0)
    assert torch.isinf(found[2])
    later = decorrelation_time((-lags[1:, None] / times).exp(), lags[1:])
    torch.testing.assert_close(later, found)


def test_refuses_times_that_make_no_sense():
    with pytest.raises(UsageError, match="increase"):
        decorrelation_time(torch.ones(2, 1), torch.tensor([1.0, 1.0]))
    with pytest.raises(UsageError, match="lag of 3 frames"):
        torsion_decorrelation(torch.ones(3, 1), torch.tensor([3]))
    assert torsion_decorrelation(torch.ones(3, 2), torch.tensor([]).long()).shape == (0, 2)


# Distances and clashes


def test_the_closest_two_may_be_so_through_a_wall():
    positions = torch.tensor([[[0.5, 1, 1], [9.0, 1, 1], [5, 5, 5]]]).double()
    assert minimum_distance(positions, CUBE).tolist() == pytest.approx([1.5])
    assert minimum_distance(positions, None).tolist() == pytest.approx([48**0.5])
    bonded = bonded_within(torch.tensor([[0], [1]]), 3)
    assert minimum_distance(positions, CUBE, bonded).tolist() == pytest.approx([48**0.5])
    with pytest.raises(InputError, match="no pairs"):
        minimum_distance(positions[:, :1], CUBE)
    assert minimum_distance(positions[:0], CUBE).shape == (0,)


def test_bonded_atoms_are_those_within_some_bonds():
    chain = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    for most in range(5):
        apart = (torch.arange(6)[:, None] - torch.arange(6)).abs()
        expected = apart <= most
        expected[5] = expected[:, 5] = False
        expected[5, 5] = True
        assert torch.equal(bonded_within(chain, 6, most), expected)
    assert torch.equal(bonded_within(chain[:, :0], 3), torch.eye(3, dtype=torch.bool))


def test_contacts_are_the_least_distances_of_kinds_and_no_frame_that_made_them_clashes():
    positions, kinds = uniform(5, 12, CUBE), torch.arange(12) % 3
    contacts = closest_contacts(positions, CUBE, kinds)
    for one in range(3):
        for other in range(3):
            rows, columns = (kinds == one).nonzero()[:, 0], (kinds == other).nonzero()[:, 0]
            step = positions[:, rows, None] - positions[:, None, columns]
            length = (step - 10 * (step / 10).round()).norm(dim=-1)
            length = length.masked_fill(rows[:, None] == columns, torch.inf)
            torch.testing.assert_close(contacts[one, other], length.min())
    assert (clash_rate(positions, CUBE, kinds, 0.999 * contacts) == 0).all()
    assert clash_rate(positions, CUBE, kinds, 1.001 * contacts).sum() * 12 >= 6


def test_clashes_are_counted_once_for_each_pair():
    positions = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]]]).double()
    kinds, limits = torch.zeros(4).long(), torch.tensor([[1.2]]).double()
    assert clash_rate(positions, None, kinds, limits).tolist() == [2 / 4]
    assert clash_rate(positions, None, kinds, 1.3 * limits).tolist() == [3 / 4]
    assert clash_rate(positions, None, kinds, limits, torch.ones(4, 4).bool()).tolist() == [0]


def test_kinds_without_a_pair_have_no_contact_and_pairs_without_a_limit_are_refused():
    positions, kinds = uniform(2, 3, CUBE), torch.tensor([0, 1, 1])
    contacts = closest_contacts(positions, CUBE, kinds)
    assert torch.isinf(contacts[0, 0])
    assert (clash_rate(positions, CUBE, kinds, 0.9 * contacts) == 0).all()
    with pytest.raises(InputError, match="no limit"):
        clash_rate(positions, CUBE, torch.tensor([0, 0, 1]), contacts)
    for positions in (uniform(0, 3, CUBE), uniform(2, 0, CUBE)):
        with pytest.raises(InputError, match="need a frame and an atom"):
            closest_contacts(positions, CUBE, kinds[: positions.shape[1]])
    with pytest.raises(InputError, match="no atoms"):
        clash_rate(uniform(2, 0, CUBE), CUBE, kinds[:0], contacts)


# What is known of real trajectories


@pytest.fixture(scope="module")
def argon(shared):
    """Positions and observed velocities in Å and ps, and the box."""
    data = np.load(shared / "argon" / "argon_0.npz")
    steps = np.concatenate([data["position_first"][None].astype(np.int32), data["position_step"]])
    positions = steps.cumsum(axis=0) * float(data["position_unit_nm"]) * 10
    velocities = data["velocity"] * float(data["velocity_unit_nm_per_ps"]) * 10
    box = torch.diag(torch.from_numpy(np.array(data["box_nm"], dtype=np.float64)) * 10)
    return torch.from_numpy(positions), torch.from_numpy(velocities.astype(np.float64)), box


def test_argon_forgets_its_velocities_and_diffuses_as_it_should(argon):
    positions, velocities, _ = argon
    kept = velocity_autocorrelation(velocities, torch.tensor([5, 10, 50]))
    assert kept.tolist() == pytest.approx([0.16, 0.08, 0.0], abs=0.03)
    lags = torch.arange(50, 501, 50)
    displacement = mean_squared_displacement(drift_free(positions), lags)
    found = diffusion_coefficient(displacement, lags * 0.1, (5.0, 50.0))
    assert found == pytest.approx(0.86, rel=0.15)


def test_argon_has_its_first_shell_where_its_atoms_attract_most(argon):
    positions, _, box = argon
    edges = torch.linspace(2.0, 13.0, 111).double()
    found = radial_distribution(positions[::200], box, edges)
    peak = float(edges[found.argmax()]) + 0.05
    assert 3.6 < peak < 3.9
    assert found[edges[:-1] < 2.8].max() == 0
    assert found[-20:].mean() == pytest.approx(1, abs=0.06)
    assert 2.8 < float(minimum_distance(positions[::200], box).min()) < 3.2


def test_alanine_dipeptide_has_the_bonds_and_torsions_of_its_force_field(shared):
    runs = [
        mdtraj.load(
            str(shared / "ala2" / f"ala2_R{run}.xtc"),
            top=str(shared / "ala2" / "ala2.pdb"),
            stride=4,
        )
        for run in (1, 2)
    ]
    first, second = (torch.from_numpy(run.xyz).double() * 10 for run in runs)
    atoms = {(a.residue.index, a.name): a.index for a in runs[0].topology.atoms}
    phi = torch.tensor([atoms[0, "C"], atoms[1, "N"], atoms[1, "CA"], atoms[1, "C"]])[:, None]
    psi = torch.tensor([atoms[1, "N"], atoms[1, "CA"], atoms[1, "C"], atoms[2, "N"]])[:, None]
    bonds = torch.tensor([[atoms[0, "C"], atoms[1, "CA"]], [atoms[1, "N"], atoms[1, "CB"]]])
    lengths = bond_lengths(first, bonds).mean(dim=0)
    assert lengths.tolist() == pytest.approx([1.335, 1.526], abs=0.02)
    angles, others = (ramachandran(run, phi, psi)[:, 0] for run in (first, second))
    known = mdtraj.compute_phi(runs[0])[1][:, 0]
    torch.testing.assert_close(angles[:, 0].float(), torch.from_numpy(known), atol=1e-3, rtol=0)
    known = mdtraj.compute_psi(runs[0])[1][:, 0]
    torch.testing.assert_close(angles[:, 1].float(), torch.from_numpy(known), atol=1e-3, rtol=0)
    between = ramachandran_divergence(angles, others)
    frozen = ramachandran_divergence(angles[:1].expand(2500, 2), others)
    assert between < 0.2 < 0.9 < frozen
    kept = torsion_decorrelation(angles, torch.arange(0, 200))
    time = decorrelation_time(kept, torch.arange(0, 200) * 2.0)
    assert (time > 0).all()
