"""Damaged files of every kind: each is refused in one sentence, or read into finite numbers.

The same cases every time; ``make fuzz`` goes on for longer (`tests.fuzz.__main__`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.readers import READERS

ROOT = Path(__file__).parents[2]
GROUPS = {
    "structures": ("pdb", "gro", "mmcif", "gzip", "models", "mesh", "sequences", "ecod", "split"),
    "trajectories": ("xtc", "trr", "dcd"),
    "folders": ("fluid", "velocities", "recordings", "dataset", "checkpoint", "zip"),
    "models": ("mixture weights", "surface weights", "motion weights"),
    "forecasts": ("atoms forecast", "surface forecast", "training", "protocols"),
}


def test_every_reader_is_tried():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(READERS)


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_damaged_is_refused_in_one_sentence_or_read_into_finite_numbers(group):
    command = [sys.executable, "-m", "tests.fuzz", *GROUPS[group]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    faults = {name: said for one in told for name, said in one["faults"].items()}
    text = "\n\n".join(f'python -m tests.fuzz "{name}"\n{said}' for name, said in faults.items())
    assert not faults, f"{len(faults)} faults:\n\n{text}"
    assert done.returncode == 0, f"ended with {done.returncode} after {lines[-1:]}:\n{done.stderr}"
    for one in told:
        print(one)
        assert one["outcomes"].get("refused", 0) > 0
        # Fewer than one in a thousand damaged files (`tests.fuzz.cases.outcome`): none of these.
        assert one["reader"] != "xtc" or "turned" not in one["outcomes"]
    assert len(told) == len(GROUPS[group])


@pytest.mark.parametrize("name", [name for name in READERS if name != "training"])
def test_the_whole_input_is_read(name, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    READERS[name].make(tmp_path / "in")
    READERS[name].read(tmp_path / "in", tmp_path / "out")
