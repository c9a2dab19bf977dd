from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.motion.small_systems import argon, chain, water_positions, waters

from undula.errors import InputError, UsageError
from undula.motion.climatology import Climatology, knot_frames
from undula.motion.climatology_fit import Example, fit_climatologies, fit_climatology
from undula.motion.predictors import ClimatologyConfig
from undula.motion.windows import Window
from undula.types import MolecularSystem

DT = 0.1
NOTHING = ClimatologyConfig(
    velocity=False, earlier=(), molecule=False, neighbours=False, mean=False, drift=False
)
VELOCITY = replace(NOTHING, velocity=True)


def rand(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def window_of(
    system: MolecularSystem, positions: torch.Tensor, velocities: torch.Tensor | None
) -> Window:
    return Window(system=system, positions=positions, velocities=velocities, box=None, frame_ps=DT)


def langevin(atoms: int, frames: int, friction: float, seed: int):
    """Integrate free Langevin motion exactly, with thermal velocities of 1 Å/ps."""
    decay = np.exp(-friction * DT)
    a = (1 - decay) / friction
    covariance = np.array(
        [
            [1 - decay**2, a**2 * friction],
            [a**2 * friction, (2 * DT - 2 * a - friction * a**2) / friction],
        ]
    )
    root = torch.from_numpy(np.linalg.cholesky(covariance))
    noise = rand(seed, frames, atoms, 3, 2) @ root.T
    positions, velocities = [torch.zeros(atoms, 3, dtype=torch.float64)], [rand(seed + 1, atoms, 3)]
    for kick in noise[1:]:
        positions.append(positions[-1] + a * velocities[-1] + kick[..., 1])
        velocities.append(decay * velocities[-1] + kick[..., 0])
    return torch.stack(positions), torch.stack(velocities)


def examples(system, positions, velocities, observed: int, knots, step: int = 7):
    frames = torch.tensor(knots)
    for now in range(observed - 1, len(positions) - int(frames[-1]), step):
        seen = slice(now - observed + 1, now + 1)
        speeds = None if velocities is None else velocities[seen]
        yield Example(
            window=window_of(system, positions[seen], speeds), future=positions[now + frames]
        )


@pytest.fixture(scope="module")
def water_fit() -> tuple[Climatology, Window]:
    """A climatology with every term, of waters that jitter, and a window of them."""
    system = waters(4)
    steps = 0.2 * rand(5, 60, 12, 3)
    start = water_positions(4, torch.Generator().manual_seed(1))
    positions = start + steps.cumsum(dim=0) + 0.1 * rand(6, 60, 12, 3)
    velocities = steps / DT + rand(7, 60, 12, 3)
    knots = knot_frames(20)
    data = examples(system, positions, velocities, 10, knots, step=1)
    climatology = fit_climatology(data, knots, ClimatologyConfig())
    return climatology, window_of(system, positions[20:30], velocities[20:30])


def test_recovers_straight_lines_exactly():
    system, velocity = argon(6), rand(0, 6, 3)
    times = DT * torch.arange(50, dtype=torch.float64)
    positions = velocity * times[:, None, None]
    knots = knot_frames(30)
    data = examples(system, positions, velocity.expand(50, 6, 3), 3, knots)
    fit = fit_climatology(data, knots, VELOCITY)
    window = window_of(system, positions[:3], velocity.expand(3, 6, 3))
    lags = torch.tensor([0.02, 0.1, 0.37, 1.0, 2.9], dtype=torch.float64)
    found = fit.expected(window, lags)
    straight = window.now + velocity * lags[:, None, None]
    torch.testing.assert_close(found.mean, straight, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.velocities, velocity.expand(5, 6, 3), atol=1e-4, rtol=1e-4)
    assert float(found.spread.max()) < 1e-4


def test_recovers_the_closed_forms_of_free_langevin_motion():
    friction, knots = 2.0, knot_frames(100)
    system = argon(400)
    positions, velocities = langevin(400, 400, friction, seed=3)
    fit = fit_climatology(examples(system, positions, velocities, 2, knots), knots, VELOCITY)
    lags = torch.tensor([0.1, 0.25, 0.8, 2.5, 10.0], dtype=torch.float64)
    window = window_of(system, positions[:2], velocities[:2])
    found = fit.expected(window, lags)
    response = (1 - torch.exp(-friction * lags)) / friction
    expected = window.now + response[:, None, None] * velocities[1]
    torch.testing.assert_close(found.mean, expected, atol=0.12, rtol=0)
    error = (found.mean - expected).square().mean(dim=(1, 2)).sqrt()
    assert (error < 0.03 * (1 + found.spread[:, 0])).all()
    variance = (2 * lags - 2 * response - friction * response**2) / friction
    torch.testing.assert_close(found.spread[:, 0], variance.sqrt(), atol=0, rtol=0.04)
    speed = torch.exp(-friction * lags)[:, None, None] * velocities[1]
    assert (found.velocities - speed)[:4].square().mean().sqrt() < 0.03


def test_recovers_spread_and_clock_of_brownian_motion():
    system, knots = argon(300), knot_frames(64)
    positions = (0.3 * rand(9, 400, 300, 3)).cumsum(dim=0)
    fit = fit_climatology(examples(system, positions, None, 1, knots, step=5), knots, NOTHING)
    assert fit.known is None
    assert fit.differenced is not None
    times = torch.tensor(knots, dtype=torch.float64)
    torch.testing.assert_close(fit.differenced.spread[0], 0.3 * times.sqrt(), atol=0, rtol=0.03)
    torch.testing.assert_close(fit.differenced.clock[0], times.log() / 2, atol=0.03, rtol=0.03)


def test_recovers_how_bound_atoms_return_to_their_mean():
    """An Ornstein-Uhlenbeck position: the way back is 1 − exp(−k τ), the spread what is left."""
    rate, knots, system = 0.5, knot_frames(40), argon(200)
    decay = np.exp(-rate * DT)
    noise = rand(11, 700, 200, 3) * np.sqrt(1 - decay**2)
    frames = [rand(12, 200, 3)]
    for kick in noise:
        frames.append(decay * frames[-1] + kick)
    positions = torch.stack(frames)

    def seen(now: int) -> Window:
        """The last position, and one before it that puts the mean where the atoms belong."""
        return window_of(system, torch.stack([-positions[now], positions[now]]), None)

    ends = torch.tensor(knots)
    data = (Example(window=seen(now), future=positions[now + ends]) for now in range(0, 650, 9))
    fit = fit_climatology(data, knots, replace(NOTHING, mean=True))
    lags = torch.tensor([0.1, 0.7, 2.0, 4.0], dtype=torch.float64)
    found = fit.expected(seen(5), lags)
    torch.testing.assert_close(
        found.mean, torch.exp(-rate * lags)[:, None, None] * positions[5], atol=0.06, rtol=0
    )
    kept = torch.exp(-2 * rate * lags)
    torch.testing.assert_close(found.spread[:, 0], (1 - kept).sqrt(), atol=0, rtol=0.05)


def test_turns_mirrors_and_shifts_with_the_atoms(water_fit):
    climatology, window = water_fit
    turn = torch.linalg.qr(rand(13, 3, 3))[0]
    for sign in (1.0, -1.0):
        moved = replace(
            window,
            positions=window.positions @ (sign * turn) + 5.0,
            velocities=window.velocities @ (sign * turn),
        )
        lags = torch.tensor([0.05, 0.1, 1.3], dtype=torch.float64)
        before, after = climatology.expected(window, lags), climatology.expected(moved, lags)
        torch.testing.assert_close(after.mean, before.mean @ (sign * turn) + 5.0, atol=1e-9, rtol=0)
        torch.testing.assert_close(
            after.velocities, before.velocities @ (sign * turn), atol=1e-9, rtol=0
        )
        torch.testing.assert_close(after.spread, before.spread)


def test_does_not_depend_on_the_order_of_molecules(water_fit):
    climatology, window = water_fit
    order = torch.tensor([6, 7, 8, 0, 1, 2, 9, 10, 11, 3, 4, 5])
    moved = replace(
        window, positions=window.positions[:, order], velocities=window.velocities[:, order]
    )
    lags = torch.tensor([0.3, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        climatology.expected(moved, lags).mean, climatology.expected(window, lags).mean[:, order]
    )


def test_an_observer_who_moves_along_sees_the_same():
    """Fitted on a system at rest, it forecasts a drifting one as if it were carried."""
    system, knots = argon(40), knot_frames(20)
    positions, velocities = langevin(40, 200, 1.0, seed=21)
    positions = positions - positions.mean(dim=1, keepdim=True)
    velocities = velocities - velocities.mean(dim=1, keepdim=True)
    data = examples(system, positions, velocities, 10, knots, step=2)
    fit = fit_climatology(data, knots, ClimatologyConfig())
    wind = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)
    window = window_of(system, positions[50:60], velocities[50:60])
    times = DT * torch.arange(-9, 1, dtype=torch.float64)
    carried = replace(
        window,
        positions=window.positions + wind * times[:, None, None],
        velocities=window.velocities + wind,
    )
    lags = torch.tensor([0.1, 0.6, 2.0], dtype=torch.float64)
    still, moving = fit.expected(window, lags), fit.expected(carried, lags)
    torch.testing.assert_close(
        moving.mean, still.mean + wind * lags[:, None, None], atol=1e-6, rtol=0
    )
    torch.testing.assert_close(moving.velocities, still.velocities + wind, atol=1e-6, rtol=0)


@pytest.mark.parametrize("known", [True, False])
def test_velocities_are_the_derivative_of_the_mean(water_fit, known):
    climatology, window = water_fit
    window = window if known else replace(window, velocities=None)
    lags = torch.tensor([0.03, 0.1, 0.25, 1.1, 1.9], dtype=torch.float64)
    step = 1e-6
    later = climatology.expected(window, lags + step).mean
    earlier = climatology.expected(window, lags - step).mean
    torch.testing.assert_close(
        climatology.expected(window, lags).velocities,
        (later - earlier) / (2 * step),
        atol=1e-5,
        rtol=1e-4,
    )


def test_nothing_has_moved_at_once_and_uncertainty_grows_as_the_force_makes_it(water_fit):
    climatology, window = water_fit
    lags = torch.tensor([0.0, 0.01, 0.02], dtype=torch.float64)
    found = climatology.expected(window, lags)
    assert torch.equal(found.mean[0], window.now)
    assert float(found.spread[0].abs().max()) == 0
    torch.testing.assert_close(found.velocities[0], window.velocities[-1])
    torch.testing.assert_close(found.spread[2], 4 * found.spread[1])
    unknown = climatology.expected(replace(window, velocities=None), lags)
    torch.testing.assert_close(unknown.spread[2], 2 * unknown.spread[1])


def test_atoms_that_move_together_are_fully_correlated():
    system, knots = chain(3), knot_frames(10)
    path = rand(31, 200, 1, 3).cumsum(dim=0)
    together = path + rand(32, 3, 3)
    fit = fit_climatology(examples(system, together, None, 1, knots), knots, NOTHING)
    assert fit.differenced is not None
    torch.testing.assert_close(
        fit.differenced.correlation, torch.ones(len(knots), 3, dtype=torch.float64)
    )
    alone = rand(33, 3000, 3, 3).cumsum(dim=0)
    fit = fit_climatology(examples(system, alone, None, 1, (1, 2)), (1, 2), NOTHING)
    assert fit.differenced is not None
    assert float(fit.differenced.correlation[:, 1:].abs().max()) < 0.1


def test_is_the_same_after_storing(water_fit):
    climatology, window = water_fit
    again = Climatology.from_state(climatology.settings(), climatology.state())
    lags = torch.tensor([0.2, 1.5], dtype=torch.float64)
    assert torch.equal(again.expected(window, lags).mean, climatology.expected(window, lags).mean)
    assert again.config == climatology.config
    state = climatology.state()
    del state["known.clock"]
    with pytest.raises(InputError, match="no stored climatology"):
        Climatology.from_state(climatology.settings(), state)
    settings = climatology.settings() | {"kinds": ["O"]}
    with pytest.raises(InputError, match="shape"):
        Climatology.from_state(settings, climatology.state())


def test_several_configurations_from_one_reading_are_those_fitted_alone():
    system, knots = argon(5), knot_frames(6)
    positions, velocities = langevin(5, 60, 1.0, seed=41)

    def data():
        return examples(system, positions, velocities, 4, knots)

    both = fit_climatologies(data(), knots, [VELOCITY, ClimatologyConfig()])
    alone = fit_climatology(data(), knots, ClimatologyConfig())
    for name, table in alone.state().items():
        assert torch.equal(table, both[1].state()[name])


def test_a_longer_window_is_cut_to_those_of_the_training(water_fit):
    climatology, window = water_fit
    before = window.positions[:1] + 3.0
    longer = replace(
        window,
        positions=torch.cat([before, window.positions]),
        velocities=torch.cat([before, window.velocities]),
    )
    lags = torch.tensor([0.5], dtype=torch.float64)
    assert torch.equal(
        climatology.expected(longer, lags).mean, climatology.expected(window, lags).mean
    )


def test_says_what_it_cannot_do(water_fit):
    climatology, window = water_fit
    lags = torch.tensor([0.1], dtype=torch.float64)
    with pytest.raises(UsageError, match="beyond the horizon of 2 ps"):
        climatology.expected(window, torch.tensor([2.1], dtype=torch.float64))
    with pytest.raises(UsageError, match="reach back"):
        climatology.expected(window, torch.tensor([-0.1], dtype=torch.float64))
    with pytest.raises(InputError, match="kind AR"):
        climatology.expected(window_of(argon(2), torch.zeros(5, 2, 3), torch.zeros(5, 2, 3)), lags)
    with pytest.raises(InputError, match="at least 3 frames"):
        climatology.expected(window.last(2), lags)
    with pytest.raises(InputError, match=r"0\.2 ps apart"):
        climatology.expected(replace(window, frame_ps=0.2), lags)
    with pytest.raises(UsageError, match="at least one training window"):
        fit_climatology([], (1, 2), NOTHING)
    with pytest.raises(UsageError, match="increase from 1"):
        fit_climatology([], (2, 3), NOTHING)
    with pytest.raises(UsageError, match="earlier"):
        ClimatologyConfig(earlier=(1, 1))


def test_knots_are_even_in_the_logarithm_and_hold_both_ends():
    assert knot_frames(1) == (1,)
    assert knot_frames(2) == (1, 2)
    knots = knot_frames(8000)
    assert knots[0] == 1
    assert knots[-1] == 8000
    ratios = np.divide(knots[10:], knots[9:-1])
    assert np.all(abs(ratios - 10 ** (1 / 8)) < 0.08)
    with pytest.raises(UsageError, match="at least 1"):
        knot_frames(0)
