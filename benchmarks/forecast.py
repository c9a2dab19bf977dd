"""A forecast's meshes against PyMOL's surfaces of the true frames, and what the dynamics cost.

    python benchmarks/forecast.py [--frames 50] [--systems 2] [--peers FOLDER]

From a structure and a trained model to a mesh at 1 Å for every time, with the distance of each
vertex from the first frame's surface; everything that a first mesh needs is in the first frame's
time. Both proteins, villin and adenylate kinase where it is there, are forecast by the bundled
model for any protein, which was trained on neither.
PyMOL sees the frame of the simulation at that time, with the same radii and without a window.
All run on one thread in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, Stopwatch, keep, one_thread, ratio, shown

from surface import Pymol, found_peers, heavy
from undula.data.bundled import models, villin
from undula.data.prepare import aligned, surface_of
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory
from undula.surface.forecast import forecast
from undula.surface.posed import SurfaceForecaster
from undula.surface.trained_mixture import load_trained
from undula.types import Trajectory

SPACING = 1.0
LARGEST_RATIO, LONGEST_S, RESIDUES = 1.5, 0.5, 150
"""The goals: times PyMOL, and seconds a frame for so many residues (on two cores; one does)."""

MD_ATOM_STEPS = 774 * 209
"""Atoms times steps a second of dynamics on two cores: OpenMM 8.6.1, 258 TIP3P waters, the faster
end of 139 to 209 steps a second (the project's notes on what was simulated, motion.md, 1.2)."""
MD_STEP_PS = 0.004
WATER = 0.1003
"""Atoms per Å³ of water."""
BOX_MARGIN = 8.0
"""Water around the protein, Å, in a rhombic dodecahedron."""


@dataclass(frozen=True, eq=False)
class System:
    """A protein, its simulation and a model that knows it."""

    name: str
    trajectory: Trajectory
    trained: SurfaceForecaster

    @property
    def residues(self) -> int:
        return len(self.trajectory.structure.alpha_carbons)


def systems(count: int) -> list[System]:
    """Return what there is to forecast."""
    topology, frames, _ = villin()
    trained = load_trained(models()["any"])
    found = [System("villin", _loaded(topology, frames), trained)]
    larger = DATA / "adk/adk_tmd.pdb", DATA / "adk/adk_tmd_R1.xtc"
    if not DATA.is_dir():
        print(f"no {DATA}: villin alone")
    elif count > 1:
        found.append(System("adenylate kinase", _loaded(*larger), trained))
    return found[:count]


def _loaded(topology: Path, frames: Path) -> Trajectory:
    return aligned(heavy(load_trajectory(load_structure(topology), frames)))


def md_seconds_a_frame(trajectory: Trajectory) -> float:
    """Estimate how long dynamics on two cores take from one frame to the next.

    The time between frames is that of villin (5 ps), the number of atoms that of a rhombic
    dodecahedron of water around the protein.
    """
    positions = trajectory.positions[0]
    width = 2 * float((positions - positions.mean(dim=0)).norm(dim=1).max()) + 2 * BOX_MARGIN
    atoms = WATER * width**3 / 2**0.5
    return atoms * (5.0 / MD_STEP_PS) / MD_ATOM_STEPS


def measured(system: System, count: int, pymol: bool, folder: Path) -> dict[str, Any]:
    """Time the forecast, PyMOL and our surface of the true frame, frame by frame, in turns."""
    trajectory = system.trajectory
    chosen = torch.linspace(0, len(trajectory) - 1, count + 1).round().long().tolist()[1:]
    times = [float(trajectory.times_ps[frame]) for frame in chosen]
    horizon = system.trained.horizon_ps
    times = [min(one, horizon) for one in times]
    first = trajectory.frame(0)
    watches = {name: Stopwatch() for name in ("own", "exact", "PyMOL")}
    # Everything compiled is compiled before.
    forecast(first, times, system.trained, spacing=4 * SPACING).mesh(times[0])
    moving = forecast(first, times, system.trained, spacing=SPACING)
    radii = trajectory.structure.vdw_radii.double()
    peer = Pymol(folder, trajectory.structure, 1, radii) if pymol else None
    vertices: dict[str, list[int]] = {"own": [], "PyMOL": []}
    for frame, lag in zip(chosen, times, strict=True):
        watches["own"].run(partial(moving.mesh, lag))
        vertices["own"].append(len(watches["own"].result.vertices))
        true = trajectory.frame(frame)
        watches["exact"].run(lambda true=true: surface_of(true).mesh(SPACING))
        if peer:
            peer.read(true.positions.double())
            watches["PyMOL"].run(peer.compute)
            if frame == chosen[0]:
                vertices["PyMOL"].append(peer.vertices())
    if not peer:
        del watches["PyMOL"], vertices["PyMOL"]
    return {
        "system": system.name,
        "residues": system.residues,
        "heavy_atoms": len(radii),
        "frames": count,
        "spacing_angstrom": SPACING,
        "vertices": {name: int(statistics.median(each)) for name, each in vertices.items()},
        "first_frame_s": watches["own"].cpu[0],
        "seconds_a_frame": {
            name: {"cpu": sum(watch.cpu) / count, "wall": sum(watch.wall) / count}
            for name, watch in watches.items()
        },
        "md_seconds_a_frame": md_seconds_a_frame(trajectory),
        "ratio_to_peer": ratio(watches["own"].cpu, watches["PyMOL"].cpu) if peer else None,
        "times": {name: watch.summary() for name, watch in watches.items()},
    }


def printed(row: dict[str, Any]) -> None:
    """Print one protein."""
    print(
        f"\n{row['system']}: {row['residues']} residues, {row['heavy_atoms']} heavy atoms, "
        f"{row['frames']} frames at {row['spacing_angstrom']:g} Å"
    )
    each = row["seconds_a_frame"]
    for name, seconds in each.items():
        vertices = row["vertices"].get(name)
        print(
            f"  {name:18s} {1e3 * seconds['cpu']:8.1f} ms of CPU a frame, "
            f"{1e3 * seconds['wall']:8.1f} ms of wall time"
            + (f", {vertices} vertices" if vertices else "")
        )
    print(f"  first frame alone  {1e3 * row['first_frame_s']:8.1f} ms")
    own = each["own"]["cpu"]
    if row["ratio_to_peer"]:
        total = row["ratio_to_peer"]["of_totals"]
        print(
            f"  own / PyMOL, all frames {total:.2f}, one frame {shown(row['ratio_to_peer'])}; "
            f"goal ≤ {LARGEST_RATIO}: {'reached' if total <= LARGEST_RATIO else 'NOT reached'}"
        )
    # Where a protein is smaller than the goal's, its time is scaled up.
    longest = own * max(1.0, RESIDUES / row["residues"])
    print(
        f"  {longest:.2f} s a frame for {RESIDUES} residues or more; "
        f"goal ≤ {LONGEST_S}: {'reached' if longest <= LONGEST_S else 'NOT reached'}"
    )
    print(
        f"  dynamics of 5 ps in water would take about {row['md_seconds_a_frame']:.0f} s a frame, "
        f"{row['md_seconds_a_frame'] / own:.0f} times as long"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--systems", type=int, default=2, help="how many of the two proteins")
    parser.add_argument("--peers", type=Path, help="a folder that peers were installed into")
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    pymol = "PyMOL" in found_peers(options.peers)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for system in systems(options.systems):
            rows.append(measured(system, options.frames, pymol, Path(place)))
            printed(rows[-1])
    keep("forecast", rows)


if __name__ == "__main__":
    main()
