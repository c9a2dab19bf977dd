"""Processes that die beside us: the others end with one sentence, and nothing is lost."""

from __future__ import annotations

import re
import signal
import socket
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

from undula.errors import MachineError
from undula.io import trajectory_child
from undula.io.trajectories import load_trajectory
from undula.learn.checkpoint import newest_checkpoint
from undula.motion.baselines import wavelet_arima


@pytest.mark.parametrize("victim", [0, 1])
def test_of_two_training_processes_the_other_ends_too(workplace, children, tmp_path, victim):
    out = tmp_path / "out"
    words = [*workplace.commands["train surface"](out), "--fit.steps=100000", "--fit.devices=2"]
    words += ["--fit.strategy=ddp", "--fit.evaluate_every=1000"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"TORCHELASTIC_RUN_ID": "one", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    both = [
        children.start(words, environment={**world, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    ]
    both[0].wait_until(lambda: len(list(out.glob("checkpoints/*/manifest.json"))) > 0)
    began = time.monotonic()
    both[victim].signal(signal.SIGKILL)
    ended = [child.wait() for child in both]
    assert time.monotonic() - began < 60
    assert ended[victim].code == -signal.SIGKILL
    assert ended[1 - victim].code == 4, ended[1 - victim].err
    assert "another process of the training in" in ended[1 - victim].err
    assert "Traceback" not in ended[1 - victim].err
    assert newest_checkpoint(out)[0].step > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_decoder_that_is_killed_is_not_the_files_fault(peptide, tmp_path, monkeypatch, number):
    script = tmp_path / "child.py"
    script.write_text(f"import os\nos.kill(os.getpid(), {int(number)})\n")
    monkeypatch.setattr(trajectory_child, "__file__", str(script))
    topology, run, _ = peptide
    with pytest.raises(MachineError, match=f"was killed by signal {int(number)}"):
        load_trajectory(topology, run)


def test_a_pool_that_loses_a_process_says_so(monkeypatch):
    def broken(*_):
        raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(wavelet_arima.ProcessPoolExecutor, "map", broken)
    config = wavelet_arima.WaveletArimaConfig(workers=2)
    with pytest.raises(MachineError, match="one of the 2 processes that fit ARIMA models was kill"):
        wavelet_arima._courses([np.zeros(8), np.zeros(8)], 2, config)


def test_a_training_whose_loss_is_not_finite_names_the_batch_and_keeps_the_last_checkpoint(
    workplace, children, tmp_path
):
    out = tmp_path / "out"
    words = [*workplace.commands["train surface"](out), "--fit.learning_rate=2e9"]
    words += ["--fit.checkpoint_every=1", "--fit.clip_norm=null"]
    first, again = children.run(words), children.run(words)
    assert first.code == again.code == 3, first.err
    step, seed = re.search(r"not finite at step (\d+) \(batch seed (\d+)\)", first.err).groups()
    assert f"step {step} (batch seed {seed})" in again.err
    assert newest_checkpoint(out)[0].step == int(step)
    assert not (out / "model.safetensors").exists()
