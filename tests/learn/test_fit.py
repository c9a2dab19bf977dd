import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from undula import atomic
from undula.errors import InputError, MachineError, UsageError
from undula.learn.checkpoint import checkpoint_place, load_weights
from undula.learn.fit import DivergedError, fit
from undula.learn.interruption import Interrupted
from undula.learn.progress import SilentProgress
from undula.learn.recipe import FitConfig, batch_seed
from undula.learn.task import ParameterGroup

AVERAGED = {"ema_decay": 0.9, "clip_norm": 1.0, "keep": "best", "monitor": "error"}


def outcome(folder: Path) -> dict[str, bytes]:
    """Return every file that a finished run must have in common with its repetition."""
    last = checkpoint_place(folder, 20)
    files = [folder / "weights.safetensors", folder / "history.json", *sorted(last.iterdir())]
    return {
        path.name + path.parent.name * (path.parent != folder): path.read_bytes() for path in files
    }


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def whole(line, base_settings, tmp_path_factory):
    """Return what an uninterrupted run ends with, for some changes of the settings."""
    known = {}

    def of(**changes) -> dict[str, bytes]:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            config = FitConfig(**{**base_settings, **changes})
            fit(line(), config, folder, progress=SilentProgress())
            known[key] = outcome(folder)
        return known[key]

    return of


class Killed(BaseException):
    """Stands for kill -9: no handler of ours may tidy up after it."""


def raise_at(wanted: int, what):
    def at_step(step: int) -> None:
        if step == wanted:
            what()

    return at_step


def kill() -> None:
    raise Killed


def test_learns_a_line(line, train, tmp_path):
    task = line()
    result = train(task, tmp_path, steps=300, evaluate_every=100, checkpoint_every=100)
    first = json.loads((tmp_path / "history.json").read_text())["validation"][0]
    assert first["step"] == 0
    assert result.metrics["error"] < 0.3 * first["error"]
    assert result.step == 300


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(line, train, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(line(), tmp_path / name, {"seed": 0}, seed=seed, **AVERAGED)
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    names = "weights.safetensors"
    assert outcome(tmp_path / "a")[names] != outcome(tmp_path / "c")[names]


@pytest.mark.parametrize("settings", [{}, AVERAGED, {"micro_batches": 2}])
@pytest.mark.parametrize("step", [0, 3, 4, 11, 19])
def test_a_killed_run_ends_with_the_same_bytes(line, train, tmp_path, whole, step, settings):
    with pytest.raises(Killed):
        train(line(at_step=raise_at(step, kill)), tmp_path / "killed", **settings)
    torch.manual_seed(99)
    train(line(), tmp_path / "killed", **settings)
    assert outcome(tmp_path / "killed") == whole(**settings)


def test_a_run_killed_within_any_write_ends_with_the_same_bytes(
    line, train, tmp_path, whole, monkeypatch
):
    write, writes = atomic.write, 0
    folder = tmp_path / "killed"

    def fail(path, content):
        nonlocal writes
        writes += 1
        if writes % 7 == 0:
            raise Killed
        return write(path, content)

    monkeypatch.setattr(atomic, "write", fail)
    kills = 0
    while not (folder / "weights.safetensors").exists():
        try:
            train(line(), folder, **AVERAGED)
        except Killed:
            kills += 1
    assert kills >= 4
    assert outcome(folder) == whole(**AVERAGED)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_drops_the_step_stores_what_is_finished_and_raises(
    line, train, tmp_path, whole, recorder, number, code
):
    before = signal.getsignal(number)
    task = line(at_step=raise_at(6, lambda: signal.raise_signal(number)))
    with pytest.raises(Interrupted, match="stopped at step 6") as caught:
        train(task, tmp_path / "stopped", **AVERAGED)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) == before
    assert (checkpoint_place(tmp_path / "stopped", 6) / "manifest.json").exists()
    assert recorder.events[-1] == ("stopped", None)
    result = train(line(), tmp_path / "stopped", **AVERAGED)
    assert "training-resumed" in {notice.code for notice in result.notices}
    assert outcome(tmp_path / "stopped") == whole(**AVERAGED)


@pytest.mark.parametrize("settings", [{}, AVERAGED])
@pytest.mark.parametrize("step", [0, 5, 20])
def test_a_signal_breaks_off_an_evaluation_which_is_made_up_for(
    line, train, tmp_path, whole, step, settings
):
    task, evaluations = line(), []

    def stop_once() -> None:
        evaluations.append(5 * len(evaluations))
        if evaluations[-1] == step:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the evaluation went on")

    task.at_evaluation = stop_once
    with pytest.raises(Interrupted, match=f"stopped at step {step};"):
        train(task, tmp_path / "stopped", **settings)
    train(line(), tmp_path / "stopped", **settings)
    assert outcome(tmp_path / "stopped") == whole(**settings)


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_result(
    line, train, tmp_path, whole, recorder
):
    with pytest.raises(Killed):
        train(line(at_step=raise_at(18, kill)), tmp_path / "hurt", **AVERAGED)
    newest = max((tmp_path / "hurt" / "checkpoints").iterdir())
    path = newest / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    train(line(), tmp_path / "hurt", **AVERAGED)
    assert "checkpoint-damaged" in recorder.of("noticed")
    assert outcome(tmp_path / "hurt") == whole(**AVERAGED)


def test_a_finished_run_is_not_trained_again(line, train, tmp_path, recorder):
    train(line(), tmp_path)
    before = outcome(tmp_path)
    recorder.events.clear()
    train(line(seed=5), tmp_path)
    assert recorder.of("advanced") == []
    assert outcome(tmp_path) == before


@pytest.mark.parametrize(
    ("settings", "configuration", "words"),
    [
        (
            {"learning_rate": 2e-2},
            {"model": {"width": 8}},
            r"fit\.learning_rate = 0\.01, now .*0\.02",
        ),
        ({}, {"model": {"width": 9}}, r"task\.model\.width = 8, now it is 9"),
        ({}, {"model": {"width": 8, "depth": 1}}, r"task\.model\.depth = 'nothing'"),
    ],
)
def test_does_not_resume_with_another_configuration(
    line, train, tmp_path, settings, configuration, words
):
    train(line(), tmp_path, {"model": {"width": 8}})
    before = outcome(tmp_path)
    with pytest.raises(UsageError, match=words):
        train(line(), tmp_path, configuration, **settings)
    assert outcome(tmp_path) == before


def test_does_not_resume_with_another_architecture(line, train, tmp_path):
    train(line(), tmp_path)
    task = line()
    task.module["codes"] = torch.nn.Embedding(2, 1)
    with pytest.raises(InputError, match=r"another architecture: tensor 'codes\.weight'"):
        train(task, tmp_path)


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    line, train, tmp_path, spoil
):
    class Spoilt(line):
        def loss(self, batch, step):
            loss, parts = super().loss(batch, step)
            if step == 10:
                weight = self.module["codes"].weight.sum()
                zero = (weight - weight.detach()).abs()
                loss = loss * math.nan if spoil == "loss" else loss + zero.sqrt()
            return loss, parts

    with pytest.raises(DivergedError, match=rf"step 10 \(batch seed {batch_seed(0, 10)}\)"):
        train(Spoilt(), tmp_path)
    tensors, _ = load_weights(checkpoint_place(tmp_path, 8) / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert not (tmp_path / "weights.safetensors").exists()


def test_the_schedule_really_changes_the_rate_and_the_groups_have_their_factors(
    line, train, tmp_path, monkeypatch
):
    used = []
    step = torch.optim.AdamW.step

    def watched(self, *arguments, **keywords):
        used.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    result = train(line(), tmp_path, schedule="halving", halve_every=5, record_every=1)
    expected = [0.01 * 0.5 ** (k // 5) for k in range(20)]
    assert [network for network, _ in used] == pytest.approx(expected)
    assert [codes for _, codes in used] == pytest.approx([10 * rate for rate in expected])
    recorded = [record["learning_rate"] for record in result.history["training"]]
    assert recorded == pytest.approx(expected)


def test_a_smaller_rate_takes_smaller_steps(line, train, tmp_path):
    moved = []
    for rate in (1e-2, 1e-3):
        task = line()
        start = task.module["network"][0].weight.detach().clone()
        train(task, tmp_path / str(rate), learning_rate=rate, steps=2)
        moved.append((task.module["network"][0].weight - start).abs().mean().item())
    assert moved[0] == pytest.approx(10 * moved[1], rel=0.2)


def test_gradients_do_not_pile_up(line, train, tmp_path):
    class Constant(line):
        def loss(self, batch, step):
            return self.module["codes"].weight.sum(), {}

    result = train(Constant(), tmp_path, record_every=1)
    norms = [record["gradient_norm"] for record in result.history["training"]]
    assert norms == pytest.approx([1.0] * 20)


def test_micro_batches_average_their_losses(line, train, tmp_path):
    class Drawn(line):
        def batch(self, step, generator):
            return torch.rand(1, generator=generator)

        def loss(self, batch, step):
            return (batch * self.module["codes"].weight).sum(), {"drawn": batch.sum()}

    result = train(Drawn(), tmp_path, micro_batches=3, steps=1, record_every=1)
    drawn = [
        torch.rand(1, generator=torch.Generator().manual_seed(batch_seed(0, 0, 0, part))).item()
        for part in range(3)
    ]
    record = result.history["training"][0]
    assert record["gradient_norm"] == pytest.approx(sum(drawn) / 3)
    assert record["loss.drawn"] == pytest.approx(sum(drawn) / 3)


def test_weight_decay_shrinks_weights_that_nothing_pulls_at(line, train, tmp_path):
    class Still(line):
        def loss(self, batch, step):
            return 0 * sum(p.sum() for p in self.module.parameters()), {}

    task = Still()
    before = task.module["network"][0].weight.detach().clone()
    train(task, tmp_path, weight_decay=0.5, schedule="constant", steps=1)
    torch.testing.assert_close(task.module["network"][0].weight.detach(), before * (1 - 0.5e-2))


def test_clipping_bounds_the_gradient_but_records_its_length(line, train, tmp_path):
    moved, lengths = {}, {}
    for longest in (None, 1e-12):
        task = line()
        start = task.module["network"][0].weight.detach().clone()
        result = train(task, tmp_path / str(longest), clip_norm=longest, steps=1, record_every=1)
        moved[longest] = (task.module["network"][0].weight - start).abs().max().item()
        lengths[longest] = result.history["training"][0]["gradient_norm"]
    assert moved[1e-12] < 1e-3 * moved[None]
    assert lengths[1e-12] == lengths[None] > 1e-3


def test_keeps_the_best_weights_and_not_the_last(line, train, tmp_path):
    task = line()
    measures = iter([3.0, 2.0, math.nan, 4.0, 2.0, 5.0])
    task.evaluate = lambda: {"error": next(measures)}
    result = train(task, tmp_path, steps=25, keep="best", monitor="error")
    assert result.step == 5
    assert result.metrics == {"error": 2.0}
    kept = sorted(int(place.name) for place in (tmp_path / "checkpoints").iterdir())
    assert kept == [5, 24, 25]
    tensors, metadata = load_weights(result.weights)
    assert metadata["step"] == 5
    torch.testing.assert_close(dict(task.module.state_dict()), tensors, rtol=0, atol=0)
    assert result.history["validation"][2]["error"] is None


def test_more_can_be_better(line, train, tmp_path):
    task = line()
    measures = iter([3.0, 2.0, 4.0, 1.0, 2.0])
    task.evaluate = lambda: {"iou": next(measures)}
    assert train(task, tmp_path, keep="best", monitor="iou", minimise=False).step == 10


def test_evaluates_and_keeps_the_averaged_weights(line, train, tmp_path):
    task, seen = line(), []
    code = task.module["codes"].weight
    task.evaluate = lambda: seen.append(code.item()) or {"error": 1.0}
    result = train(task, tmp_path, ema_decay=0.9)
    last = checkpoint_place(tmp_path, 20)
    raw, _ = load_weights(last / "weights.safetensors")
    average, _ = load_weights(last / "average.safetensors")
    final, _ = load_weights(result.weights)
    torch.testing.assert_close(final, average, rtol=0, atol=0)
    assert seen[-1] == average["codes.weight"].item() != raw["codes.weight"].item()


def test_finds_out_before_the_first_step_that_the_folder_cannot_be_written(
    line, train, tmp_path, recorder
):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        train(line(), tmp_path / "file" / "run")
    assert recorder.events == []


def test_names_the_nearest_measure(line, train, tmp_path):
    with pytest.raises(UsageError, match=r"no 'eror'; the nearest is 'error'"):
        train(line(), tmp_path, keep="best", monitor="eror")


def test_every_parameter_needs_exactly_one_group(line, train, tmp_path):
    task = line()
    network = ParameterGroup(name="n", parameters=list(task.module["network"].parameters()))
    task.parameter_groups = lambda: [network]
    with pytest.raises(ValueError, match=r"exactly one group; look at codes\.weight"):
        train(task, tmp_path)


def test_says_what_happens(line, train, tmp_path, recorder):
    train(line(), tmp_path)
    assert recorder.events[0] == ("started", 0)
    assert recorder.of("advanced") == list(range(1, 21))
    assert recorder.of("evaluated") == [0, 5, 10, 15, 20]
    assert recorder.events[-1] == ("stopped", None)


def test_trains_in_bfloat16(line, train, tmp_path):
    task = line()
    result = train(task, tmp_path, precision="bf16-mixed")
    assert all(math.isfinite(record["loss"]) for record in result.history["training"])
    assert task.module["network"][0].weight.dtype == torch.float32


SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from conftest import SETTINGS, Line
    from undula.learn.fit import fit
    from undula.learn.recipe import FitConfig
    from undula.learn.interruption import Interrupted
    from undula.learn.progress import progress_on
    import os, signal

    def at_step(step):
        if step == {at}:
            os.kill(os.getpid(), signal.{name})

    settings = SETTINGS | {changes!r}
    try:
        config, folder = FitConfig(**settings), Path({folder!r})
        fit(Line(at_step=at_step), config, folder, progress=progress_on(sys.stderr))
    except Interrupted as stop:
        sys.exit(stop.exit_code)
    """
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_process_that_is_stopped_ends_with_the_same_bytes(
    line, train, tmp_path, whole, name, code
):
    folder = tmp_path / "stopped"
    values = {"tests": str(Path(__file__).parent), "at": 13, "name": name, "changes": {}}
    script = SCRIPT.format(folder=str(folder), **values)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "step 0/20" in done.stderr
    train(line(), folder)
    assert outcome(folder) == whole()


@pytest.mark.slow
def test_two_processes_see_different_data_and_end_with_one_model(line, tmp_path):
    changes = {"devices": 2, "strategy": "ddp", "steps": 40}
    values = {"tests": str(Path(__file__).parent), "at": -1, "name": "SIGTERM", "changes": changes}
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(folder=str(tmp_path / "two"), **values))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    done = subprocess.run([*launcher, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = fit(
        line(),
        FitConfig(steps=40, learning_rate=1e-2, accelerator="cpu"),
        tmp_path / "one",
        progress=SilentProgress(),
    )
    both, metadata = load_weights(tmp_path / "two" / "weights.safetensors")
    alone, _ = load_weights(one.weights)
    assert metadata["configuration"]["processes"] == 2
    assert not torch.equal(both["network.0.weight"], alone["network.0.weight"])
    assert metadata["metrics"]["error"] < 1.0
