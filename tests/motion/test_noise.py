from __future__ import annotations

import pytest
import torch
from tests.motion.small_systems import argon, chain, system, water_positions, waters

from undula.io.bonds import covalent_bonds
from undula.io.structures import load_structure
from undula.motion.noise import (
    climatological_noise,
    restored_bonds,
    topologies,
    window_lengths,
)
from undula.motion.windows import Window


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(system, lags, spread, correlation, clock, count, seed=0):
    spread = torch.tensor(spread, dtype=torch.float64)[:, None].expand(-1, len(system))
    clock = torch.tensor(clock, dtype=torch.float64)[:, None].expand(-1, len(system))
    rho = torch.tensor(correlation, dtype=torch.float64).expand(len(lags), -1)
    lags = torch.tensor(lags, dtype=torch.float64)
    return climatological_noise(system, lags, spread, rho, clock, count, seeded(seed))


def correlation_of(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())


def test_has_the_asked_spread_and_the_correlations_of_space_and_time():
    noise = drawn(waters(2), [1.0, 2.0], [0.5, 2.0], [1.0, 0.8, 0.6], [0.0, 0.3], 20_000)
    assert noise.shape == (20_000, 2, 6, 3)
    spread = noise.square().mean(dim=(0, 3)).sqrt()
    torch.testing.assert_close(
        spread[0], torch.full((6,), 0.5, dtype=torch.float64), rtol=0.02, atol=0
    )
    torch.testing.assert_close(
        spread[1], torch.full((6,), 2.0, dtype=torch.float64), rtol=0.02, atol=0
    )
    assert correlation_of(noise[:, 1, 0], noise[:, 1, 1]) == pytest.approx(0.8, abs=0.01)
    assert correlation_of(noise[:, 1, 4], noise[:, 1, 5]) == pytest.approx(0.6, abs=0.01)
    assert correlation_of(noise[:, 0, 0], noise[:, 0, 3]) == pytest.approx(0.0, abs=0.02)
    expected = torch.exp(torch.tensor(-0.3)).item()
    assert correlation_of(noise[:, 0, 2], noise[:, 1, 2]) == pytest.approx(expected, abs=0.01)


def test_keeps_the_spread_where_the_table_is_no_correlation_of_anything():
    """In a chain of five, neighbours that oppose each other all cannot."""
    noise = drawn(chain(5), [1.0], [1.0], [1.0, -0.9, -0.9], [0.0], 20_000)
    spread = noise.square().mean(dim=(0, 1, 3)).sqrt()
    torch.testing.assert_close(spread, torch.ones(5, dtype=torch.float64), rtol=0.02, atol=0)


def test_times_may_come_in_any_order():
    system = waters(1)
    sorted_times = drawn(system, [1.0, 2.0, 4.0], [1.0, 1.0, 1.0], [1.0, 0.5], [0.0, 0.1, 3.0], 4)
    mixed = drawn(system, [4.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 0.5], [3.0, 0.0, 0.1], 4)
    torch.testing.assert_close(mixed[:, [1, 2, 0]], sorted_times)


def test_repeats_with_the_seed_and_vanishes_with_the_spread():
    one = drawn(argon(3), [1.0, 2.0], [0.0, 1.0], [1.0], [0.0, 1.0], 2, seed=5)
    two = drawn(argon(3), [1.0, 2.0], [0.0, 1.0], [1.0], [0.0, 1.0], 2, seed=5)
    assert torch.equal(one, two)
    assert float(one[:, 0].abs().max()) == 0
    assert drawn(argon(3), [], [], [1.0], [], 2).shape == (2, 0, 3, 3)


def test_molecules_with_the_same_bonds_are_one_topology():
    found = topologies(waters(3))
    assert len(found) == 1
    assert found[0].members.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert found[0].hops.tolist() == [[0, 1, 1], [1, 0, 2], [1, 2, 0]]
    mixed = system(["O", "H", "H", "AR"], [(0, 1), (0, 2)], [0, 0, 0, 1])
    assert sorted(group.members.shape[1] for group in topologies(mixed)) == [1, 3]


def test_finds_molecules_whose_atoms_lie_apart():
    scattered = system(["O", "O", "H", "H"], [(0, 2), (1, 3)], [0, 1, 0, 1])
    found = topologies(scattered)
    assert len(found) == 1
    assert found[0].members.tolist() == [[0, 2], [1, 3]]


@pytest.fixture
def water_window() -> Window:
    positions = water_positions(5, seeded(3))
    return Window(
        system=waters(5), positions=positions[None], velocities=None, box=None, frame_ps=0.1
    )


def test_gives_waters_their_shape_back(water_window):
    pairs, lengths = window_lengths(water_window)
    assert pairs.shape == (2, 15)
    masses = water_window.system.masses
    noise = torch.randn((8, 15, 3), generator=seeded(4), dtype=torch.float64)
    shaken = water_window.now + 0.3 * noise
    found = restored_bonds(shaken, pairs, lengths, masses)
    apart = (found[:, pairs[0]] - found[:, pairs[1]]).norm(dim=-1)
    torch.testing.assert_close(apart, lengths.expand(8, -1), atol=1e-3, rtol=0)
    weights = masses.double()[:, None]
    torch.testing.assert_close((found * weights).sum(dim=1), (shaken * weights).sum(dim=1))


def test_leaves_what_is_right_alone(water_window):
    pairs, lengths = window_lengths(water_window)
    found = restored_bonds(water_window.now, pairs, lengths, water_window.system.masses)
    torch.testing.assert_close(found, water_window.now, atol=1e-12, rtol=0)
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert torch.equal(
        restored_bonds(water_window.now, none, lengths[:0], water_window.system.masses),
        water_window.now,
    )


def test_restores_a_turned_and_mirrored_molecule_likewise(water_window):
    pairs, lengths = window_lengths(water_window)
    masses = water_window.system.masses
    shaken = water_window.now + 0.2 * torch.randn((15, 3), generator=seeded(6), dtype=torch.float64)
    turn = -torch.linalg.qr(torch.randn((3, 3), generator=seeded(7), dtype=torch.float64))[0]
    torch.testing.assert_close(
        restored_bonds(shaken @ turn + 2.0, pairs, lengths, masses),
        restored_bonds(shaken, pairs, lengths, masses) @ turn + 2.0,
        atol=1e-9,
        rtol=0,
    )


def test_moves_light_atoms_rather_than_heavy_ones():
    pair = torch.tensor([[0], [1]])
    apart = torch.tensor([[0.0, 0, 0], [2.0, 0, 0]], dtype=torch.float64)
    found = restored_bonds(
        apart, pair, torch.tensor([1.0], dtype=torch.float64), torch.tensor([3.0, 1.0])
    )
    torch.testing.assert_close(found[:, 0], torch.tensor([0.25, 1.25], dtype=torch.float64))


def test_gives_alanine_dipeptide_its_bonds_and_angles_back(shared):
    peptide = load_structure(
        shared / "ala2" / "ala2.pdb", hydrogens="keep", heterogens="keep", select="all"
    )
    assert len(peptide) == 22
    bonds = covalent_bonds(peptide)
    frame = peptide.positions.double()
    symbols = peptide.elements.tolist()
    whole = system(symbols_in(symbols), [tuple(pair) for pair in bonds.T.tolist()], [0] * 22)
    window = Window(system=whole, positions=frame[None], velocities=None, box=None, frame_ps=0.5)
    pairs, lengths = window_lengths(window)
    noise = torch.randn((16, 22, 3), generator=seeded(8), dtype=torch.float64)
    found = restored_bonds(frame + 0.25 * noise, pairs, lengths, whole.masses)
    error = ((found[:, pairs[0]] - found[:, pairs[1]]).norm(dim=-1) - lengths).abs()
    assert float(error.mean()) < 0.005


def symbols_in(symbols: list[str]) -> list[str]:
    """Take nitrogen for carbon: the masses need not be exact here."""
    return ["C" if symbol == "N" else symbol for symbol in symbols]
