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
from undula.motion.baselines.scinet import (
    Dropout,
    SCINet,
    SCINetConfig,
    SCINetTask,
    SCINetTraining,
    Splitting,
    TrainedSCINet,
    displacements,
    train_scinet,
)
from undula.motion.climatology import knot_frames
from undula.motion.drawing import Drawing, WindowConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.windows import AtomForecaster

CONFIG = SCINetConfig(frames=8, levels=2, kernel=3, hidden=1, dropout=0.0)
HIERARCHY = Hierarchy(horizon=16, strides=(4, 1))
BATCH = WindowConfig(observed=8, windows=2, near=4, fitted_windows=5)
LAGS = FRAME_PS * torch.tensor([1.0, 3.5, 8.0, 16.0], dtype=torch.float64)
KNOTS = knot_frames(16)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


def scales(kind: str) -> Scales:
    return Scales(
        kinds=(kind,),
        frame_ps=FRAME_PS,
        knots=KNOTS,
        displacement=torch.tensor([[0.2 * knot for knot in KNOTS]]),
        speed=torch.ones(1),
        reach=torch.ones(1),
    )


def made(config=CONFIG, kind="AR", reference=None) -> TrainedSCINet:
    background = Background(scales=scales(kind), reference=reference, provenance={})
    model = SCINet(config, len(KNOTS)).double().eval().requires_grad_(False)
    return TrainedSCINet(model=model, background=background)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    runs = [path(argon(6), 80, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    frames = [
        RecordedFrames(positions=x, velocities=v, frame_ps=FRAME_PS, box=BOX) for x, v in runs
    ]
    return recorded(tmp_path_factory.mktemp("argon"), argon(6), frames)


@pytest.mark.parametrize("levels", [1, 3])
def test_what_is_split_is_put_back_in_its_order_where_filters_are_silent(levels):
    config = replace(CONFIG, levels=levels)
    tree = Splitting(config, 0, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        for name, weight in tree.named_parameters():
            if ".outer." in name or name.startswith("outer"):
                weight.zero_()
    sequence = torch.randn(2, 6, 24, dtype=torch.float64)
    assert torch.equal(tree(sequence), sequence)


def test_one_splitting_is_the_formula():
    config = replace(CONFIG, levels=1)
    block = Splitting(config, 0, torch.Generator().manual_seed(0)).double()
    sequence = torch.randn(2, 6, 8, dtype=torch.float64)
    even, odd = sequence[..., ::2], sequence[..., 1::2]
    first, second = even * block.phi(odd).exp(), odd * block.psi(even).exp()
    found = block(sequence)
    torch.testing.assert_close(found[..., ::2], first + block.eta(second))
    torch.testing.assert_close(found[..., 1::2], second - block.rho(first))


def test_dropout_leaves_out_its_share_keeps_the_mean_and_rests_after_training():
    layer, values = Dropout(0.3), torch.ones(200, 100, requires_grad=True)
    left = layer(values)
    assert left.unique().tolist() == [0, pytest.approx(1 / 0.7)]
    assert float((left == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    left.sum().backward()
    assert torch.equal(values.grad, left)
    assert torch.equal(layer.eval()(values), values)


def test_lies_on_a_line_between_knots_and_starts_at_now():
    table = torch.ones(len(KNOTS), 2, 3, dtype=torch.float64)
    lags = torch.tensor([0.0, 0.5, 1, 13, 16], dtype=torch.float64)
    found = displacements(table, lags, scales("AR"), torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(found[:, 0, 0], 0.2 * lags, rtol=1e-6, atol=0)


def test_is_a_forecaster_without_a_distribution():
    model, seen = made(), window(argon(5))
    assert isinstance(model, AtomForecaster)
    assert model.name == "SCINet-style"
    assert model.samples(seen, LAGS, 2, torch.Generator()) is None
    assert model.forecast(seen, LAGS).mean.shape == (4, 5, 3)


def test_shifts_with_the_window_and_relabels_with_the_atoms_but_does_not_turn():
    model, seen = made(), window(argon(5))
    plain = model.forecast(seen, LAGS).mean
    still, shift = torch.eye(3, dtype=torch.float64), torch.full((3,), 5.0, dtype=torch.float64)
    away = model.forecast(moved(seen, still, shift), LAGS).mean
    torch.testing.assert_close(away, plain + 5, rtol=0, atol=1e-10)
    order = torch.tensor([3, 1, 0, 4, 2])
    dealt = replace(seen, positions=seen.positions[:, order], velocities=seen.velocities[:, order])
    torch.testing.assert_close(model.forecast(dealt, LAGS).mean, plain[:, order])
    turn = still[[1, 2, 0]]
    turned = model.forecast(moved(seen, turn, 0 * shift), LAGS).mean
    assert (turned - plain @ turn.T).abs().max() > 1e-3


def test_an_aligned_molecule_may_come_turned_and_shifted():
    reference = window(chain(6), 9).now
    model, seen = made(kind="C", reference=reference), window(chain(6))
    plain = model.forecast(seen, LAGS).mean
    turn = torch.eye(3, dtype=torch.float64)[[1, 2, 0]]
    shift = torch.full((3,), 5.0, dtype=torch.float64)
    found = model.forecast(moved(seen, turn, shift), LAGS).mean
    torch.testing.assert_close(found, plain @ turn.T + shift, rtol=0, atol=1e-8)


@pytest.mark.parametrize("velocities", [True, False])
def test_a_time_asked_for_alone_is_that_of_many(velocities):
    model, seen = made(replace(CONFIG, velocities=velocities)), window(argon(5))
    together = model.forecast(seen, LAGS).mean
    for place in range(len(LAGS)):
        alone = model.forecast(seen, LAGS[place : place + 1]).mean
        assert torch.equal(alone[0], together[place])


def test_frames_before_those_it_sees_do_not_matter():
    model, seen = made(replace(CONFIG, velocities=False)), window(argon(5), frames=30)
    needed = model.forecast(seen.last(8), LAGS).mean
    assert torch.equal(model.forecast(seen, LAGS).mean, needed)


def trained(recordings, folder, **changes):
    fit = FitConfig(steps=6, evaluate_every=3, checkpoint_every=3)
    return train_scinet(
        recordings,
        folder,
        settings=SCINetTraining(
            model=replace(CONFIG, dropout=0.1), batch=BATCH, hierarchy=HIERARCHY
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
    again, seen = TrainedSCINet.load(tmp_path / "one"), window(argon(6))
    assert torch.equal(model.forecast(seen, LAGS).mean, again.forecast(seen, LAGS).mean)
    assert again.background.provenance["steps"] == 6


def test_learns_what_it_is_shown(recordings, tmp_path):
    model = trained(recordings, tmp_path, steps=100, evaluate_every=100, learning_rate=1e-2)
    assert model.background.provenance["measures"]["skill_near"] > 0.5


def test_is_a_task_of_the_training_loop(recordings):
    task = SCINetTask(Drawing(recordings, ["run_0", "run_1"], BATCH, HIERARCHY), CONFIG)
    assert isinstance(task, Task)
    with torch.no_grad():
        task.model.projection.weight.zero_()
    assert task.evaluate()["skill_near"] == pytest.approx(0)
    batch = task.batch(0, torch.Generator().manual_seed(0))
    loss, _ = task.loss(batch, 0)
    unit = task.scales.units(batch.lags, task.kinds).repeat(1, 2)[..., None]
    squares = (batch.displacements / unit).square().mean(dim=-1).unflatten(1, (2, 6)).mean(dim=-1)
    torch.testing.assert_close(loss, squares[batch.known].mean())


def test_refuses_what_cannot_be_meant(recordings, tmp_path):
    with pytest.raises(InputError, match="5 observed frames, the model looks at 8"):
        made().forecast(window(argon(5)).last(5), LAGS)
    with pytest.raises(UsageError, match="reaches from 0 to 16 frames"):
        made().forecast(window(argon(5)), 2 * LAGS)
    with pytest.raises(InputError, match="not fitted on atoms of the kind"):
        made().forecast(window(waters(2)), LAGS)
    drawing = Drawing(recordings, ["run_0"], replace(BATCH, observed=7), HIERARCHY)
    with pytest.raises(UsageError, match=r"more than batch\.observed"):
        SCINetTask(drawing, CONFIG)
    for wrong in ({"frames": 10}, {"kernel": 4}, {"dropout": 1.0}, {"hidden": 0}):
        with pytest.raises(UsageError, match=r"scinet\."):
            replace(CONFIG, **wrong)
    with pytest.raises(InputError):
        TrainedSCINet.load(tmp_path)
