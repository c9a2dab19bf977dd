"""Tiny proteins of different sequence, cut out of the bundled villin run, as data sets."""

from __future__ import annotations

from pathlib import Path

import mdtraj

from undula.data.bundled import villin
from undula.data.prepare import prepare
from undula.data.prepare_config import PrepareConfig

RESIDUES = {"one_A": 0, "two_A": 7, "four_A": 21, "five_A": 27}
SMALL = PrepareConfig(near=64, local=32, uniform=32, frames_per_shard=5)


def toy_datasets(folder: Path, names: tuple[str, ...] = tuple(RESIDUES)) -> list[Path]:
    """Prepare some proteins of six residues; all but the last one have two trajectories."""
    topology, trajectory, _ = villin()
    frames = mdtraj.load(str(trajectory), top=str(topology))
    made = []
    for name in names:
        first = RESIDUES[name]
        chosen = f"resid {first} to {first + 5} and element != H"
        few = frames.atom_slice(frames.topology.select(chosen))
        place = folder / "raw" / name
        place.mkdir(parents=True)
        few[0].save_pdb(str(place / f"{name}.pdb"))
        runs = []
        for number in range(1 if name == names[-1] else 2):
            runs.append(place / f"R{number + 1}.xtc")
            few[40 * number : 40 * number + 5].save_xtc(str(runs[-1]))
        prepare(place / f"{name}.pdb", runs, folder / name, SMALL)
        made.append(folder / name)
    return made
