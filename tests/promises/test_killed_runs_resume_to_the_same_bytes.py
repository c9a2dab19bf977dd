"""Promise 2: a run that was killed at any moment goes on and ends with the same bytes.

Every file is compared, and none may be left over. No result of these commands holds a time; of
those that others write, ``times.json`` of a study does, and nothing else.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tests.children import THREADS
from tests.faults import files

SEEDS = {
    "prepare": 4,
    "prepare atoms": 4,
    "train surface": 4,
    "train motion": 3,
    "forecast": 3,
    "forecast atoms": 2,
}
"""Kills of each command; twenty in all."""


@pytest.mark.parametrize(
    ("name", "seed"), [(name, seed) for name, count in SEEDS.items() for seed in range(count)]
)
def test_a_command_killed_at_a_random_operation_ends_with_the_same_bytes(
    workplace, children, undisturbed, tmp_path, name, seed
):
    out, whole = tmp_path / "out", undisturbed(name)
    words = workplace.commands[name](out)
    at = random.Random(f"{name} {seed}").randint(1, whole.operations)
    killed = children.run(words, folder=str(out), kill_at=at)
    assert killed.code == -signal.SIGKILL, killed.err
    ended = children.run(words)
    assert ended.code == 0, ended.err
    assert files(out) == whole.files


def test_a_training_killed_again_and_again_ends_with_the_same_bytes(
    workplace, children, undisturbed, tmp_path
):
    out, whole = tmp_path / "out", undisturbed("train surface")
    words, generator = workplace.commands["train surface"](out), random.Random(1)
    codes = []
    for _ in range(4):
        at = generator.randint(1, whole.operations // 3)
        codes.append(children.run(words, folder=str(out), kill_at=at).code)
    assert codes.count(-signal.SIGKILL) >= 3
    assert children.run(words).code == 0
    assert files(out) == whole.files


@pytest.mark.parametrize(
    ("name", "sign"), [("prepare", "run/shard-0000.json"), ("train surface", "checkpoints")]
)
def test_a_real_process_killed_by_the_clock_ends_with_the_same_bytes(
    workplace, children, undisturbed, tmp_path, name, sign
):
    out = tmp_path / "out"
    words = workplace.commands[name](out)
    process = subprocess.Popen(
        [sys.executable, "-m", "undula", *words],
        env={**os.environ, **THREADS},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while not (out / sign).exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(random.Random(name).uniform(0, 0.03))
    process.kill()
    assert process.wait() in (-signal.SIGKILL, 0)
    assert children.run(words).code == 0
    assert files(out) == undisturbed(name).files


@pytest.mark.parametrize("part", [0.2, 0.7])
def test_a_forecast_killed_on_its_way_over_an_earlier_one_passes_for_neither(
    workplace, children, undisturbed, tmp_path, part
):
    out, whole = tmp_path / "out", undisturbed("forecast atoms")
    words = workplace.commands["forecast atoms"](out)
    assert children.run([*words, "--samples=3", "--time=0.1,0.3,0.4"]).code == 0
    at = int(part * whole.operations)
    killed = children.run(words, folder=str(out), kill_at=at)
    assert killed.code == -signal.SIGKILL
    left = files(out)
    assert left.get("forecast.json", whole.files["forecast.json"]) == whole.files["forecast.json"]
    assert "sample-03.xtc" not in left
    assert children.run(words).code == 0
    assert files(out) == whole.files
