"""Two controls that show whether a model uses time: no time at all, and times of other frames."""

from dataclasses import replace

import pytest
import torch
from tests.surface.mixtures import LOCAL, PAPER, fresh, stirred

from undula.errors import InputError, UsageError
from undula.surface.experts import PointRows
from undula.surface.losses import MixtureLossConfig
from undula.surface.mixture import MixtureModelConfig
from undula.surface.mixture_task import MixtureBatchConfig, MixtureTask, validation_systems
from undula.surface.time import TimeConfig, linear_time, relaxation, time_features

TIMELESS = TimeConfig(kind="none")
BATCH = MixtureBatchConfig(proteins=1, frames=6, points=64, samples=2, validation=0)


def test_features_of_time_are_those_of_the_kind():
    lag = torch.tensor([0.0, 5.0, 100.0])
    linear = time_features(TimeConfig(kind="linear"), lag, 1.0, 100.0)
    torch.testing.assert_close(linear, linear_time(lag, 100.0))
    relaxed = time_features(TimeConfig(scales=2, longest=0.5), lag, 1.0, 100.0)
    torch.testing.assert_close(relaxed, relaxation(lag, 1.0, 50.0, 2))
    assert time_features(TIMELESS, lag, 1.0, 100.0).shape == (3, TIMELESS.size) == (3, 0)


def answers(config: MixtureModelConfig, dataset, lags):
    """Return the field of a model with random weights at fixed points, one row per lag."""
    task = MixtureTask([dataset], LOCAL, MixtureLossConfig(), BATCH)
    model = stirred(config)
    local = task.local(0)[:50]
    keys = torch.zeros(1, dtype=torch.long)
    encoding = model.encode(task.cloud(0), torch.tensor([10.0]), keys=keys)
    found = []
    for lag in lags:
        rows = PointRows(
            torch.zeros(50, dtype=torch.long),
            local.points.float(),
            local.distance,
            local.features,
        )
        found.append(model.field(encoding, keys, torch.tensor([lag]), rows)[0])
    return torch.stack(found).detach(), local.distance


def test_a_model_without_time_says_the_same_at_all_later_times_and_the_first_frame_at_first(
    dataset,
):
    found, first = answers(replace(LOCAL, time=TIMELESS), dataset, [0.0, 0.01, 5.0, 1e4])
    torch.testing.assert_close(found[0], first)
    assert (found[1] - first).abs().max() > 0.1
    assert torch.equal(found[1], found[2])
    assert torch.equal(found[1], found[3])
    with_time, _ = answers(LOCAL, dataset, [0.01, 5.0, 1e4])
    assert (with_time[1] - with_time[2]).abs().max() > 1e-3


def test_paper_experts_without_time_are_static_too(dataset):
    found, _ = answers(replace(PAPER, time=TIMELESS), dataset, [0.0, 5.0, 1e4])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_a_model_without_time_has_no_parameters_for_it():
    model = fresh(replace(LOCAL, time=TIMELESS))
    assert model.onset is None
    assert model.config.condition == LOCAL.condition - LOCAL.time.size


def test_shuffled_times_are_the_true_ones_in_another_order_and_the_first_frame_keeps_its_own(
    dataset,
):
    batch = replace(BATCH, shuffled_times=True)
    task = MixtureTask([dataset], LOCAL, MixtureLossConfig(), batch, seed=3)
    (trajectory,) = task.trajectories
    told = [task.told_ps[0, frame] for frame in range(1, len(trajectory))]
    assert sorted(told) == trajectory.times_ps[1:].tolist()
    assert told != trajectory.times_ps[1:].tolist()
    assert (0, 0) not in task.told_ps
    again = MixtureTask([dataset], LOCAL, MixtureLossConfig(), batch, seed=3)
    assert again.told_ps == task.told_ps
    other = MixtureTask([dataset], LOCAL, MixtureLossConfig(), batch, seed=4)
    assert other.told_ps != task.told_ps


def test_a_batch_is_told_the_shuffled_times_of_the_same_frames(dataset):
    plain = MixtureTask([dataset], LOCAL, MixtureLossConfig(), BATCH, seed=3)
    batch = replace(BATCH, shuffled_times=True)
    shuffled = MixtureTask([dataset], LOCAL, MixtureLossConfig(), batch, seed=3)
    one, other = (task.batch(0, torch.Generator().manual_seed(0)) for task in (plain, shuffled))
    assert torch.equal(one.distance, other.distance)
    times = plain.trajectories[0].times_ps.tolist()
    expected = [shuffled.told_ps[0, times.index(lag)] for lag in one.lag_ps.tolist()]
    assert other.lag_ps.tolist() == pytest.approx(expected)


def test_validation_keeps_the_true_times(dataset):
    plain = MixtureTask([dataset], LOCAL, MixtureLossConfig(), BATCH, seed=3)
    batch = replace(BATCH, shuffled_times=True)
    shuffled = MixtureTask([dataset], LOCAL, MixtureLossConfig(), batch, seed=3)
    shuffled.module.load_state_dict(plain.module.state_dict())
    assert shuffled.evaluate() == plain.evaluate()


def test_validation_proteins_may_be_named():
    names = ["a", "b", "c", "d", "e"]
    assert validation_systems([0, 1, 2, 4], names, ["e", "b"]) == {1, 4}
    assert len(validation_systems([0, 1, 2, 3, 4], names, 2)) == 2
    with pytest.raises(InputError, match="no protein d to keep"):
        validation_systems([0, 1, 2], names, ["d"])
    assert MixtureBatchConfig(validation=["a"]).validation == ("a",)
    with pytest.raises(UsageError, match="a number or a list"):
        MixtureBatchConfig(validation="a")


def test_validation_may_not_take_every_protein(dataset):
    batch = replace(BATCH, validation=[dataset.structure.name])
    with pytest.raises(InputError, match="none is left"):
        MixtureTask([dataset], LOCAL, MixtureLossConfig(), batch)
