"""SIGINT and SIGTERM: exit 130 or 143 within 5 s, what is finished stays, how to go on is said."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tests.faults import files, torn

from undula.learn.checkpoint import newest_checkpoint

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
LIMIT_S = 5.0


@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    "name", ["prepare", "prepare atoms", "train surface", "forecast", "forecast atoms"]
)
def test_a_signal_during_a_write_leaves_whole_files_and_the_command_to_go_on(
    workplace, children, undisturbed, tmp_path, name, number
):
    out, whole = tmp_path / "out", undisturbed(name)
    words = workplace.commands[name](out)
    at = random.Random(f"{name} {number}").randint(5, whole.operations - 5)
    ended = children.run(words, folder=str(out), kill_at=at, kill_by=number)
    assert ended.code == CODES[number], ended.err
    assert "Traceback" not in ended.err
    assert "undula: the same command goes on: undula prepare" in ended.err or name[:7] != "prepare"
    assert not torn(out, whole.versions)
    assert not list(out.rglob(".undula-*"))
    if name.startswith("train"):
        assert newest_checkpoint(out)[0] is not None
    assert children.run(words).code == 0
    assert files(out) == whole.files


@pytest.mark.parametrize("number", CODES)
def test_a_training_stops_soon_with_a_checkpoint_of_where_it_was(
    workplace, children, tmp_path, number
):
    out = tmp_path / "out"
    words = [*workplace.commands["train surface"](out), "--fit.steps=100000"]
    child = children.start([*words, "--fit.checkpoint_every=1000", "--fit.record_every=1"])
    child.wait_until(lambda: (out / "checkpoints").exists() or (out / "history.json").exists())
    time.sleep(0.2)
    began = time.monotonic()
    child.signal(number)
    ended = child.wait()
    assert time.monotonic() - began < LIMIT_S
    assert ended.code == CODES[number], ended.err
    assert "undula: the same command goes on: undula train" in ended.err
    found, _ = newest_checkpoint(out)
    assert f"stopped at step {found.step};" in ended.err
    assert found.step == len(found.state["position"]["history"]["training"])


STUCK = """
import hashlib, sys
from undula.cli.stopping import Stopped, stoppable
try:
    with stoppable(limit_s={limit}):
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)  # minutes outside Python
except Stopped:
    sys.exit(1)
"""


def stuck(limit: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK.format(limit=limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)  # from the print into the compiled code
    return process


def test_a_process_deep_in_compiled_code_ends_when_the_limit_is_over():
    process = stuck(0.3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    assert said == "undula: stopped at once; finished files are whole\n"


def test_the_second_signal_ends_it_at_once_but_an_echo_of_the_first_does_not():
    process = stuck(60)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143


def test_handlers_are_given_back():
    from undula.cli.stopping import Stopped, stoppable

    before = [signal.getsignal(number) for number in CODES]
    with pytest.raises(Stopped) as caught, stoppable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.signal_number == signal.SIGTERM
    assert [signal.getsignal(number) for number in CODES] == before
    assert signal.set_wakeup_fd(-1) == -1
