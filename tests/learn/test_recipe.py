import math

import pytest

from undula.errors import UsageError
from undula.learn.recipe import FitConfig, batch_seed, learning_rate


def test_the_rate_has_its_closed_form():
    cosine = FitConfig(steps=110, learning_rate=1.0, warmup_steps=10)
    assert [learning_rate(cosine, step) for step in (0, 9, 10, 60)] == pytest.approx(
        [0.1, 1.0, 1.0, 0.5]
    )
    assert 0 < learning_rate(cosine, 109) < 1e-3
    constant = FitConfig(steps=10, learning_rate=0.3, schedule="constant")
    assert {learning_rate(constant, step) for step in range(10)} == {0.3}
    halving = FitConfig(steps=4000, learning_rate=1.0, schedule="halving", halve_every=200)
    assert learning_rate(halving, 199) == 1.0
    assert learning_rate(halving, 3999) == 0.5**19


def test_batch_seeds_differ_in_every_argument():
    seeds = {
        batch_seed(a, b, c, d)
        for a in range(4)
        for b in range(4)
        for c in range(4)
        for d in range(4)
    }
    assert len(seeds) == 4**4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"learning_rate": math.nan}, "learning_rate must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"schedule": "halving"}, "halve_every"),
        ({"halve_every": 3}, "halve_every"),
        ({"keep": "best"}, "monitor"),
        ({"monitor": "error"}, "monitor"),
    ],
)
def test_refuses_what_cannot_be_meant(changes, words):
    with pytest.raises(UsageError, match=words):
        FitConfig(**{"steps": 10, **changes})
