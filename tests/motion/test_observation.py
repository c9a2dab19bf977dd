from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import FRAME_PS, argon, chain, path, waters, window

from undula.errors import InputError
from undula.motion.observation import (
    Usual,
    fitted_usual,
    mean_velocity,
    observation,
    velocities_of,
)
from undula.motion.windows import Window

AGES = (0, 1, 4)
NONE = torch.zeros(12, dtype=torch.long)


def usual(windows, kinds=NONE, count=1, ages=AGES[1:]):
    return fitted_usual(windows, kinds, count, ages)


def flown(velocity, atoms=3, frames=6):
    time = FRAME_PS * torch.arange(frames, dtype=torch.float64)[:, None, None]
    start = 5 * torch.arange(3.0 * atoms, dtype=torch.float64).reshape(atoms, 3)
    return Window(
        system=argon(atoms),
        positions=start + time * velocity,
        velocities=None,
        box=None,
        frame_ps=FRAME_PS,
    )


def test_velocities_are_those_recorded_or_else_differences_to_the_frame_before():
    seen = window(argon(12))
    assert torch.equal(velocities_of(seen, AGES), seen.velocities[[-1, -2, -5]])
    differenced = velocities_of(replace(seen, velocities=None), AGES)
    expected = (seen.positions[[-1, -2, -5]] - seen.positions[[-2, -3, -6]]) / FRAME_PS
    torch.testing.assert_close(differenced, expected)


def test_the_oldest_frame_has_the_difference_ahead_and_a_single_frame_none():
    velocity = torch.tensor([[1.0, 0, -2], [0, 3, 0], [0, 0, 0]], dtype=torch.float64)
    seen = flown(velocity)
    torch.testing.assert_close(velocities_of(seen, [0, 5]), velocity.expand(2, 3, 3))
    assert not velocities_of(seen.last(1), [0]).any()
    assert not mean_velocity(seen.last(1)).any()


def test_the_mean_velocity_is_that_of_the_centre_of_mass():
    seen = window(waters(2))
    weights = seen.system.masses.double() / seen.system.masses.sum()
    middle = torch.einsum("a,fax->fx", weights, seen.positions)
    expected = (middle[-1] - middle[0]) / (FRAME_PS * (len(seen) - 1))
    torch.testing.assert_close(mean_velocity(seen), expected)


def test_what_is_usual_of_atoms_that_fly_straight_is_that_they_do():
    velocity = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    seen = flown(velocity)
    found = usual([seen], torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found.response[0], FRAME_PS * torch.tensor(AGES[1:]).float())
    assert float(found.spread.max()) < 1e-5
    assert float(found.speed) == pytest.approx(float(velocity.square().mean().sqrt()))
    back = 2.5 * FRAME_PS
    assert float(found.reach) == pytest.approx(float(found.speed) * back)


def test_inputs_are_of_order_one_on_the_windows_they_were_fitted_on():
    seen = [window(argon(12), seed) for seed in range(6)]
    found = observation(seen, NONE, usual(seen), AGES)
    assert found.vectors.shape == (6, 3, 12, 3, 4)
    sizes = found.vectors.square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(sizes[0, 0], torch.ones((), dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(sizes[1:, 1], torch.ones(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(sizes[:, 2], torch.ones(3).double(), atol=1e-5, rtol=0)
    assert not found.vectors[:, 0, ..., 1].any()


def test_every_kind_has_its_own_units():
    runs = [window(waters(3), seed) for seed in range(4)]
    kinds = torch.tensor([0, 1, 1] * 3)
    together = usual(runs, kinds, 2)
    light = torch.arange(9)[kinds == 1]
    only = [
        Window(
            system=argon(6),
            positions=one.positions[:, light],
            velocities=one.velocities[:, light],
            box=None,
            frame_ps=FRAME_PS,
        )
        for one in runs
    ]
    alone = usual(only, torch.zeros(6, dtype=torch.long))
    for name in ("response", "spread", "speed", "reach"):
        torch.testing.assert_close(getattr(together, name)[1:], getattr(alone, name))


def test_frames_at_rest_do_not_divide_by_zero():
    still = flown(torch.zeros(3, 3, dtype=torch.float64))
    kinds = torch.zeros(3, dtype=torch.long)
    seen = observation([still], kinds, usual([still], kinds), AGES)
    assert not seen.vectors.any()


def test_hidden_velocities_and_missing_charges_are_told_apart():
    seen = window(chain(4))
    kinds = torch.zeros(4, dtype=torch.long)
    scale = usual([seen], kinds)
    hidden = replace(seen, velocities=None)
    assert observation([seen, hidden], kinds, scale, AGES).recorded.tolist() == [1, 0]
    assert not observation([seen], kinds, scale, AGES).charges.any()
    charges = torch.tensor([0.5, -0.5, 0.25, 0])
    charged = replace(seen, system=replace(chain(4), charges=charges))
    assert observation([charged], kinds, scale, AGES).charges.tolist() == charges.tolist()


def test_a_drifting_observer_changes_velocities_and_drift_and_nothing_else():
    positions, velocities = path(argon(12), 12, torch.Generator().manual_seed(1))
    drift = torch.tensor([2.0, 0, -1], dtype=torch.float64)
    time = FRAME_PS * torch.arange(12, dtype=torch.float64)[:, None, None]
    still = window(argon(12), 1)
    other = replace(still, positions=positions + time * drift, velocities=velocities + drift)
    scale = usual([still])
    one, two = (observation([seen], NONE, scale, AGES).vectors for seen in (still, other))
    expected = (drift / scale.speed).expand(1, 3, 12, 3)
    for number in (0, 3):
        torch.testing.assert_close((two - one)[..., number], expected)


def test_what_was_stored_comes_back_and_pieces_of_it_do_not():
    found = usual([window(argon(12))])
    again = Usual.from_state([1, 4], found.state())
    for name, value in found.state().items():
        assert torch.equal(getattr(again, name), value)
    state = found.state()
    with pytest.raises(InputError, match="do not fit"):
        Usual.from_state([1], state)
    del state["reach"]
    with pytest.raises(InputError, match="incomplete"):
        Usual.from_state([1, 4], state)
