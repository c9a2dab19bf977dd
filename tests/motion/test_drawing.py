from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import argon, path, recorded
from tests.motion.test_task import BATCH, MODEL

from undula.errors import InputError, UsageError
from undula.io.recordings import RecordedFrames
from undula.motion.drawing import Drawing, skills
from undula.motion.hierarchy import Hierarchy
from undula.motion.losses import MotionLossConfig
from undula.motion.task import MotionTask

HIERARCHY = Hierarchy(horizon=16, strides=(4, 1))
NAMES = ["run_0", "run_1"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    runs = [path(argon(6), 80, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    frames = [RecordedFrames(positions=x, velocities=v[:60], frame_ps=0.1) for x, v in runs]
    return recorded(tmp_path_factory.mktemp("argon"), argon(6), frames)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def assert_same(drawn, batch):
    assert torch.equal(drawn.lags, batch.plan.lags)
    now = torch.stack([window.now for window in drawn.windows])
    assert torch.equal(now, batch.seen.positions[:, 0])
    hidden = [float(window.velocities is not None) for window in drawn.windows]
    assert hidden == batch.seen.recorded.tolist()
    for name, value in vars(batch.truth).items():
        assert torch.equal(getattr(drawn.truth, name), value)


def test_draws_what_domino_is_trained_and_validated_on(recordings):
    task = MotionTask(recordings, NAMES, MODEL, MotionLossConfig(), BATCH)
    drawing = Drawing(recordings, NAMES, BATCH, HIERARCHY)
    for seed in range(20):
        assert_same(drawing.drawn(seeded(seed)), task.batch(0, seeded(seed)))
    checks = [task._prepared(drawn) for drawn in task.drawing.validated()]
    for drawn, batch in zip(drawing.validated(), checks, strict=True):
        assert_same(drawn, batch)


def test_lags_can_be_drawn_in_another_way_from_the_same_windows(recordings):
    drawing = Drawing(recordings, NAMES, BATCH, HIERARCHY)
    usual, other = (
        drawing.drawn(seeded(3), lags) for lags in (None, lambda reach, _: torch.tensor([1.0]))
    )
    assert other.lags.tolist() == [1.0]
    for one, two in zip(usual.windows, other.windows, strict=True):
        assert torch.equal(one.positions, two.positions)


def test_the_first_frames_of_coarser_segments_are_drawn_more_often_than_others(recordings):
    batch = replace(BATCH, observed=2, near=1, segments=1, times=2)
    drawing = Drawing(recordings, NAMES, batch, Hierarchy(horizon=60, strides=(30, 3, 1)))
    drawn = [drawing._lags(60, seeded(seed)).tolist() for seed in range(400)]
    after = [any(30 <= lag < 33 for lag in lags) for lags in drawn]
    at = [30.0 in lags for lags in drawn]
    assert sum(after) / 400 > 0.05  # evenly in the logarithm it would be .024
    assert sum(at) > 0.3 * sum(after)
    assert all(1 <= lag <= 60 for lags in drawn for lag in lags)


def test_fitting_windows_are_training_windows_with_their_futures(recordings):
    drawing = Drawing(recordings, NAMES, BATCH, HIERARCHY)
    examples = list(drawing.fitting([1, 16]))
    assert len(examples) == 2 * BATCH.fitted_windows
    positions = torch.from_numpy(recordings.named("run_0").positions[:].copy())
    [now] = (positions == examples[0].window.now).all(dim=(1, 2)).nonzero()[:, 0].tolist()
    assert torch.equal(examples[0].future, positions[[now + 1, now + 16]])
    with pytest.raises(InputError, match="horizon of 100"):
        list(drawing.fitting([100]))


def test_refuses_no_recording_and_one_named_twice(recordings):
    for names, message in (([], "at least one"), (["run_0", "run_0"], "named twice")):
        with pytest.raises(UsageError, match=message):
            Drawing(recordings, names, BATCH, HIERARCHY)
    with pytest.raises(InputError, match="too few"):
        Drawing(recordings, NAMES, replace(BATCH, observed=79), HIERARCHY)


def test_skill_is_what_is_gained_over_the_reference_in_each_range():
    lags = torch.tensor([1.0, 2, 10, 11, 200])
    found = skills(lags, torch.tensor([9.0, 1, 1, 3, 4]), torch.tensor([1.0, 2, 4, 3, 2]))
    assert found == pytest.approx({"skill_near": 0.625, "skill_middle": 0.0, "skill_far": -1.0})
