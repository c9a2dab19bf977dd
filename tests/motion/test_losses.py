import math
from dataclasses import replace

import pytest
import torch

from undula.errors import UsageError
from undula.motion.encoder import Posterior
from undula.motion.losses import MotionLossConfig, Truth, motion_loss, surprise
from undula.motion.model import Base, Outcome, Prediction

TIMES, WINDOWS, ATOMS = 3, 2, 5


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def base() -> Base:
    return Base(
        mean=drawn(TIMES, WINDOWS, ATOMS, 3),
        spread=drawn(TIMES, WINDOWS, ATOMS, seed=1).exp(),
        velocities=drawn(TIMES, WINDOWS, ATOMS, 3, seed=2),
        speed=drawn(ATOMS, seed=3).exp(),
    )


def prediction(seed) -> Prediction:
    return Prediction(
        mean=drawn(TIMES, WINDOWS, ATOMS, 3, seed=10 + seed),
        spread=drawn(TIMES, WINDOWS, ATOMS, seed=20 + seed).exp(),
        velocities=drawn(TIMES, WINDOWS, ATOMS, 3, seed=30 + seed),
        parts=torch.zeros(1, TIMES, WINDOWS, ATOMS, 3, dtype=torch.float64),
    )


def outcome(levels=3) -> Outcome:
    rows = WINDOWS * ATOMS
    posterior = Posterior(
        scalars=drawn(rows, 2, seed=4),
        scalar_widths=drawn(rows, 2, seed=5).exp(),
        vectors=drawn(rows, 3, 2, seed=6),
        vector_widths=drawn(rows, 2, seed=7).exp(),
        certain_scalars=drawn(rows, 1),
        certain_vectors=drawn(rows, 3, 1),
    )
    return Outcome(
        predictions=tuple(prediction(level) for level in range(levels)),
        posterior=posterior,
        evaluations=(0,) * levels,
    )


def truth() -> Truth:
    every = torch.ones(TIMES, WINDOWS, dtype=torch.bool)
    return Truth(
        positions=drawn(TIMES, WINDOWS, ATOMS, 3, seed=8),
        known=every,
        velocities=drawn(TIMES, WINDOWS, ATOMS, 3, seed=9),
        velocities_known=every,
    )


PLAIN = MotionLossConfig(velocities=0.0, divergence=0.0)


def loss(config, seen=None, step=10**6, levels=3):
    return motion_loss(outcome(levels), base(), truth() if seen is None else seen, config, step)[0]


def test_surprise_is_minus_the_log_probability_per_coordinate_but_for_what_nobody_can_change():
    found = surprise(prediction(0), base(), truth())
    law = torch.distributions.Normal(prediction(0).mean, prediction(0).spread[..., None])
    minus_log = -law.log_prob(truth().positions).mean(dim=(-1, -2))
    constant = base().spread.log().mean(dim=-1) + math.log(2 * math.pi) / 2
    torch.testing.assert_close(found, minus_log - constant)


def test_the_surprise_of_a_true_law_is_one_half_whatever_its_spread():
    nowhere = torch.zeros(1, 1, 20_000, 3, dtype=torch.float64)
    wide = torch.full((1, 1, 20_000), 7.0, dtype=torch.float64)
    speed = torch.ones(20_000, dtype=torch.float64)
    linear = Base(mean=nowhere, spread=wide, velocities=nowhere, speed=speed)
    own = Prediction(mean=nowhere, spread=wide, velocities=nowhere, parts=nowhere[None])
    every = torch.ones(1, 1, dtype=torch.bool)
    came = Truth(
        positions=7 * drawn(1, 1, 20_000, 3),
        known=every,
        velocities=nowhere,
        velocities_known=every,
    )
    assert float(surprise(own, linear, came)) == pytest.approx(0.5, abs=0.02)


def test_weights_sum_to_one_and_are_those_asked_for_once_all_levels_have_joined():
    config = MotionLossConfig(levels=(0.1, 0.2, 0.7), stage_steps=100)
    assert config.weights(3, 10**6) == pytest.approx([0.1, 0.2, 0.7])
    assert config.weights(1, 0) == [1]
    assert config.weights(2, 10**6) == pytest.approx([1 / 3, 2 / 3])
    assert config.weights(4, 10**6) == pytest.approx([0.05, 0.1, 0.35, 0.5])
    for step in (0, 99, 100, 199, 200, 300):
        assert sum(config.weights(3, step)) == pytest.approx(1)


def test_levels_join_from_coarse_to_fine():
    config = MotionLossConfig(levels=(0.1, 0.2, 0.7), stage_steps=100)
    assert config.weights(3, 0) == [1, 0, 0]
    assert config.weights(3, 99) == [1, 0, 0]
    assert config.weights(3, 100) == pytest.approx([0.125, 0.875, 0])
    assert config.weights(3, 200) == pytest.approx([0.1, 0.2, 0.7])
    assert replace(config, stage_steps=0).weights(3, 0) == pytest.approx([0.1, 0.2, 0.7])


def test_only_weights_of_zero_leave_the_finest_level():
    assert MotionLossConfig(levels=(0.0, 0.0)).weights(2, 0) == [0, 1]


def test_the_loss_is_the_weighted_sum_over_levels():
    each = [surprise(prediction(level), base(), truth()).mean() for level in range(3)]
    expected = 0.1 * each[0] + 0.2 * each[1] + 0.7 * each[2]
    torch.testing.assert_close(loss(PLAIN), expected)


def test_velocities_count_by_their_squares_in_units_of_the_usual_speed():
    error = (truth().velocities - prediction(0).velocities) / base().speed[:, None]
    added = loss(replace(PLAIN, velocities=0.3), levels=1) - loss(PLAIN, levels=1)
    torch.testing.assert_close(added, 0.3 * error.square().mean() / 2)


def test_the_divergence_rises_over_the_warm_up_and_counts_per_coordinate():
    config = replace(PLAIN, divergence=2.0, warmup_steps=10)
    full = 2 * outcome().posterior.divergence() / (3 * TIMES)
    for step, share in ((0, 0.1), (4, 0.5), (9, 1.0), (1000, 1.0)):
        torch.testing.assert_close(loss(config, step=step) - loss(PLAIN), share * full)
    torch.testing.assert_close(loss(replace(config, warmup_steps=0), step=0) - loss(PLAIN), full)


def test_targets_that_are_not_known_do_not_count():
    known = truth().known.clone()
    known[1, 0] = known[2] = False
    part = replace(truth(), known=known)
    wrong = part.positions.clone()
    wrong[~known] = 1e6
    assert torch.equal(loss(PLAIN, replace(part, positions=wrong)), loss(PLAIN, part))
    expected = surprise(prediction(0), base(), truth())[known].mean()
    torch.testing.assert_close(loss(PLAIN, part, levels=1), expected)
    nothing = replace(truth(), known=torch.zeros_like(known))
    assert float(loss(PLAIN, nothing)) == 0


def test_velocities_that_are_not_known_do_not_count():
    config = replace(PLAIN, velocities=1.0)
    known = truth().known.clone()
    known[1:] = False
    part = replace(truth(), velocities_known=known)
    wrong = part.velocities.clone()
    wrong[~known] = 1e6
    assert torch.equal(loss(config, replace(part, velocities=wrong)), loss(config, part))
    nothing = replace(truth(), velocities_known=torch.zeros_like(known))
    torch.testing.assert_close(loss(config, nothing), loss(PLAIN))


def test_parts_are_told_by_level():
    _, parts = motion_loss(outcome(), base(), truth(), MotionLossConfig(stage_steps=5), 5)
    assert set(parts) == {
        "positions_0",
        "positions_1",
        "velocities_0",
        "velocities_1",
        "divergence",
    }


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"levels": ()}, "levels"),
        ({"levels": (-0.1, 1.0)}, "levels"),
        ({"stage_steps": -1}, "stage_steps"),
        ({"velocities": -0.5}, "velocities"),
        ({"divergence": math.nan}, "divergence"),
        ({"warmup_steps": -1}, "warmup_steps"),
    ],
    ids=str,
)
def test_refuses_weights_that_mean_nothing(changes, key):
    with pytest.raises(UsageError, match=rf"loss\.{key}"):
        MotionLossConfig(**changes)
