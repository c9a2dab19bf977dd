from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import argon, chain

from undula.errors import InputError
from undula.motion.baselines.trivial import (
    LINEAR_ROWS,
    Ballistic,
    Constant,
    ObservedMean,
    trivial_forecasters,
)
from undula.motion.climatology import knot_frames
from undula.motion.climatology_fit import Example
from undula.motion.scores import crps_normal, crps_samples
from undula.motion.windows import AtomForecaster, Window

BOX = 10 * torch.eye(3, dtype=torch.float64)
LAGS = torch.tensor([0.4, 0.1, 2.0], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walk(atoms: int, frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions whose velocities forget themselves by a fifth each frame."""
    kicks = torch.randn((frames, atoms, 3), generator=seeded(seed), dtype=torch.float64)
    velocities = [kicks[0]]
    for kick in kicks[1:]:
        velocities.append(0.8 * velocities[-1] + 0.6 * kick)
    speeds = torch.stack(velocities)
    return 0.1 * speeds.cumsum(dim=0), speeds


def window_at(now: int, positions: torch.Tensor, velocities: torch.Tensor, system) -> Window:
    seen = slice(now - 4, now + 1)
    return Window(
        system=system,
        positions=positions[seen],
        velocities=velocities[seen],
        box=BOX,
        frame_ps=0.1,
    )


@pytest.fixture(scope="module")
def rows() -> list[AtomForecaster]:
    knots = knot_frames(20)
    positions, velocities = walk(60, 200, 0)
    system, ends = argon(60), torch.tensor(knots)
    data = (
        Example(window=window_at(now, positions, velocities, system), future=positions[now + ends])
        for now in range(4, 180, 2)
    )
    return trivial_forecasters(data, knots, None)


@pytest.fixture(scope="module")
def window() -> Window:
    positions, velocities = walk(60, 40, 1)
    return window_at(15, positions, velocities, argon(60))


def test_every_row_is_a_forecaster_and_has_its_own_name(rows, window):
    assert all(isinstance(row, AtomForecaster) for row in rows)
    assert len({row.name for row in rows}) == 7
    assert set(LINEAR_ROWS) <= {row.name for row in rows}
    for row in rows:
        found = row.forecast(window, LAGS)
        assert found.mean.shape == (3, 60, 3)
        assert found.velocities is not None
        drawn = row.samples(window, LAGS, 2, seeded(0))
        assert (drawn is None) == (found.spread is None)


def test_every_row_turns_with_the_atoms(rows, window):
    """All but the centre of a box, which does not turn."""
    turn = torch.linalg.qr(torch.randn((3, 3), generator=seeded(2), dtype=torch.float64))[0]
    turned = replace(window, positions=window.positions @ turn, velocities=window.velocities @ turn)
    for row in rows[1:]:
        torch.testing.assert_close(
            row.forecast(turned, LAGS).mean, row.forecast(window, LAGS).mean @ turn
        )


def test_asking_for_one_time_gives_what_a_grid_gives(rows, window):
    for row in rows:
        whole = row.forecast(window, LAGS).mean
        alone = row.forecast(window, LAGS[1:2]).mean
        torch.testing.assert_close(alone[0], whole[1], atol=1e-12, rtol=0)


def test_each_row_beats_the_one_it_refines(rows):
    positions, velocities = walk(60, 200, 3)
    system, frames = argon(60), torch.tensor([2, 8])
    errors: dict[str, float] = {}
    for now in range(4, 190, 10):
        window = window_at(now, positions, velocities, system)
        for row in rows:
            mean = row.forecast(window, 0.1 * frames.double()).mean
            error = (mean - positions[now + frames]).square().mean()
            errors[row.name] = errors.get(row.name, 0.0) + float(error)
    assert errors["linear response"] < errors["ballistic"]
    assert errors["damped ballistic"] < errors["ballistic"]
    assert errors["damped ballistic"] < errors["last position"]
    assert errors["linear response"] < 1.02 * errors["damped ballistic"]


def test_samples_have_the_score_of_the_normal_distribution(rows, window):
    linear = rows[-1]
    expected = linear.forecast(window, LAGS)
    assert expected.spread is not None
    drawn = linear.samples(window, LAGS, 400, seeded(4))
    assert drawn is not None
    truth = expected.mean + 0.7 * expected.spread.unsqueeze(-1)
    spread = expected.spread.unsqueeze(-1).expand_as(truth)
    closed = crps_normal(expected.mean, spread, truth).mean(dim=(1, 2))
    found = crps_samples(drawn, truth).mean(dim=(1, 2))
    torch.testing.assert_close(found, closed, rtol=0.02, atol=0)
    assert torch.equal(drawn, linear.samples(window, LAGS, 400, seeded(4)))


def test_a_liquid_rests_in_the_centre_of_the_box_it_is_in(window):
    found = Constant().forecast(window, LAGS)
    torch.testing.assert_close(found.mean.remainder(10.0), torch.full_like(found.mean, 5.0))
    assert float((found.mean[0] - window.now).abs().max()) <= 5.0
    assert found.spread is None
    with pytest.raises(InputError, match="needs training frames"):
        Constant().forecast(replace(window, box=None), LAGS)


def test_a_bound_molecule_rests_in_its_training_mean_and_samples_training_frames():
    system = chain(4)
    frames = torch.randn((500, 4, 3), generator=seeded(5), dtype=torch.float64)
    positions = torch.zeros(2, 4, 3, dtype=torch.float64)
    window = Window(system=system, positions=positions, velocities=None, box=None, frame_ps=0.5)
    row = Constant(frames=frames)
    found = row.forecast(window, LAGS)
    torch.testing.assert_close(found.mean[2], frames.mean(dim=0))
    assert found.spread is not None
    assert float((found.spread - 1).abs().max()) < 0.1
    drawn = row.samples(window, LAGS, 3, seeded(6))
    assert drawn is not None
    same = (drawn[2, 1] == frames).all(dim=-1).all(dim=-1)
    assert int(same.sum()) == 1
    other = Window(
        system=chain(3), positions=positions[:, :3], velocities=None, box=None, frame_ps=0.5
    )
    with pytest.raises(InputError, match="4 atoms, the window 3"):
        row.forecast(other, LAGS)


def test_goes_straight_on_by_the_last_difference_where_no_velocity_is_known(window):
    blind = replace(window, velocities=None)
    found = Ballistic().forecast(blind, LAGS)
    step = window.positions[-1] - window.positions[-2]
    torch.testing.assert_close(found.mean[0], window.now + 4 * step)
    with pytest.raises(InputError, match="two frames"):
        Ballistic().forecast(blind.last(1), LAGS)


def test_the_observed_mean_is_at_rest(window):
    found = ObservedMean().forecast(window, LAGS)
    torch.testing.assert_close(found.mean[1], window.positions.mean(dim=0))
    assert found.velocities is not None
    assert not found.velocities.any()
    assert math.isclose(float(found.lags_ps[0]), 0.4)


def test_the_observed_mean_of_wrapped_positions_lies_between_the_walls():
    positions = torch.tensor([[[9.9, 1.0, 5.0]], [[10.1, 1.0, 5.0]]], dtype=torch.float64)
    window = Window(system=argon(1), positions=positions, velocities=None, box=BOX, frame_ps=0.1)
    found = ObservedMean(wrapped=True).forecast(window, LAGS).mean[0, 0]
    assert found.tolist() == pytest.approx([5.0, 1.0, 5.0])
    assert ObservedMean().forecast(window, LAGS).mean[0, 0].tolist() == pytest.approx([10, 1, 5])
    with pytest.raises(InputError, match="no box"):
        ObservedMean(wrapped=True).forecast(replace(window, box=None), LAGS)
