"""How much of a forecast's deviation validation lets stand."""

from dataclasses import replace

import pytest
import torch

from undula.errors import InputError, UsageError
from undula.motion.losses import Truth
from undula.motion.model import Base, Prediction
from undula.motion.recalibration import Recalibration, fitted_recalibration

KNOTS = (1, 10, 100)
SHAPE = (3, 2, 400, 3)


def drawn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(share, size, *, reaches=None):
    """Make a truth that follows a share of the deviation at each knot, with errors of a size."""
    share, size = (torch.tensor(one, dtype=torch.float64) for one in (share, size))
    deviation, mean = drawn(1), drawn(2)
    spread = torch.ones(SHAPE[:3], dtype=torch.float64)
    base = Base(mean=mean, spread=spread, velocities=drawn(3), speed=torch.ones(400))
    prediction = Prediction(
        mean=mean + deviation,
        spread=spread,
        velocities=base.velocities + deviation,
        parts=deviation[None],
    )
    known = torch.ones(SHAPE[:2], dtype=torch.bool)
    positions = mean + share[:, None, None, None] * deviation + size[:, None, None, None] * drawn(4)
    if reaches is not None:
        known[reaches:] = False
        positions[reaches:] = 1e6
    truth = Truth(
        positions=positions,
        known=known,
        velocities=drawn(5),
        velocities_known=torch.zeros_like(known),
    )
    return 0, (prediction,), base, truth


def test_finds_how_much_of_the_deviation_comes_true_and_how_wide_errors_are():
    found = fitted_recalibration([case([1.0, 0.5, 0.0], [0.5, 1.0, 2.0])], KNOTS)
    torch.testing.assert_close(
        found.amplitude, torch.tensor([[1.0, 0.5, 0.0]]), atol=0.04, rtol=0, check_dtype=False
    )
    torch.testing.assert_close(
        found.spread, torch.tensor([[0.5, 1.0, 2.0]]), atol=0, rtol=0.05, check_dtype=False
    )


def test_a_deviation_that_points_the_wrong_way_or_is_too_short_is_not_turned_or_stretched():
    found = fitted_recalibration([case([-1.0, 3.0, 1.0], [0.1, 0.1, 0.1])], KNOTS)
    assert found.amplitude[0, 0] == 0
    assert found.amplitude[0, 1] == 1


def test_believes_only_what_all_groups_agree_on():
    helps, harms = case([0.9, 0.9, 0.9], [0.1, 0.1, 0.1]), case([0.9, -0.9, 0.9], [0.1, 0.1, 0.1])
    cases = [(group, *(harms if group == 3 else helps)[1:]) for group in range(4)]
    found = fitted_recalibration(cases, KNOTS).amplitude[0]
    assert found[1] == 0
    torch.testing.assert_close(found[::2], torch.tensor([0.9, 0.9]), atol=0.03, rtol=0)


def test_windows_that_do_not_reach_so_far_do_not_count():
    found = fitted_recalibration([case([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], reaches=2)], KNOTS)
    assert found.spread[0, :2].sub(1).abs().max() < 0.05
    assert float(found.spread[0, 2]) == 1
    assert float(found.amplitude[0, 2]) == 0


def test_applied_to_its_own_case_leaves_the_least_square_error():
    _, some, base, truth = case([0.3, 0.3, 0.3], [1.0, 1.0, 1.0])
    found = fitted_recalibration([(0, some, base, truth)], KNOTS)
    lags = torch.tensor(KNOTS, dtype=torch.float64)
    better = found.applied(some[0], base, lags, -1)

    def error(mean):
        return float((truth.positions - mean).square().mean())

    assert error(better.mean) < min(error(base.mean), error(some[0].mean))
    torch.testing.assert_close(better.parts[0], better.mean - base.mean)


def test_an_aligned_molecule_is_drawn_to_its_mean_structure_as_far_as_that_helps():
    _, some, base, truth = case([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    reference = drawn(7)[0, 0]
    share = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)[:, None, None, None]
    towards = base.mean + share * (reference - base.mean)
    truth = replace(truth, positions=towards)
    found = fitted_recalibration([(0, some, base, truth)], KNOTS, reference)
    torch.testing.assert_close(found.pull[0], share[:, 0, 0, 0].float(), atol=1e-4, rtol=0)
    lags = torch.tensor(KNOTS, dtype=torch.float64)
    better = found.applied(some[0], base, lags, 0, reference)
    torch.testing.assert_close(better.mean, towards, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        found.pulled(base.mean, reference, KNOTS), towards, atol=1e-3, rtol=0
    )


def test_beyond_the_reach_of_validation_the_mean_structure_draws_as_it_did_last():
    _, some, base, truth = case([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], reaches=2)
    reference = drawn(7)[0, 0]
    positions = truth.positions.clone()
    positions[:2] = base.mean[:2] + 0.6 * (reference - base.mean[:2])
    found = fitted_recalibration(
        [(0, some, base, replace(truth, positions=positions))], KNOTS, reference
    )
    torch.testing.assert_close(found.pull[0], torch.full((3,), 0.6), atol=1e-4, rtol=0)


def test_factors_are_linear_in_the_logarithm_and_constant_outside():
    found = Recalibration(
        knots=(1, 100),
        amplitude=torch.tensor([[1.0, 0.0]]),
        spread=torch.tensor([[1.0, 2.0]]),
        pull=torch.zeros(1, 2),
    )
    _, (prediction,), base, _ = case([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    lags = torch.tensor([0.2, 10.0, 1e4], dtype=torch.float64)
    changed = found.applied(prediction, base, lags, 0)
    factor = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    wanted = base.mean + factor[:, None, None, None] * (prediction.mean - base.mean)
    torch.testing.assert_close(changed.mean, wanted)
    wider = torch.tensor([1.0, 1.5, 2.0], dtype=torch.float64)
    torch.testing.assert_close(changed.spread, prediction.spread * wider[:, None, None])


def test_refuses_what_cannot_be_meant():
    with pytest.raises(UsageError, match="at least one"):
        fitted_recalibration([], KNOTS)
    with pytest.raises(InputError, match="each of its knots"):
        Recalibration(
            knots=KNOTS,
            amplitude=torch.ones(1, 2),
            spread=torch.ones(1, 2),
            pull=torch.ones(1, 2),
        )
