import os
import signal
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import argon, path, recorded
from tests.motion.test_task import BATCH, MODEL

from undula.errors import UsageError
from undula.io.recordings import RecordedFrames
from undula.learn.interruption import Interrupted
from undula.learn.progress import SilentProgress
from undula.learn.recipe import FitConfig
from undula.motion.losses import MotionLossConfig
from undula.motion.trained import TrainedMotion
from undula.motion.training import train_motion
from undula.motion.windows import Window

FIT = FitConfig(
    steps=6, evaluate_every=3, checkpoint_every=2, record_every=2, ema_decay=0.9, clip_norm=1.0
)


class Stopping(SilentProgress):
    """Sends a signal after a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def advanced(self, step: int, loss: float) -> None:
        if step == self.at:
            signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    runs = [path(argon(6), 80, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    frames = [RecordedFrames(positions=x, velocities=v, frame_ps=0.1) for x, v in runs]
    return recorded(tmp_path_factory.mktemp("argon"), argon(6), frames)


def train(recordings, folder, progress=None, names=(), **changes):
    return train_motion(
        recordings,
        folder,
        names=names,
        model=MODEL,
        loss=MotionLossConfig(),
        batch=BATCH,
        fit_config=replace(FIT, **changes),
        progress=progress or SilentProgress(),
    )


@pytest.mark.parametrize("at", [1, 4])
def test_a_stopped_and_resumed_training_ends_with_the_same_bytes(recordings, tmp_path, at):
    train(recordings, tmp_path / "whole")
    with pytest.raises(Interrupted, match="was stopped at step"):
        train(recordings, tmp_path / "parts", Stopping(at))
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    train(recordings, tmp_path / "parts")
    for name in ("weights.safetensors", "history.json"):
        whole, parts = ((tmp_path / one / name).read_bytes() for one in ("whole", "parts"))
        assert whole == parts


def test_leaves_a_forecaster_behind(recordings, tmp_path):
    made = train(recordings, tmp_path, names=["run_1"])
    again = TrainedMotion.load(tmp_path)
    positions, velocities, box = recordings.named("run_0").slice(10, 30)
    seen = Window(
        system=recordings.system, positions=positions, velocities=velocities, box=box, frame_ps=0.1
    )
    lags = torch.tensor([0.1, 0.7, 1.6])
    one, two = (each.forecast(seen, lags) for each in (made, again))
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.spread, two.spread)
    assert again.provenance["recordings"] == ["run_1"]
    assert again.provenance["steps"] == 6
    assert again.provenance["data"]["sha256"] == recordings.sha256
    assert set(again.provenance["measures"]) >= {"surprise", "skill_near"}


def test_another_seed_gives_other_weights(recordings, tmp_path):
    one, two = (train(recordings, tmp_path / str(seed), seed=seed, steps=1) for seed in (0, 1))
    states = [made.model.state_dict() for made in (one, two)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_refuses_a_recording_named_twice(recordings, tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        train(recordings, tmp_path, names=["run_0", "run_0"])
