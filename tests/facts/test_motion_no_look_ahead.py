"""A forecast of atoms knows its window and nothing later; training knows nothing of the test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.motion.small_systems import ENCODER, LEVELS
from tests.motion.studies.walkers import HORIZON, OBSERVED, WINDOW, walkers

from undula.io.recordings import Recording, Recordings
from undula.learn.checkpoint import load_weights
from undula.learn.progress import SilentProgress
from undula.learn.recipe import FitConfig
from undula.motion.baselines.ito import ItoConfig, ItoSampling
from undula.motion.baselines.ito_training import ItoTraining
from undula.motion.baselines.lg_ode import LGODEConfig
from undula.motion.baselines.lg_ode_forecast import LGODETraining
from undula.motion.baselines.roller import RollerConfig, RollerTraining
from undula.motion.baselines.scinet import SCINetConfig, SCINetTraining
from undula.motion.baselines.trivial import trivial_forecasters
from undula.motion.baselines.wavelet_arima import WaveletArima, WaveletArimaConfig
from undula.motion.catalog import FITTED_KINDS, KINDS
from undula.motion.climatology import knot_frames
from undula.motion.climatology_fit import Example
from undula.motion.drawing import WindowConfig
from undula.motion.evaluation import window_at
from undula.motion.hierarchy import Hierarchy
from undula.motion.model import MotionModelConfig
from undula.motion.training import MotionConfig
from undula.nn.ode.solve import SolverConfig

TRAINED, TEST = ["run0", "run1"], "run2"
BATCH = WindowConfig(observed=WINDOW, near=2, segments=1, times=1, fitted_windows=4)
HIERARCHY = Hierarchy(horizon=HORIZON, strides=(20, 1))
COMMON = {"batch": BATCH, "hierarchy": HIERARCHY, "recordings": TRAINED}
TWO_STEPS = SolverConfig(steps=2)
SETTINGS = {
    "domino": MotionConfig(
        model=MotionModelConfig(
            encoder=ENCODER, levels=replace(LEVELS, horizon=HORIZON, strides=(20, 1))
        ),
        batch=BATCH,
        recordings=TRAINED,
    ),
    "lg-ode": LGODETraining(
        model=LGODEConfig(
            features=8, hidden=8, augment=4, latent=2, oldest=4, cutoff=4.0, solver=TWO_STEPS
        ),
        **COMMON,
    ),
    "roller": RollerTraining(
        model=RollerConfig(stride=3, encoder=replace(ENCODER, oldest=2)), **COMMON
    ),
    "ito": ItoTraining(
        model=ItoConfig(features=8, layers=1, cutoff=4.0, lags=2),
        sampling=ItoSampling(evaluations=3, draws=2),
        **COMMON,
    ),
    "scinet": SCINetTraining(model=SCINetConfig(frames=8, levels=2, kernel=3), **COMMON),
}
FIT = FitConfig(steps=2, evaluate_every=2, checkpoint_every=2)
ARIMA = WaveletArimaConfig(
    observed=16, levels=1, autoregressive=1, moving_average=0, iterations=5, atoms=2
)
LAGS = torch.tensor([1.0, 2.5, 20.0, 40.0])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Recordings:
    return walkers(tmp_path_factory.mktemp("true") / "argon")


def noisy_after(source: Recordings, now: int, names: list[str]) -> Recordings:
    """Return recordings of which some are noise after one frame; altogether for −1."""
    generator = np.random.default_rng(0)

    def spoilt(one: Recording) -> Recording:
        if one.name not in names:
            return one
        positions = np.array(one.positions)
        shape = positions[now + 1 :].shape
        positions[now + 1 :] = 50 * generator.standard_normal(shape).astype(positions.dtype)
        velocities = None if one.velocities is None else np.array(one.velocities)
        if velocities is not None:
            later = velocities[now + 1 :]
            velocities[now + 1 :] = generator.standard_normal(later.shape).astype(later.dtype)
        return replace(one, positions=positions, velocities=velocities)

    return replace(source, recordings=tuple(spoilt(one) for one in source.recordings))


class Untouchable:
    """Stands for frames of a recording that nobody may read."""

    def __init__(self, frames: int) -> None:
        self.shape = (frames, 8, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key):
        raise AssertionError("a test recording was read in training")

    def __array__(self, *arguments, **keywords):
        raise AssertionError("a test recording was read in training")


def guarded(source: Recordings) -> Recordings:
    """Return recordings of which that of the test raises when it is read."""
    guard = source.named(TEST)
    hidden = object.__new__(Recording)
    for name, value in vars(guard).items():
        object.__setattr__(hidden, name, value)
    for name in ("positions", "velocities"):
        object.__setattr__(hidden, name, Untouchable(len(guard)))
    kept = tuple(hidden if one.name == TEST else one for one in source.recordings)
    made = object.__new__(Recordings)
    for name, value in vars(source).items():
        object.__setattr__(made, name, value)
    object.__setattr__(made, "recordings", kept)
    return made


@dataclass(frozen=True)
class Run:
    """A trained model and its folder."""

    folder: Path
    forecaster: object


@pytest.fixture(scope="module", params=sorted(KINDS))
def run(request, source, tmp_path_factory) -> tuple[str, Run]:
    """Train a kind where the recording of the test cannot be read."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    KINDS[request.param].trained(
        guarded(source),
        folder,
        settings=SETTINGS[request.param],
        fit_config=FIT,
        progress=SilentProgress(),
    )
    return request.param, Run(folder, KINDS[request.param].load(folder))


def test_the_guard_guards(source):
    spoilt = noisy_after(source, OBSERVED - 1, [TEST])
    true, noisy = source.named(TEST), spoilt.named(TEST)
    assert np.array_equal(true.positions[:OBSERVED], noisy.positions[:OBSERVED])
    assert np.abs(true.positions[OBSERVED:] - noisy.positions[OBSERVED:]).mean() > 10
    with pytest.raises(AssertionError, match="was read in training"):
        guarded(source).named(TEST).slice(0, 2)


def same_forecasts(forecaster, source: Recordings) -> None:
    """Check that noise after each window leaves its forecast and its samples byte by byte."""
    for now, frames in ((OBSERVED - 1, OBSERVED), (WINDOW + 3, WINDOW)):
        spoilt = noisy_after(source, now, [TEST])
        seen = [window_at(one, one.named(TEST), now, frames) for one in (source, spoilt)]
        lags = LAGS * seen[0].frame_ps
        one, two = (forecaster.forecast(each, lags) for each in seen)
        for name in ("mean", "spread", "velocities"):
            first, second = getattr(one, name), getattr(two, name)
            assert (first is None) == (second is None)
            if first is not None:
                assert first.numpy().tobytes() == second.numpy().tobytes(), name
        drawn = [
            forecaster.samples(each, lags, 2, torch.Generator().manual_seed(1)) for each in seen
        ]
        assert (drawn[0] is None) == (drawn[1] is None)
        if drawn[0] is not None:
            assert drawn[0].numpy().tobytes() == drawn[1].numpy().tobytes()


def test_training_reads_no_recording_of_the_test_and_noise_later_leaves_every_forecast(run, source):
    kind, found = run
    same_forecasts(found.forecaster, source)
    way = KINDS[kind].other_way
    if way is not None:
        same_forecasts(way.forecaster(found.forecaster, {"domino": 0, "ito": 20}[kind]), source)


def test_everything_that_is_fitted_comes_from_the_recordings_of_the_training(run, source, tmp_path):
    kind, found = run
    KINDS[kind].trained(
        noisy_after(source, -1, [TEST]),
        tmp_path,
        settings=SETTINGS[kind],
        fit_config=FIT,
        progress=SilentProgress(),
    )
    before, after = (
        load_weights(folder / "weights.safetensors")[0] for folder in (found.folder, tmp_path)
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.numpy().tobytes() == after[name].numpy().tobytes(), name


def test_noise_in_training_changes_what_is_fitted(source, tmp_path):
    found = []
    for name, data in (("true", source), ("noisy", noisy_after(source, -1, TRAINED))):
        KINDS["scinet"].trained(
            data,
            tmp_path / name,
            settings=SETTINGS["scinet"],
            fit_config=FIT,
            progress=SilentProgress(),
        )
        found.append(load_weights(tmp_path / name / "weights.safetensors")[0])
    assert not torch.equal(found[0]["scales.displacement"], found[1]["scales.displacement"])


@pytest.mark.parametrize("kind", sorted(FITTED_KINDS))
def test_noise_later_leaves_what_is_fitted_in_each_window(kind, source):
    pytest.importorskip("pywt", reason="wavelets need PyWavelets")
    pytest.importorskip("statsmodels", reason="ARIMA needs statsmodels")
    forecaster = FITTED_KINDS[kind].make(ARIMA)
    assert isinstance(forecaster, WaveletArima)
    same_forecasts(forecaster, source)


def test_noise_later_leaves_the_trivial_rows(source):
    knots = knot_frames(HORIZON)
    examples = []
    for name in TRAINED:
        recording = source.named(name)
        for now in (WINDOW, WINDOW + 10):
            future = torch.from_numpy(np.array(recording.positions)[[now + k for k in knots]])
            window = window_at(source, recording, now, WINDOW)
            examples.append(Example(window=window, future=future))
    for row in trivial_forecasters(examples, knots, None):
        same_forecasts(row, source)


def test_every_kind_of_the_catalog_is_guarded():
    assert SETTINGS.keys() == KINDS.keys()
