from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.motion.small_systems import argon, pairs, path, recorded, vibrating

from undula.errors import InputError, UsageError
from undula.io.recordings import RecordedFrames, Recording
from undula.learn.task import Task
from undula.motion.drawing import WindowConfig, divided
from undula.motion.encoder import EncoderConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.levels import LevelsConfig
from undula.motion.losses import MotionLossConfig
from undula.motion.model import MotionModelConfig
from undula.motion.task import MotionTask
from undula.nn.ode.solve import SolverConfig

MODEL = MotionModelConfig(
    encoder=EncoderConfig(
        features=8, layers=1, cutoff=4.0, neighbours=3.0, oldest=4, latent=2, heads=2
    ),
    levels=LevelsConfig(horizon=16, strides=(4, 1), solver=SolverConfig(steps=2)),
)
BATCH = WindowConfig(observed=6, windows=2, near=4, segments=2, times=2, fitted_windows=5)
FRAMES = 80


def run(seed, atoms=6, frames=FRAMES, known=None) -> RecordedFrames:
    positions, velocities = path(argon(atoms), frames, torch.Generator().manual_seed(seed))
    return RecordedFrames(positions=positions, velocities=velocities[:known], frame_ps=0.1)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("argon"), argon(6), [run(0), run(1)])


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """Recordings whose first 40 frames alone have velocities."""
    return recorded(tmp_path_factory.mktemp("partly"), argon(6), [run(0, known=40)])


def task(recordings, batch=BATCH, model=MODEL, **loss):
    names = [one.name for one in recordings.recordings]
    return MotionTask(recordings, names, model, MotionLossConfig(**loss), batch)


@pytest.fixture(scope="module")
def made(recordings):
    return task(recordings)


def drawn(made, step=0, seed=0):
    return made.batch(step, torch.Generator().manual_seed(seed))


def numbers(batch):
    parts = (batch.seen, batch.plan, batch.base, batch.truth)
    return {
        (type(part).__name__, name): value
        for part in parts
        for name, value in vars(part).items()
        if torch.is_tensor(value)
    }


def same(one, two):
    one, two = numbers(one), numbers(two)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_is_a_task_of_the_training_loop(made):
    assert isinstance(made, Task)
    assert len(made.parameter_groups()[0].parameters) == len(list(made.module.parameters()))


def test_a_batch_depends_on_nothing_but_its_arguments(made, recordings):
    first = drawn(made, 3, 5)
    drawn(made, 4, 6)
    made.evaluate()
    assert same(drawn(made, 3, 5), first)
    assert same(drawn(task(recordings), 3, 5), first)
    assert not same(drawn(made, 3, 6), first)


def seen_now(made, monkeypatch, count=200):
    """Return which frames were now, and the lags asked for, in many batches."""
    calls = []
    cut = made.drawing.cut

    def listen(chosen, lags, **options):
        calls.append((chosen, lags))
        return cut(chosen, lags, **options)

    monkeypatch.setattr(made.drawing, "cut", listen)
    batches = [drawn(made, seed=seed) for seed in range(count)]
    return calls, batches


@pytest.mark.parametrize("which", ["recordings", "partly"])
def test_no_training_target_lies_in_the_validation_block(which, request, monkeypatch):
    made = task(request.getfixturevalue(which))
    calls, batches = seen_now(made, monkeypatch)
    barred = 0
    for (chosen, lags), batch in zip(calls, batches, strict=True):
        for number, (part, now) in enumerate(chosen):
            frames = now + lags.long()
            low, high = part.barred
            assert part.training[0] <= now <= part.training[1] < part.validation[0]
            inside = (frames >= low) & (frames < high)
            barred += int(inside.sum())
            assert not batch.truth.known[inside, number].any()
            assert not batch.truth.velocities_known[inside, number].any()
            assert batch.truth.known[~inside & (frames < FRAMES), number].all()
    assert barred > 0


def test_validation_windows_end_after_all_training_windows_and_a_segment(made, monkeypatch):
    calls = []
    cut = made.drawing.cut
    monkeypatch.setattr(
        made.drawing, "cut", lambda chosen, *a, **k: calls.append(chosen) or cut(chosen, *a, **k)
    )
    assert len(list(made.drawing.validated())) == 4
    for ((part, now),) in calls:
        segment = made.model.hierarchy.lengths[-1]
        assert now - part.training[1] > segment
        assert part.validation[0] <= now <= part.validation[1]
        assert now + segment < FRAMES


def test_targets_are_the_recorded_frames(made, monkeypatch):
    calls, batches = seen_now(made, monkeypatch, 20)
    for (chosen, lags), batch in zip(calls, batches, strict=True):
        for number, (part, now) in enumerate(chosen):
            for place, lag in enumerate(lags.long().tolist()):
                frame = min(now + lag, FRAMES - 1)
                assert np.array_equal(
                    batch.truth.positions[place, number].numpy(), part.recording.positions[frame]
                )
            assert np.array_equal(
                batch.seen.positions[number, 0].numpy(), part.recording.positions[now]
            )


def test_velocities_beyond_those_recorded_are_not_targets(partly, monkeypatch):
    made = task(partly)
    calls, batches = seen_now(made, monkeypatch, 40)
    for (chosen, lags), batch in zip(calls, batches, strict=True):
        for number, (_, now) in enumerate(chosen):
            assert now < 40
            late = now + lags.long() >= 40
            assert not batch.truth.velocities_known[late, number].any()
            assert not batch.truth.velocities[late, number].any()


def test_as_many_windows_hide_their_velocities_as_were_asked_for(recordings):
    for share, low, high in ((0.0, 0, 0), (0.25, 8, 36), (1.0, 80, 80)):
        made = task(recordings, replace(BATCH, hidden=share))
        hidden = [not bool(drawn(made, seed=seed).seen.recorded[0]) for seed in range(80)]
        assert low <= sum(hidden) <= high


def test_a_step_solves_at_most_one_finest_segment_and_those_asked_for(recordings):
    model = replace(MODEL, levels=LevelsConfig(horizon=24, strides=(8, 4, 1)))
    made = task(recordings, model=model)
    most = 0
    for seed in range(100):
        plan = drawn(made, seed=seed).plan
        assert float(plan.lags.min()) >= 1
        assert float(plan.lags.max()) <= 24
        assert (plan.lags < 4).any()
        most = max(most, len(plan.segments[-1]))
    assert most == 1 + BATCH.segments


def test_a_training_step_takes_at_most_240_evaluations(recordings, monkeypatch):
    """With 20 steps of the solver; 3 levels of 80 each."""
    solver = SolverConfig(steps=20)
    model = replace(MODEL, levels=LevelsConfig(horizon=24, strides=(8, 4, 1), solver=solver))
    made, counts = task(recordings, model=model), []
    forward = made.model.forward

    def listen(*arguments, **options):
        outcome = forward(*arguments, **options)
        counts.append(sum(outcome.evaluations))
        return outcome

    monkeypatch.setattr(made.model, "forward", listen)
    for seed in range(2):
        made.loss(drawn(made, seed=seed), 0)
    assert set(counts) == {240}


def test_an_untrained_model_has_no_skill_and_half_a_nat_of_surprise(made):
    measures = made.evaluate()
    assert measures["skill_near"] == 0
    assert measures["surprise"] == measures["surprise_0"]
    assert made.evaluate() == measures


def test_all_time_scales_are_drawn_and_near_ones_most(made):
    lags = torch.cat([drawn(made, seed=seed).plan.lags for seed in range(200)]).long()
    counts = lags.bincount(minlength=17)[1:]
    assert (counts > 0).all()
    assert int(counts[:3].min()) > 2 * int(counts[3:].max())


def test_refuses_recordings_that_are_too_short(recordings):
    with pytest.raises(InputError, match=r"lower batch\.observed"):
        task(recordings, replace(BATCH, observed=75))
    long = replace(MODEL, levels=LevelsConfig(horizon=76, strides=(4, 1)))
    with pytest.raises(InputError, match=r"lower levels\.horizon"):
        task(recordings, model=long)
    with pytest.raises(InputError, match="has no recording"):
        MotionTask(recordings, ["run_7"], MODEL, MotionLossConfig(), BATCH)
    with pytest.raises(UsageError, match="at least one recording"):
        MotionTask(recordings, [], MODEL, MotionLossConfig(), BATCH)


@pytest.mark.parametrize(
    "changes",
    [{"observed": 0}, {"windows": 0}, {"near": 0}, {"segments": -1}, {"hidden": 1.5},
     {"validation": 0.0}, {"validation": 1.0}],
    ids=str,
)  # fmt: skip
def test_refuses_windows_that_mean_nothing(changes):
    with pytest.raises(UsageError, match=rf"batch\.{next(iter(changes))}"):
        WindowConfig(**changes)


def test_the_parts_of_a_recording_do_not_overlap():
    for frames, known in ((80, 80), (200, 60), (41, 0)):
        zeros = np.zeros((frames, 1, 3), dtype=np.float32)
        one = Recording(
            name="one", positions=zeros, velocities=zeros[:known] if known else None, boxes=None,
            potential=None, frame_ps=0.1, start_ps=0.0, differences=None,
        )  # fmt: skip
        part = divided(one, BATCH, Hierarchy(horizon=16, strides=(4, 1)))
        assert part.training[0] == BATCH.observed - 1
        assert part.training[1] + 4 < part.validation[0] == part.barred[0]
        assert part.validation[1] + 4 == part.barred[1] - 1 < frames
        if known:
            assert part.validation[1] < known


def test_learns_what_springs_do_far_beyond_the_linear_forecast(tmp_path):
    made = pairs(6)
    recordings = recorded(tmp_path, made, [vibrating(6, 60, torch.Generator().manual_seed(0))])
    encoder = EncoderConfig(features=16, layers=1, cutoff=4.0, neighbours=1.0, oldest=1, latent=2)
    levels = LevelsConfig(horizon=4, strides=(1,), solver=SolverConfig(steps=2))
    batch = WindowConfig(
        observed=4, windows=8, near=3, segments=0, times=1, hidden=0.0, validation=0.1
    )
    fitted = task(
        recordings,
        batch,
        MotionModelConfig(encoder=encoder, levels=levels),
        levels=(1.0,),
        divergence=0.05,
        warmup_steps=0,
    )
    optimizer = torch.optim.AdamW(fitted.model.parameters(), lr=5e-3)
    surprises = []
    for step in range(90):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 100)
        loss, parts = fitted.loss(drawn(fitted, step, step), step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(fitted.model.parameters(), 1.0)
        optimizer.step()
        surprises.append(float(parts["positions_0"].detach()))
    assert surprises[0] == pytest.approx(0.5, abs=0.2)
    assert sum(surprises[-10:]) / 10 < -0.2
    with torch.no_grad():
        assert fitted.evaluate()["skill_near"] > 0.3
