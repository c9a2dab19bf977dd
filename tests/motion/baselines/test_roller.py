import os
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import ENCODER, argon, chain, moved, path, recorded, waters, window

from undula.errors import InputError, UsageError
from undula.io.recordings import RecordedFrames
from undula.learn.progress import SilentProgress
from undula.learn.recipe import FitConfig
from undula.learn.task import Task
from undula.motion.baselines.roller import (
    Course,
    Roller,
    RollerConfig,
    RollerLossConfig,
    RollerTask,
    RollerTraining,
    TrainedRoller,
    strided,
    train_roller,
)
from undula.motion.climatology_fit import Example, fit_climatology
from undula.motion.drawing import Drawing, WindowConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.observation import fitted_usual
from undula.motion.predictors import ClimatologyConfig
from undula.motion.windows import AtomForecaster

STRIDE, FRAMES = 2, 13
SMALL = RollerConfig(encoder=replace(ENCODER, oldest=4), stride=STRIDE, sane=50.0, checked=12)
LAGS = 0.1 * torch.tensor([0.0, 2, 3, 16], dtype=torch.float64)
BATCH = WindowConfig(
    observed=9, windows=2, near=4, segments=2, times=2, fitted_windows=5, hidden=0.0
)
HIERARCHY = Hierarchy(horizon=16, strides=(4, 1))
FIT = FitConfig(steps=4, evaluate_every=2, checkpoint_every=2, clip_norm=1.0)
ALIKE = {"rtol": 0, "atol": 1e-9}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def made(atoms, config=SMALL, reference=None, noise=0.2) -> TrainedRoller:
    examples = []
    for seed in range(4):
        seen = window(atoms, 50 + seed, FRAMES + STRIDE)
        known = replace(
            seen, positions=seen.positions[:FRAMES], velocities=seen.velocities[:FRAMES]
        )
        examples.append(Example(window=strided(known, STRIDE), future=seen.positions[-1:]))
    climatology = fit_climatology(examples, [1], ClimatologyConfig())
    ages = config.encoder.ages(climatology.observed)[1:]
    kinds = climatology.kind_of_atoms(atoms)
    usual = fitted_usual((one.window for one in examples), kinds, len(climatology.kinds), ages)
    model = Roller(config, len(climatology.kinds)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=generator))
    return TrainedRoller(
        model=model.eval().requires_grad_(False), climatology=climatology, usual=usual,
        reference=reference, horizon=16, provenance={"from": "a test"},
    )  # fmt: skip


def test_is_a_forecaster_without_a_distribution_that_starts_from_now():
    model, seen = made(argon(8)), window(argon(8), frames=FRAMES)
    assert isinstance(model, AtomForecaster)
    found = model.forecast(seen, LAGS)
    assert torch.equal(found.mean[0], seen.now)
    assert torch.equal(found.velocities[0], seen.velocity_now)
    assert found.diverged_ps is None
    assert found.divergence is None
    assert found.notices == ()
    assert model.samples(seen, LAGS, 2, torch.Generator()) is None


def test_untrained_one_stride_is_the_linear_forecast_and_two_are_it_twice():
    model, seen = made(argon(8), noise=0.0), window(argon(8), frames=FRAMES)
    first = model.climatology.expected(strided(seen, 2), torch.tensor([0.2], dtype=torch.float64))
    found = model.forecast(seen, torch.tensor([0.2, 0.4], dtype=torch.float64))
    torch.testing.assert_close(found.mean[0], first.mean[0], **ALIKE)
    torch.testing.assert_close(found.velocities[0], first.velocities[0], **ALIKE)
    short = strided(seen, 2)
    rolled = replace(
        short,
        positions=torch.cat([short.positions[1:], first.mean]),
        velocities=torch.cat([short.velocities[1:], first.velocities]),
    )
    second = model.climatology.expected(rolled, torch.tensor([0.2], dtype=torch.float64))
    torch.testing.assert_close(found.mean[1], second.mean[0], **ALIKE)


def test_what_it_forecasts_it_takes_for_observed():
    model, seen = made(argon(8)), window(argon(8), frames=FRAMES)
    lags = torch.tensor([0.2, 0.4], dtype=torch.float64)
    found = model.forecast(seen, lags)
    short = strided(seen, 2)
    later = replace(
        short,
        positions=torch.cat([short.positions[1:], found.mean[:1]]),
        velocities=torch.cat([short.velocities[1:], found.velocities[:1]]),
    )
    model.model.config = replace(SMALL, stride=1)
    again = model.forecast(later, lags[:1])
    torch.testing.assert_close(again.mean[0], found.mean[1], **ALIKE)


@pytest.mark.parametrize("atoms", [argon(8), waters(3)], ids=["argon", "water"])
@pytest.mark.parametrize("mirrored", [False, True], ids=["turned", "mirrored"])
def test_a_turned_and_shifted_window_gives_the_turned_and_shifted_forecast(atoms, mirrored):
    model, seen = made(atoms), window(atoms, frames=FRAMES)
    generator = torch.Generator().manual_seed(2)
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    if (float(torch.linalg.det(matrix)) < 0) != mirrored:
        matrix = -matrix
    shift = torch.tensor([3.0, -20, 7], dtype=torch.float64)
    one, two = (model.forecast(w, LAGS) for w in (seen, moved(seen, matrix, shift)))
    torch.testing.assert_close(two.mean, one.mean @ matrix.T + shift, rtol=0, atol=1e-7)
    torch.testing.assert_close(two.velocities, one.velocities @ matrix.T, rtol=0, atol=1e-7)


def test_does_not_change_when_atoms_are_relabelled():
    model, seen = made(argon(8)), window(argon(8), frames=FRAMES)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    mixed = replace(seen, positions=seen.positions[:, order], velocities=seen.velocities[:, order])
    found = model.forecast(seen, LAGS).mean[:, order]
    torch.testing.assert_close(model.forecast(mixed, LAGS).mean, found, **ALIKE)


def test_an_aligned_molecule_is_forecast_in_the_pose_of_the_window():
    atoms = chain(6)
    model = made(atoms, reference=window(atoms, 9).now, noise=0.0)
    seen = window(atoms, frames=FRAMES)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    one, two = (
        model.forecast(w, LAGS) for w in (seen, moved(seen, quarter, torch.ones(3).double()))
    )
    torch.testing.assert_close(one.mean[0], seen.now, rtol=0, atol=1e-6)
    torch.testing.assert_close(two.mean, one.mean @ quarter.T + 1, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match="molecule of 6 atoms, this one has 5"):
        model.forecast(window(chain(5), frames=FRAMES), LAGS)


def test_a_rollout_that_runs_away_is_stopped_and_says_so():
    model, seen = made(argon(8)), window(argon(8), frames=FRAMES)
    lags = 0.1 * torch.arange(0, 17, dtype=torch.float64)
    sound = model.forecast(seen, lags)
    calls = []
    ordinary = model.model.forward

    def wild(*given):
        positions, velocities = ordinary(*given)
        calls.append(1)
        factor = float("nan") if len(calls) == 3 else 1.0
        return positions * factor, velocities

    model.model.forward = wild
    found = model.forecast(seen, lags)
    assert len(calls) == 3
    assert found.diverged_ps == pytest.approx(0.6)
    assert found.divergence is not None
    assert found.divergence.after_ps == found.diverged_ps
    assert found.divergence.share == 1
    [notice] = found.notices
    assert notice.code == "rollout-diverged"
    assert "0.6 ps after now" in notice.message
    torch.testing.assert_close(found.mean[:5], sound.mean[:5], **ALIKE)
    assert torch.equal(found.mean[5:], found.mean[4].expand(12, -1, -1))
    assert not found.velocities[5:].any()
    assert found.velocities[4].any()


def test_one_that_jumps_has_diverged_before_anything_is_infinite():
    model, seen = made(argon(8), replace(SMALL, sane=1.0)), window(argon(8), frames=FRAMES)
    with torch.no_grad():
        model.model.moved.weight.mul_(1e6)
    found = model.forecast(seen, LAGS)
    assert found.diverged_ps == pytest.approx(0.2)
    assert torch.equal(found.mean, seen.now.expand(4, -1, -1))


def test_cubics_between_strides_follow_an_accelerated_path_exactly():
    time = 0.3 * torch.arange(4, dtype=torch.float64)[:, None, None]
    start, speed, pull = torch.randn(3, 5, 3, dtype=torch.float64)
    course = Course(
        positions=start + speed * time + pull * time**2,
        velocities=speed + 2 * pull * time,
        diverged=None,
    )
    places = torch.tensor([0, 0.25, 1, 2.9, 3.0], dtype=torch.float64)
    when = 0.3 * places[:, None, None]
    positions, velocities = course.at(places, 0.3)
    torch.testing.assert_close(positions, start + speed * when + pull * when**2)
    torch.testing.assert_close(velocities, speed + 2 * pull * when)
    straight, none = replace(course, velocities=None).at(places, 0.3)
    assert none is None
    torch.testing.assert_close(straight[[0, 2, 4]], positions[[0, 2, 4]])


def test_strided_frames_are_counted_back_from_now():
    seen = window(argon(3), frames=12)
    found = strided(seen, 5)
    assert torch.equal(found.positions, seen.positions[[1, 6, 11]])
    assert torch.equal(found.velocities, seen.velocities[[1, 6, 11]])
    assert found.frame_ps == pytest.approx(0.5)


def test_windows_without_velocities_are_rolled_too():
    model = made(argon(8))
    seen = replace(window(argon(8), frames=FRAMES), velocities=None)
    found = model.forecast(seen, LAGS)
    assert found.velocities is None
    assert torch.isfinite(found.mean).all()
    assert not torch.equal(found.mean, model.forecast(window(argon(8), frames=FRAMES), LAGS).mean)


def test_what_was_stored_forecasts_the_same_to_the_last_bit(tmp_path):
    model, seen = made(argon(8)), window(argon(8), frames=FRAMES)
    single = replace(model, model=model.model.float())
    single.save(tmp_path)
    again = TrainedRoller.load(tmp_path)
    assert again.model.config == model.model.config
    assert again.provenance == model.provenance
    one, two = (row.forecast(seen, LAGS) for row in (single, again))
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.velocities, two.velocities)
    with pytest.raises(InputError):
        TrainedRoller.load(tmp_path / "nowhere")


def test_refuses_other_kinds_spacings_and_times():
    model, seen = made(argon(8)), window(argon(8), frames=FRAMES)
    with pytest.raises(InputError, match="kind"):
        model.forecast(window(chain(4), frames=FRAMES), LAGS)
    with pytest.raises(InputError, match="ps apart"):
        model.forecast(replace(seen, frame_ps=0.2), 2 * LAGS)
    for lags in (LAGS - 1, LAGS + 1, LAGS[:0]):
        with pytest.raises(UsageError):
            model.forecast(seen, lags)


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"checked": 0}, {"sane": 0.5}])
def test_refuses_a_configuration_that_cannot_be_meant(wrong):
    with pytest.raises(UsageError, match=f"roller.{next(iter(wrong))}"):
        RollerConfig(**wrong)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    runs = [path(argon(6), 80, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    frames = [RecordedFrames(positions=x, velocities=v, frame_ps=0.1) for x, v in runs]
    return recorded(tmp_path_factory.mktemp("argon"), argon(6), frames)


def task(recordings, **loss):
    names = [one.name for one in recordings.recordings]
    drawing = Drawing(recordings, names, BATCH, HIERARCHY)
    return RollerTask(drawing, SMALL, RollerLossConfig(**loss))


@pytest.mark.parametrize("unrolled", [1, 2])
def test_is_a_task_whose_gradients_have_the_same_bytes_each_time(recordings, unrolled):
    one = task(recordings, unrolled=unrolled)
    assert isinstance(one, Task)
    torch.nn.init.normal_(one.model.moved.weight, generator=torch.Generator().manual_seed(0))
    batch = one.batch(0, torch.Generator().manual_seed(1))
    assert len(batch.truth.positions) == unrolled
    assert batch.truth.known.all()
    found = []
    for _ in range(2):
        one.model.zero_grad()
        one.loss(batch, 0)[0].backward()
        found.append({name: w.grad.clone() for name, w in one.model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert all(bool(torch.isfinite(grad).all()) for grad in found[0].values())


def test_learns_one_batch_by_heart(recordings):
    one = task(recordings, velocities=0.0)
    batch = one.batch(0, torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(one.model.parameters(), lr=0.01)
    losses = []
    for step in range(100):
        optimizer.zero_grad()
        total, _ = one.loss(batch, step)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_lines_between_strides_are_straight_where_that_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    positions, velocities = torch.randn(2, 3, 4, 3, generator=generator, dtype=torch.float64)
    course = Course(positions=positions, velocities=velocities, diverged=None)
    places = torch.tensor([0.0, 0.5, 1.25, 2.0], dtype=torch.float64)
    found, speeds = course.at(places, 0.4, straight=True)
    torch.testing.assert_close(found[1], positions[:2].mean(dim=0))
    torch.testing.assert_close(found[2], torch.lerp(positions[1], positions[2], 0.25))
    assert speeds is not None
    curved, other = course.at(places, 0.4)
    assert not torch.allclose(curved[1], found[1])
    torch.testing.assert_close(curved[[0, 3]], found[[0, 3]])
    torch.testing.assert_close(other, speeds)


def test_validation_says_how_many_rollouts_diverged(recordings):
    one = task(recordings)
    assert one.evaluate()["diverged"] == 0
    with torch.no_grad():
        one.model.moved.weight.fill_(1e9)
    measures = one.evaluate()
    assert measures["diverged"] == 1
    assert measures["error"] == pytest.approx(1)


def test_training_leaves_a_forecaster_and_the_same_bytes_again(recordings, tmp_path):
    found = []
    for name in ("one", "two"):
        trained = train_roller(
            recordings, tmp_path / name, fit_config=FIT, progress=SilentProgress(),
            settings=RollerTraining(model=SMALL, batch=BATCH, hierarchy=HIERARCHY),
        )  # fmt: skip
        found.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert found[0] == found[1]
    assert trained.provenance["steps"] == 4
    seen = replace(window(argon(6), frames=9), box=None)
    loaded = TrainedRoller.load(tmp_path / "two")
    assert torch.equal(loaded.forecast(seen, LAGS).mean, trained.forecast(seen, LAGS).mean)
