"""Promise 8: memory is estimated before the work and bounded by ``--memory-limit``.

Estimates and peaks are of whole processes, imports included; ``benchmarks/memory.py`` measures
them in fresh ones.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from undula.cli.main import main
from undula.estimates import memory_size

FACTOR = 1.5
ROOT = Path(__file__).parents[2]
RUN = f"""
import sys
from undula.cli.main import main
code = main(sys.argv[1:])
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from memory import peak_bytes
print("peak", peak_bytes())
sys.exit(code)
"""
QUICK = [
    ("surface", {"copies": 2, "spacing": 0.8, "times": 1, "samples": 2}),
    ("motion", {"side": 7, "times": 12, "samples": 0}),
    ("prepare", {"copies": 2, "frames": 2}),
    ("record", {"copies": 1, "frames": 6000}),
]


def benchmark() -> Any:
    found = importlib.util.spec_from_file_location("memory", ROOT / "benchmarks" / "memory.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


memory = benchmark()
LARGE = [(kind, case) for kind, cases in memory.CASES.items() for case in cases]


def undula(*words: str, **surroundings: Any) -> tuple[int, str, int]:
    """Run a command in a fresh process; return its exit code, what it said and its peak, bytes."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1"),
        **surroundings,
    )
    peak = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    return done.returncode, done.stderr, int(peak[1]) if peak else 0


def within(kind: str, case: dict[str, float]) -> None:
    found = memory.measured(kind, case)
    assert 1 / FACTOR < found["ratio"] < FACTOR, found


@pytest.mark.parametrize(("kind", "case"), QUICK, ids=[kind for kind, _ in QUICK])
def test_small_work_takes_what_was_estimated(kind, case):
    within(kind, case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "case"), LARGE, ids=[f"{k}-{n}" for n, (k, _) in enumerate(LARGE)]
)
def test_work_of_five_sizes_takes_what_was_estimated(kind, case):
    within(kind, case)


def served(structure: Path, out: Path, limit: str, *options: str) -> float:
    """Forecast within a limit as the refusal says; return the spacing that was named."""
    began = time.perf_counter()
    words = ["forecast", str(structure), "--time", "100", "--memory-limit", limit, *options]
    code, said, peak = undula(*words, "-o", str(out), "--spacing", "0.4")
    assert code == 4, said
    assert "Traceback" not in said
    assert said.count("\n") == 1
    assert not out.exists()
    assert peak < memory_size(limit)
    assert time.perf_counter() - began < 120
    named = re.search(r"are allowed; a spacing of (\d\.?\d*) Å fits$", said.strip())
    assert named is not None, said
    code, said, peak = undula(*words, "-o", str(out), "--spacing", named[1])
    assert code == 0, said
    assert said.startswith("estimate: ")
    assert peak < memory_size(limit)
    return float(named[1])


def test_a_structure_too_large_for_its_spacing_is_refused_with_the_one_that_fits(tmp_path):
    assert memory.tiled(4, tmp_path / "tiles.cif") == 1180
    words = ["forecast", str(tmp_path / "tiles.cif"), "--time", "1", "-o", str(tmp_path / "out")]
    _, said, _ = undula(*words, "--memory-limit", "1MiB")
    alone = re.search(r"undula alone takes (\d+) MiB$", said.strip())
    assert alone is not None, said
    limit = f"{int(alone[1]) + 150}MiB"
    found = served(tmp_path / "tiles.cif", tmp_path / "out", limit, "--samples", "0")
    assert 0.4 < found < 2


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_200_000_atoms_work_within_4_gib_at_the_spacing_that_is_named(tmp_path):
    assert memory.tiled(680, tmp_path / "tiles.cif") > 200_000
    assert served(tmp_path / "tiles.cif", tmp_path / "out", "4GiB") <= 2
    code, said, peak = undula("inspect", str(tmp_path / "tiles.cif"))
    assert code == 0, said
    assert peak < 2**31


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
def test_what_the_process_may_address_is_a_limit_too(tmp_path):
    import resource

    code, said, _ = undula(
        "forecast",
        str(ROOT / "src/undula/data/bundled/villin/1vii_A.pdb"),
        *("--time", "0:100:1", "--spacing", "0.2", "-o", str(tmp_path / "out")),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30)),
    )
    assert code == 4, said
    assert "Traceback" not in said
    assert "fits" in said


VERBS = (
    *("forecast", "forecast atoms", "prepare", "prepare atoms"),
    *("train surface", "train any", "train motion", "evaluate"),
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_that_works_hard_obeys_a_limit(verb, workplace, tmp_path, capsys):
    place, out = workplace.folder, tmp_path / "out"
    given = [str(place / name) for name in ("peptide.pdb", "run.pdb")]
    words = {
        "prepare atoms": ["prepare", "atoms", *given, "-o", str(out)],
        "train any": ["train", "--data", f'["{place / "surface"}"]', "--out", str(out)],
        "evaluate": ["evaluate", str(tmp_path / "result"), "--truth", given[1]],
    }
    if verb == "evaluate":
        assert main(workplace.commands["forecast"](tmp_path / "result")) == 0
        capsys.readouterr()
    chosen = words[verb] if verb in words else workplace.commands[verb](out)
    assert main([*chosen, "--memory-limit", "1MiB"]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "1 MiB are allowed; " in said
    assert not out.exists()


def test_a_limit_that_is_none_gets_one_sentence(tmp_path, capsys):
    structure = ROOT / "src/undula/data/bundled/villin/1vii_A.pdb"
    words = ["forecast", str(structure), "--time", "1", "-o", str(tmp_path / "out")]
    assert main([*words, "--memory-limit", "plenty"]) == 2
    assert "a number with MiB, GiB, MB or GB" in capsys.readouterr().err
