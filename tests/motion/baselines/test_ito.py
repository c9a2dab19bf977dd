import os
from dataclasses import replace

import pytest
import torch
from tests.motion.small_systems import (
    BOX,
    FRAME_PS,
    argon,
    chain,
    moved,
    path,
    recorded,
    waters,
    window,
)

from undula.errors import InputError, UsageError
from undula.io.recordings import RecordedFrames
from undula.learn.progress import SilentProgress
from undula.learn.recipe import FitConfig
from undula.learn.task import Task
from undula.motion.baselines.background import Background, Scales
from undula.motion.baselines.ito import (
    Denoiser,
    ItoConfig,
    ItoSampling,
    TrainedIto,
    present,
)
from undula.motion.baselines.ito_training import ItoTask, ItoTraining, train_ito
from undula.motion.climatology import knot_frames
from undula.motion.drawing import Drawing, WindowConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.surroundings import bond_table
from undula.motion.windows import AtomForecaster

CONFIG = ItoConfig(features=8, layers=1, cutoff=4.0, neighbours=6.0, lags=3)
HIERARCHY = Hierarchy(horizon=16, strides=(4, 1))
BATCH = WindowConfig(observed=6, windows=2, fitted_windows=5)
LAGS = FRAME_PS * torch.tensor([1.0, 3.5, 8.0], dtype=torch.float64)
TURN = torch.linalg.qr(
    torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
)[0]
MIRROR = torch.diag(torch.tensor([1.0, 1, -1], dtype=torch.float64))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def scales(kinds=("AR",)) -> Scales:
    knots = knot_frames(16)
    usual = 0.2 * torch.tensor([float(knot) for knot in knots]).sqrt()
    return Scales(
        kinds=kinds,
        frame_ps=FRAME_PS,
        knots=knots,
        displacement=usual.repeat(len(kinds), 1),
        speed=torch.ones(len(kinds)),
        reach=torch.ones(len(kinds)),
    )


def made(silent=False, config=CONFIG, kinds=("AR",), rollout=0, **sampling) -> TrainedIto:
    """Make a model in float64 whose weights are stirred, or that knows nothing."""
    model = Denoiser(config, len(kinds), 16).double()
    if not silent:
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    background = Background(scales=scales(kinds), reference=None, provenance={"system": "small"})
    return TrainedIto(
        model=model.eval().requires_grad_(False),
        background=background,
        rollout=rollout,
        sampling=ItoSampling(**{"evaluations": 5, "draws": 3} | sampling),
    )


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    runs = [path(argon(6), 80, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    frames = [
        RecordedFrames(positions=x, velocities=v, frame_ps=FRAME_PS, box=BOX) for x, v in runs
    ]
    return recorded(tmp_path_factory.mktemp("argon"), argon(6), frames)


def denoised(model, seen, noised, lag=3.0):
    kinds = model.background.scales.rows(seen.system)
    blocks = torch.full((len(noised),), lag, dtype=torch.float64)
    start = present(seen, blocks, model.background.scales, kinds)
    around = model.model.surroundings(start, bond_table(seen.system))
    return model.model(noised, 100 * blocks, start, around)


@pytest.mark.parametrize("matrix", [TURN, MIRROR], ids=["turned", "mirrored"])
@pytest.mark.parametrize("velocities", [False, True])
def test_a_step_of_denoising_turns_and_mirrors_with_the_present(matrix, velocities):
    model = made(config=replace(CONFIG, velocities=velocities))
    seen, noised = window(argon(10)), torch.randn(2, 10, 3, dtype=torch.float64)
    shift = torch.tensor([3.0, -40, 7], dtype=torch.float64)
    plain = denoised(model, seen, noised)
    other = denoised(model, moved(seen, matrix, shift), noised @ matrix.T)
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(other, plain @ matrix.T, rtol=0, atol=1e-10)


def test_a_step_of_denoising_does_not_see_images_and_relabels_with_the_atoms():
    model, seen = made(), window(argon(10))
    noised = torch.randn(1, 10, 3, dtype=torch.float64)
    plain = denoised(model, seen, noised)
    hops = torch.randint(-2, 3, (10, 3), generator=torch.Generator().manual_seed(0)).double()
    image = replace(seen, positions=seen.positions + hops @ BOX)
    torch.testing.assert_close(denoised(model, image, noised), plain, rtol=0, atol=1e-10)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    dealt = replace(seen, positions=seen.positions[:, order], velocities=seen.velocities[:, order])
    found = denoised(model, dealt, noised[:, order])
    torch.testing.assert_close(found, plain[:, order], rtol=0, atol=1e-10)


def test_blocks_are_as_one_by_one():
    model, seen = made(), window(argon(10))
    noised = torch.randn(3, 10, 3, dtype=torch.float64)
    together = denoised(model, seen, noised)
    alone = torch.cat([denoised(model, seen, one[None]) for one in noised])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_knowing_nothing_it_draws_the_usual_displacements():
    model, seen = made(silent=True, evaluations=19), window(argon(10))
    drawn = model.samples(seen, LAGS, 200, torch.Generator().manual_seed(0))
    spread = (drawn - seen.now).std(dim=(0, 2, 3))
    usual = model.background.scales.units(LAGS / FRAME_PS, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(spread, usual[:, 0], rtol=0.06, atol=0)


def test_all_times_of_a_sample_hang_together_and_none_has_moved_at_once():
    model, seen = made(), window(argon(10))
    lags = FRAME_PS * torch.tensor([0.0, 5.0, 5.01], dtype=torch.float64)
    now, one, other = model.samples(seen, lags, 1, torch.Generator().manual_seed(0))[0]
    assert torch.equal(now, seen.now)
    assert (one - now).abs().max() > 0.1
    assert (one - other).abs().max() < 0.02


def test_a_rollout_within_its_first_step_is_a_single_step():
    model, seen = made(silent=True, evaluations=9), window(argon(10))
    lag = LAGS[:1]
    one = model.samples(seen, lag, 2, torch.Generator().manual_seed(0))
    rolled = model.rolling(1).samples(seen, lag, 2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(one, rolled)


def test_steps_of_a_rollout_that_knows_nothing_add_up_as_a_random_walk():
    model, seen = made(silent=True, evaluations=9).rolling(4), window(argon(10))
    lags = FRAME_PS * torch.tensor([4.0, 16, 15.5], dtype=torch.float64)
    found = model.courses(seen, lags, 100, torch.Generator().manual_seed(0))
    spread = (found.positions - seen.now).square().mean(dim=(0, 2, 3))
    unit = model.background.scales.units(
        torch.tensor([4.0, 3.5], dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    ).square()[:, 0]
    expected = torch.stack([unit[0], 4 * unit[0], 3 * unit[0] + unit[1]])
    torch.testing.assert_close(spread, expected, rtol=0.08, atol=0)
    assert not found.diverged.any()


@pytest.mark.parametrize("rollout", [0, 4])
def test_samples_that_leave_the_possible_are_stopped_and_told(rollout):
    model, seen = made(sane=2.0, evaluations=9, rollout=rollout), window(argon(10))
    found = model.courses(seen, LAGS, 4, torch.Generator().manual_seed(0))
    assert found.diverged.any()
    assert torch.isfinite(found.positions).all()
    forecast = model.forecast(seen, LAGS)
    told, gone = forecast.diverged, forecast.divergence
    assert (told > 0).any()
    assert gone is not None
    assert gone.after_ps == float(LAGS[(told > 0).nonzero()[0, 0]])
    assert gone.share == float(told.max())
    assert ((told >= 0) & (told <= 1)).all()


def test_a_network_gone_wrong_leaves_the_present_and_says_so():
    model, seen = made(), window(argon(10))
    model.model.left.weight.fill_(float("nan"))
    for one in (model, model.rolling(4)):
        found = one.courses(seen, LAGS, 2, torch.Generator())
        assert found.diverged.all()
        assert torch.equal(found.positions, seen.now.expand(2, 3, -1, -1))


def test_is_a_forecaster_whose_mean_is_that_of_its_samples():
    model, seen = made(), window(argon(10))
    assert isinstance(model, AtomForecaster)
    found = model.forecast(seen, LAGS)
    drawn = model.samples(seen, LAGS, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.mean, drawn.mean(dim=0))
    torch.testing.assert_close(found.spread, drawn.var(dim=0).mean(dim=-1).sqrt())
    assert torch.equal(found.mean, model.forecast(seen, LAGS).mean)
    assert "one step, 3 samples" in model.name
    assert "rollout of 4 frames" in model.rolling(4).name


def test_nothing_but_the_present_matters():
    model, seen = made(), window(argon(10))
    other = replace(seen, positions=seen.positions.clone(), velocities=None)
    other.positions[:-1] += 5.0
    assert torch.equal(model.forecast(seen, LAGS).mean, model.forecast(other, LAGS).mean)


def test_serves_bonded_molecules_without_a_box():
    model = made(kinds=("H", "O"))
    found = model.forecast(window(waters(3)), LAGS)
    assert found.mean.shape == (3, 9, 3)


def test_an_aligned_molecule_may_come_turned_and_shifted():
    model = made(kinds=("C",))
    aligned = replace(model.background, reference=window(chain(6), 9).now)
    model, seen = replace(model, background=aligned), window(chain(6))
    plain = model.forecast(seen, LAGS).mean
    turn = torch.eye(3, dtype=torch.float64)[[1, 2, 0]]
    shift = torch.full((3,), 5.0, dtype=torch.float64)
    found = model.forecast(moved(seen, turn, shift), LAGS).mean
    torch.testing.assert_close(found, plain @ turn.T + shift, rtol=0, atol=1e-8)


def test_is_a_task_whose_fresh_network_knows_nothing(recordings):
    task = ItoTask(Drawing(recordings, ["run_0", "run_1"], BATCH, HIERARCHY), CONFIG)
    assert isinstance(task, Task)
    batch = task.batch(0, torch.Generator().manual_seed(0))
    again = task.batch(0, torch.Generator().manual_seed(0))
    assert torch.equal(batch.noise, again.noise)
    assert batch.displacements.shape == (6, 6, 3)
    loss, _ = task.loss(batch, 0)
    aim = batch.alpha[:, None, None] * batch.noise
    aim = aim - batch.sigma[:, None, None] * batch.displacements
    wrong = aim.square().mean(dim=(1, 2))
    torch.testing.assert_close(loss, (wrong * batch.known).sum() / batch.known.sum())
    measures = task.evaluate()
    assert measures["denoising_near"] == pytest.approx(1)


def trained(recordings, folder, **changes):
    fit = FitConfig(steps=6, evaluate_every=3, checkpoint_every=3, ema_decay=0.9, clip_norm=1.0)
    return train_ito(
        recordings,
        folder,
        settings=ItoTraining(
            model=CONFIG,
            sampling=ItoSampling(evaluations=5, draws=2),
            batch=BATCH,
            hierarchy=HIERARCHY,
        ),
        fit_config=replace(fit, **changes),
        progress=SilentProgress(),
    )


def test_the_same_seed_gives_the_same_bytes_and_what_was_stored_forecasts_the_same(
    recordings, tmp_path
):
    model = trained(recordings, tmp_path / "one")
    trained(recordings, tmp_path / "two")
    one, two = ((tmp_path / n / "weights.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two
    again = TrainedIto.load(tmp_path / "one")
    seen = replace(window(argon(6)), box=BOX)
    assert torch.equal(model.forecast(seen, LAGS).mean, again.forecast(seen, LAGS).mean)
    assert again.sampling == ItoSampling(evaluations=5, draws=2)
    assert "the mean of 2 samples, one step to each time, 5 evaluations" in again.remark
    assert "steps of 4 frames" in again.rolling(4).remark
    assert again.background.provenance["steps"] == 6
    assert again.model.config == CONFIG


def test_learns_what_it_is_shown(recordings, tmp_path):
    made = trained(recordings, tmp_path, steps=120, evaluate_every=120, learning_rate=1e-2)
    assert made.background.provenance["measures"]["denoising"] < 0.97


def test_refuses_what_cannot_be_meant(tmp_path):
    seen = window(argon(10))
    with pytest.raises(UsageError, match="reaches from 0 to 16 frames"):
        made().forecast(seen, 10 * LAGS)
    with pytest.raises(InputError, match="not fitted on atoms of the kind"):
        made().forecast(window(waters(2)), LAGS)
    with pytest.raises(InputError, match=r"frames are 0\.2 ps apart"):
        made().forecast(replace(seen, frame_ps=0.2), LAGS)
    with pytest.raises(UsageError, match="cannot roll out"):
        made(config=replace(CONFIG, velocities=True)).rolling(4)
    with pytest.raises(UsageError, match=r"sampling\.draws must be at least 2"):
        made(draws=1)
    with pytest.raises(UsageError, match=r"ito\.lags"):
        ItoConfig(lags=0)
    with pytest.raises(InputError):
        TrainedIto.load(tmp_path)
