"""Estimated against measured peaks of memory, in fresh processes of five sizes each.

    python benchmarks/memory.py [surface] [motion] [prepare] [record]

The structures are copies of villin side by side, the liquids lattices of argon that tremble. A
peak is the largest resident set of a process that does nothing else, imports included; the
estimate is made within that process just before the work, as the commands do. The constants of
`undula.surface.estimates`, `undula.motion.estimates` and `undula.data.estimates` were fitted to
what is printed here: "added" is what the work takes beyond what was held when it began.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

CASES: dict[str, list[dict[str, float]]] = {
    "surface": [
        {"copies": 1, "spacing": 1.0, "times": 2, "samples": 0},
        {"copies": 4, "spacing": 1.0, "times": 1, "samples": 8},
        {"copies": 16, "spacing": 1.0, "times": 1, "samples": 8},
        {"copies": 16, "spacing": 0.7, "times": 1, "samples": 0},
        {"copies": 64, "spacing": 2.0, "times": 2, "samples": 8},
    ],
    "motion": [
        {"side": 5, "times": 4, "samples": 0},
        {"side": 6, "times": 64, "samples": 4},
        {"side": 9, "times": 16, "samples": 0},
        {"side": 12, "times": 8, "samples": 2},
        {"side": 16, "times": 10, "samples": 0},
    ],
    "prepare": [
        {"copies": 1, "frames": 10},
        {"copies": 1, "frames": 12_000, "stride": 1000, "read": 12},
        {"copies": 4, "frames": 10},
        {"copies": 16, "frames": 4},
        {"copies": 32, "frames": 10},
    ],
    "record": [
        {"copies": 1, "frames": 20},
        {"copies": 1, "frames": 5000},
        {"copies": 1, "frames": 20_000},
        {"copies": 4, "frames": 5000},
        {"copies": 16, "frames": 6000},
    ],
}
GAP = 3.5
"""Between the boxes around neighbouring copies, Å."""


def tiled(copies: int, path: Path) -> int:
    """Write copies of villin's heavy atoms side by side, each a chain; return their atoms."""
    import gemmi

    from undula.data.bundled import villin
    from undula.geometry.frames import own_axes
    from undula.io.structures import load_structure

    one = load_structure(villin()[0])
    centred = one.positions.double() - one.positions.double().mean(dim=0)
    places = (centred @ own_axes(centred)).numpy()
    step = np.ptp(places, axis=0) + GAP
    side = (copies * float(np.prod(step))) ** (1 / 3)
    wide, deep = (max(1, round(side / length)) for length in step[:2])
    model = gemmi.Model("1")
    for copy in range(copies):
        level, rest = divmod(copy, wide * deep)
        shift = step * np.array([*divmod(rest, deep), level])
        chain = gemmi.Chain(f"{copy:x}")
        for number in np.unique(one.residue_index):
            rows = np.nonzero(one.residue_index == number)[0]
            residue = gemmi.Residue()
            residue.name = str(one.residue_names[rows[0]])
            residue.seqid = gemmi.SeqId(int(number) + 1, " ")
            for row in rows:
                atom = gemmi.Atom()
                atom.name = str(one.atom_names[row])
                atom.element = gemmi.Element(str(one.elements[row]))
                atom.pos = gemmi.Position(*(places[row] + shift))
                residue.add_atom(atom)
            chain.add_residue(residue)
        model.add_chain(chain)
    structure = gemmi.Structure()
    structure.add_model(model)
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(path))
    return copies * len(one)


def trembling(copies: int, frames: int, folder: Path) -> tuple[Path, Path]:
    """Write such copies and an XTC in which every atom trembles by 0.03 Å."""
    from mdtraj.formats import XTCTrajectoryFile

    from undula.io.structures import load_structure

    topology, path = folder / "tiles.cif", folder / "tiles.xtc"
    tiled(copies, topology)
    still = load_structure(topology, select="all").positions.numpy()
    random = np.random.default_rng(0)
    with XTCTrajectoryFile(str(path), "w") as file:
        for first in range(0, frames, 100):
            numbers = np.arange(first, min(first + 100, frames))
            noise = random.normal(0, 0.03, (len(numbers), *still.shape))
            file.write(
                ((still + noise) / 10).astype(np.float32),
                time=2 * numbers.astype(np.float32),
                step=numbers,
                box=np.zeros((len(numbers), 3, 3), np.float32),
            )
    return topology, path


def surface(case: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Forecast a moving surface and write its page; return estimates of memory and time."""
    from undula.io.structures import load_structure
    from undula.surface.forecast import forecast
    from undula.viz.export import export

    tiled(int(case["copies"]), folder / "tiles.cif")
    structure = load_structure(folder / "tiles.cif")
    times_ps = [50.0 * (k + 1) for k in range(int(case["times"]))]
    moving = forecast(
        structure,
        times_ps,
        spacing=float(case["spacing"]),
        samples=int(case["samples"]),
        memory_limit=case.get("memory_limit"),
    )
    export(moving, folder / "out")
    assert moving.expected is not None
    return moving.expected.memory_bytes, moving.expected.seconds


def motion(case: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Forecast the atoms of a liquid; return estimates of memory and time."""
    del folder
    import torch

    from undula.data.bundled import motion_models
    from undula.estimates import memory_limit
    from undula.io.kinds import molecular_system
    from undula.motion.estimates import estimate, fitted
    from undula.motion.forecast import forecast_atoms, sized
    from undula.motion.trained import TrainedMotion
    from undula.motion.windows import Window
    from undula.types import Structure

    side, apart = int(case["side"]), 3.62
    axes = np.meshgrid(*[np.arange(side)] * 3, indexing="ij")
    places = torch.from_numpy(np.stack(axes, -1).reshape(-1, 3) * apart)
    count = len(places)
    structure = Structure(
        name="argon",
        positions=places,
        elements=np.full(count, "AR"),
        atom_names=np.full(count, "AR"),
        residue_names=np.full(count, "AR"),
        residue_numbers=np.arange(count) + 1,
        residue_index=np.arange(count),
        chain_ids=np.full(count, "A"),
        insertion_codes=np.full(count, ""),
        file_index=np.arange(count),
        file_atoms=count,
    )
    trained = TrainedMotion.load(motion_models()["argon"])
    observed = trained.climatology.observed
    steps = 0.02 * torch.randn(observed, 1, 3, generator=torch.Generator().manual_seed(0))
    window = Window(
        system=molecular_system(structure),
        positions=(places.float() + steps.cumsum(dim=0)).contiguous(),
        velocities=None,
        box=torch.eye(3) * side * apart,
        frame_ps=trained.climatology.frame_ps,
        now_ps=0.0,
    )
    first, samples = trained.climatology.frame_ps, int(case["samples"])
    lags = np.linspace(first, trained.horizon_ps, int(case["times"])).tolist()
    size = fitted(sized(window, trained, lags, samples), memory_limit(None), "argon")
    found = estimate(size)
    forecast_atoms(window, lags, trained, samples=samples)
    return found.memory_bytes, found.seconds


def prepare(case: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Prepare surfaces; return estimates of memory and time."""
    from undula.data.estimates import prepare_estimate
    from undula.data.prepare import chosen_structure
    from undula.data.prepare import prepare as prepared
    from undula.data.prepare_config import PrepareConfig

    topology, path = trembling(int(case["copies"]), int(case["frames"]), folder)
    config = PrepareConfig(stride=int(case.get("stride", 1)))
    frames = int(case.get("read", case["frames"]))
    found = prepare_estimate(chosen_structure(topology, config), [frames], config)
    prepared(topology, [path], folder / "out", config)
    return found.memory_bytes, found.seconds


def record(case: Mapping[str, Any], folder: Path) -> tuple[int, float]:
    """Record moving atoms; return estimates of memory and time."""
    from undula.data.estimates import record_estimate
    from undula.data.recorded import RecordConfig
    from undula.data.recorded import record as recorded
    from undula.io.trajectories import load_whole_structure

    topology, path = trembling(int(case["copies"]), int(case["frames"]), folder)
    found = record_estimate(load_whole_structure(topology), [int(case["frames"])])
    recorded([path], folder / "out", RecordConfig(), topology=topology)
    return found.memory_bytes, found.seconds


WORK: dict[str, Callable[[Mapping[str, Any], Path], tuple[int, float]]] = {
    "surface": surface,
    "motion": motion,
    "prepare": prepare,
    "record": record,
}


def peak_bytes() -> int:
    """Return the largest resident set of this process; not, as getrusage, of what started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def measured(kind: str, case: Mapping[str, Any]) -> dict[str, float]:
    """Do a piece of work in a fresh process.

    Returns:
        Bytes ``estimated`` and ``measured``, what was ``held`` at first, and their ``ratio``;
        ``seconds`` that it took and was ``expected`` to.
    """
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, json.dumps(case)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1"),
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"ratio": found["estimated"] / found["measured"]}


def child(kind: str, case: Mapping[str, Any]) -> None:
    """Do a piece of work in this process and print what it took."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        estimated, expected = WORK[kind](case, Path(folder))
    peak = peak_bytes()
    took = time.perf_counter() - began
    print(
        json.dumps(
            {"estimated": estimated, "measured": peak, "seconds": took, "expected": expected}
        )
    )


def main(kinds: list[str]) -> None:
    """Print the table."""
    for kind in kinds or list(CASES):
        for case in CASES[kind]:
            found = measured(kind, case)
            told = ", ".join(f"{key} {value:g}" for key, value in case.items())
            print(
                f"{kind:8} {told:52} estimated {found['estimated'] / 2**20:7.0f} MiB, measured "
                f"{found['measured'] / 2**20:7.0f} MiB, ratio {found['ratio']:.2f}; "
                f"expected {found['expected']:5.0f} s, took {found['seconds']:5.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main(sys.argv[1:])
