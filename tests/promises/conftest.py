"""What the promises are kept with: tiny inputs, their commands, and processes to kill."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from tests.children import Children, Ended
from tests.data.fixed_point import swinging, write_fluid
from tests.faults import files
from tests.motion.small_systems import argon
from tests.promises.verbs import Ended as Watched
from tests.promises.verbs import watched

from undula.atomic import sha256
from undula.data.bundled import villin
from undula.io.atom_export import write_pdb

EDGE, STEP = 20.0, 0.1
SURFACE = """
preset: dsr
protein:
  model:
    network: {depth: 2, width: 16, skip_at: 1, harmonics: solid, degree: 1}
    latent: 2
  batch: {frames: 1, surface: 16, pool: 32}
fit: {steps: 8, warmup_steps: 0, checkpoint_every: 2, evaluate_every: 4, record_every: 2,
      accelerator: cpu}
"""
MOTION = """
preset: argon
mixture: null
protein: null
motion:
  model:
    encoder: {features: 4, layers: 1, cutoff: 6.0, neighbours: 4, oldest: 4, latent: 2, heads: 2}
    levels: {horizon: 8, strides: [4, 1], layers: 1, solver: {steps: 1}}
  batch: {observed: 6, windows: 1, near: 2, segments: 1, times: 1, fitted_windows: 4}
fit: {steps: 4, evaluate_every: 2, checkpoint_every: 1, accelerator: cpu}
"""
SPACE = """
name: tiny
space: {rate: {keys: [fit.learning_rate], low: 0.0001, high: 0.01, log: true}}
set:
  mixture:
    batch: {points: 16, proteins: 1, frames: 1}
    model: {gate: {experts: 2}, cloud: {spacing: 3.0}}
"""


@dataclass(frozen=True)
class Workplace:
    """A folder with inputs, data sets and models.

    Attributes:
        folder: All of it.
        commands: Name → the words of a command, given its output folder.
    """

    folder: Path
    commands: dict[str, Callable[[Path], list[str]]]


@pytest.fixture(scope="session")
def workplace(children: Children, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Prepare and train once what the commands need."""
    place = tmp_path_factory.mktemp("workplace")
    topology, trajectory, _ = villin()
    frames = mdtraj.load(str(trajectory), top=str(topology))
    few = frames.atom_slice(frames.topology.select("resid < 6 and element != H"))
    few[0].save_pdb(str(place / "peptide.pdb"))
    # Several models in a PDB file: read without the process that decodes XTC, which takes a second.
    few[:12].save_pdb(str(place / "run.pdb"))
    write_fluid(place / "box.npz", *swinging(30, 30, 0))
    inside = swinging(8, 0, 1)[0] % (EDGE / 10)
    box = EDGE * torch.eye(3, dtype=torch.float64)
    write_pdb(place / "argon.pdb", argon(8), torch.from_numpy(inside[:1] * 10), box=box)
    _write_trr(place / "seen.trr", inside)
    text = {"surface": SURFACE, "motion": MOTION}
    commands = {
        "prepare": lambda out: [
            *["prepare", *_paths(place, "peptide.pdb", "run.pdb")],
            *["-o", str(out), "--spacing", "2"],
        ],
        "prepare atoms": lambda out: [
            *["prepare", "atoms", str(place / "box.npz"), "-o", str(out)],
        ],
        **{
            f"train {kind}": lambda out, kind=kind: [
                *["train", str(place / f"{kind}.yaml")],
                *["--data", f'["{place / kind}"]', "--out", str(out)],
            ]
            for kind in text
        },
        "forecast": lambda out: [
            *["forecast", str(place / "peptide.pdb"), "--model", str(place / "surface run")],
            *["--time", "1:2:1", "--spacing", "3", "--formats", "html,ply", "-o", str(out)],
        ],
        "forecast atoms": lambda out: [
            *["forecast", str(place / "argon.pdb"), "--window", str(place / "seen.trr")],
            *["--model", str(place / "motion run"), "--time", "0.2,0.4", "--samples", "2"],
            *["--formats", "html,xtc,pdb", "-o", str(out)],
        ],
    }
    for kind, content in text.items():
        (place / f"{kind}.yaml").write_text(content)
    for name, made in (
        ("prepare", "surface"),
        ("prepare atoms", "motion"),
        ("train surface", "surface run"),
        ("train motion", "motion run"),
    ):
        ended = children.run(commands[name](place / made))
        assert ended.code == 0, ended.err
    return Workplace(place, commands)


@dataclass(frozen=True)
class Undisturbed:
    """What a command does when nothing fails.

    Attributes:
        ended: The process, with all its operations.
        files: What it leaves: place → SHA-256.
        versions: Place → SHA-256 of whatever stood there for a while.
    """

    ended: Ended
    files: dict[str, str]
    versions: dict[str, set[str]]

    @property
    def operations(self) -> int:
        """How many operations on files there are."""
        return sum(name != "memory" for name, _ in self.ended.fault["told"])

    @property
    def allocations(self) -> int:
        """How many allocations."""
        return len(self.ended.fault["told"]) - self.operations


@pytest.fixture(scope="session")
def undisturbed(
    workplace: Workplace, children: Children, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """Return what a command does, once for all tests."""

    @cache
    def of(name: str) -> Undisturbed:
        out = tmp_path_factory.mktemp("undisturbed") / "out"
        ended = children.run(workplace.commands[name](out), folder=str(out))
        assert ended.code == 0, ended.err
        versions = {place: set(found) for place, found in ended.fault["versions"].items()}
        return Undisturbed(ended, files(out), versions)

    return of


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Return the process that forks others."""
    server = Children(tmp_path_factory.mktemp("children"))
    yield server
    server.close()


def _write_trr(path: Path, positions_nm: np.ndarray) -> None:
    """Write frames in the box of the argon."""
    count = len(positions_nm)
    edges = np.broadcast_to(EDGE / 10 * np.eye(3), (count, 3, 3))
    with mdtraj.formats.TRRTrajectoryFile(str(path), "w") as file:
        file.write(
            *(part.astype("f4") for part in (positions_nm, STEP * np.arange(count))),
            np.arange(count),
            edges.astype("f4"),
        )


def _paths(folder: Path, *names: str) -> list[str]:
    return [str(folder / name) for name in names]


@dataclass(frozen=True)
class EveryVerb:
    """What was left when every command had run once.

    Attributes:
        ended: Codes, what was said, and uses of a network.
        words: The commands.
        before: Everything in the folder of inputs before: place → change time, SHA-256.
        after: The same afterwards.
    """

    ended: Watched
    words: list[list[str]]
    before: dict[str, tuple[int, str]]
    after: dict[str, tuple[int, str]]


@pytest.fixture(scope="session")
def every_verb(
    workplace: Workplace, children: Children, tmp_path_factory: pytest.TempPathFactory
) -> EveryVerb:
    """Run every command but a fetch on the inputs of the workplace, its outputs elsewhere."""
    place, given = tmp_path_factory.mktemp("every-verb"), workplace.folder

    def words(verb: str, *names: str, out: str = "") -> list[str]:
        found = [str(given / name) if (given / name).exists() else name for name in names]
        return [*verb.split(), *found, *(["-o", str(place / out)] if out else [])]

    (given / "two.fasta").write_text(">a\nACDEFGHIKL\n>b\nMNPQRSTVWY\n")
    (given / "peptide.pdb.gz").write_bytes(gzip.compress((given / "peptide.pdb").read_bytes()))
    mdtraj.load(str(given / "run.pdb")).save_xtc(str(given / "run.xtc"))
    _write_trr(given / "later.trr", swinging(12, 0, 1)[0] % (EDGE / 10))
    runs = ["--truth", "run.pdb", "--samples", "200"]
    commands = [
        *(made(place / name.replace(" ", "-")) for name, made in workplace.commands.items()),
        words("inspect", "peptide.pdb.gz", "run.pdb", "surface", "motion", "surface run"),
        words("inspect", "run.xtc", "--topology", "peptide.pdb"),
        words("prepare", "peptide.pdb", "run.xtc", "--spacing", "2", out="xtc"),
        words("prepare static", "peptide.pdb", "--frames", "3", out="static"),
        words("evaluate", str(place / "forecast"), *runs, "--spacing", "2"),
        words("evaluate", str(place / "forecast-atoms"), "--truth", "later.trr"),
        words("show", str(place / "forecast"), out="page.html"),
        words("show", str(place / "forecast-atoms"), out="atoms.html"),
        words("data list"),
        words("data verify", "surface", "motion"),
        [*words("data split", "two.fasta", "--program", "undula", out="split.json"),
         *("--counts", "1", "0", "1")],
        words("models verify", "any"),
        words("doctor"),
        words("demo", out="demo"),
    ]  # fmt: skip
    if importlib.util.find_spec("openmm") and importlib.util.find_spec("pdbfixer"):
        simulated = ("argon", "--preset", "tiny", "--frames", "6", "--trajectories", "1")
        commands.append(words("simulate", *simulated, "--platform", "CPU", out="simulated"))
    if importlib.util.find_spec("optuna"):
        (given / "space.yaml").write_text(SPACE)
        names = ("one", "two", "three")
        for name in names:
            (given / f"{name}.pdb").write_bytes((given / "peptide.pdb").read_bytes())
        three = _paths(given, *(f"{name}.pdb" for name in names))
        made = ["prepare", "static", *three, "-o", str(given / "sets"), "--frames", "3"]
        assert children.run(made).code == 0
        sets = [f"sets/{name}" for name in names]
        few = ["--validation", "three", "--trials", "1", "--steps", "1"]
        commands.append(words("sweep", "space.yaml", "--data", *sets, *few, out="sweep"))
    before = states(given)
    ended = watched(commands, place)
    return EveryVerb(ended, commands, before, states(given))


def states(folder: Path) -> dict[str, tuple[int, str]]:
    """Return when everything in a folder was changed, and its SHA-256."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mtime_ns,
            sha256(path) if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
    }
