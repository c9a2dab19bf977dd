import math

import pytest
import torch

from undula.errors import UsageError
from undula.motion.baselines.diffusion import Schedule, probability_flow, sigmoid_schedule

SCHEDULE = sigmoid_schedule()


def test_every_step_keeps_the_share_that_its_beta_says():
    alphas = torch.tensor([SCHEDULE.alpha(k) for k in range(1001)], dtype=torch.float64)
    beta = torch.linspace(-8, -4, 1000, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(alphas[1:].square() / alphas[:-1].square(), 1 - beta)
    assert SCHEDULE.alpha(1000) ** 2 == pytest.approx(float((1 - beta).prod()))
    assert SCHEDULE.alpha(1000) ** 2 == pytest.approx(0.0113, abs=1e-4)


@pytest.mark.parametrize("step", [1, 0.3, 17.25, 400, 1000])
def test_shares_of_signal_and_noise_make_one_and_steps_are_found_again(step):
    alpha, sigma = SCHEDULE.alpha(step), SCHEDULE.sigma(step)
    assert alpha**2 + sigma**2 == pytest.approx(1)
    angle = SCHEDULE.angle(step)
    assert math.cos(angle) == pytest.approx(alpha)
    assert math.sin(angle) == pytest.approx(sigma)
    assert SCHEDULE.step_at(angle) == pytest.approx(step)


def test_at_the_start_there_is_no_noise():
    assert SCHEDULE.alpha(0) == 1
    assert SCHEDULE.sigma(0) == 0
    assert SCHEDULE.angle(0) == 0


def of_normal(mean: float, spread: float):
    """Return the exact v where x is normal, and where the flow takes noise."""

    def turning(y, step):
        alpha, sigma = SCHEDULE.alpha(step), SCHEDULE.sigma(step)
        noise = sigma * (y - alpha * mean) / (alpha**2 * spread**2 + sigma**2)
        return alpha * noise - sigma * (y - sigma * noise) / alpha

    def carried(start):
        alpha, sigma = SCHEDULE.alpha(1000), SCHEDULE.sigma(1000)
        width = math.sqrt(alpha**2 * spread**2 + sigma**2)
        return mean + spread * (start - alpha * mean) / width

    return turning, carried


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.7, 0.2), (-0.4, 1.5)])
def test_recovers_a_normal_distribution_that_is_known(mean, spread):
    start = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turning, carried = of_normal(mean, spread)
    found = probability_flow(turning, start, SCHEDULE, 49)
    torch.testing.assert_close(found, carried(start), rtol=0.02, atol=0.01)
    assert float(found.mean()) == pytest.approx(mean, abs=0.12 * abs(mean) + 0.02)
    assert float(found.std()) == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize(
    ("spread", "evaluations", "narrow"),
    [(1.0, 3, 0.0003), (0.5, 11, 0.01), (0.2, 11, 0.025), (0.2, 25, 0.01), (0.05, 11, 0.11)],
)
def test_few_evaluations_draw_nearly_the_right_spread(spread, evaluations, narrow):
    turning, carried = of_normal(0.0, spread)
    start = torch.ones(1, dtype=torch.float64)
    found = float(probability_flow(turning, start, SCHEDULE, evaluations) / carried(start))
    assert found == pytest.approx(1, abs=narrow)


def test_is_of_second_order():
    turning, carried = of_normal(0.5, 0.6)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)

    def error(evaluations):
        found = probability_flow(turning, start, SCHEDULE, evaluations)
        return float((found - carried(start)).abs().max())

    assert 3 < error(9) / error(17) < 6


@pytest.mark.parametrize("asked", [3, 10, 50])
def test_evaluates_as_often_as_asked(asked):
    calls = []

    def turning(y, step):
        calls.append(step)
        return 0 * y

    probability_flow(turning, torch.ones(2), SCHEDULE, asked)
    assert len(calls) == asked
    assert calls == sorted(calls, reverse=True)


def test_refuses_what_is_no_diffusion():
    with pytest.raises(UsageError, match="at least 3 evaluations"):
        probability_flow(lambda y, _: y, torch.ones(1), SCHEDULE, 2)
    with pytest.raises(UsageError, match="at least 1 step"):
        sigmoid_schedule(0)
    with pytest.raises(UsageError, match="should add noise"):
        Schedule(logarithms=(0.0, -1.0, -1.0))
    with pytest.raises(UsageError, match="starts with all"):
        Schedule(logarithms=(-1.0, -2.0))
