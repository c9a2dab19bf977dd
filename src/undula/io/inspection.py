"""Say what is in a file and which family of models it can serve, without using it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undula.atomic import sha256
from undula.errors import InputError, Notice, UsageError
from undula.io.formats import STRUCTURE_FORMATS, recognise
from undula.io.models import open_models
from undula.io.structures import load_structure
from undula.io.trajectories import (
    check_coordinates,
    check_moves,
    frame_times,
    load_trajectory,
    load_whole_structure,
    open_trajectory,
)
from undula.notices import placed
from undula.types import Structure

PURPOSES = ("surface", "motion")
FEWEST_ATOMS = 10
"""Two small residues; a forecast of fewer has no level set left after some picoseconds."""
_BLOCK_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is in a file.

    Attributes:
        path: The file.
        format: Such as ``pdb`` or ``xtc``.
        sha256: Of the file as it is, in hexadecimal.
        families: Which families it can serve: ``surface``, ``motion``.
        why_not: Why it cannot serve the others, a sentence each.
        atoms: Atoms that would be used.
        file_atoms: Atoms in the file (in one model or frame).
        residues: Residues that would be used; none for a trajectory by itself.
        chains: Ids of their chains.
        frames: Frames, or models.
        times_ps: First and last time; none for a structure.
        memory_bytes: What its positions take once read.
        notices: What would be dropped or assumed.
    """

    path: Path
    format: str
    sha256: str
    families: tuple[str, ...]
    why_not: Mapping[str, str]
    atoms: int
    file_atoms: int
    residues: int | None
    chains: tuple[str, ...]
    frames: int
    times_ps: tuple[float, float] | None
    memory_bytes: int
    notices: tuple[Notice, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "path": str(self.path),
            "format": self.format,
            "sha256": self.sha256,
            "families": list(self.families),
            "why_not": dict(self.why_not),
            "atoms": self.atoms,
            "file_atoms": self.file_atoms,
            "residues": self.residues,
            "chains": list(self.chains),
            "frames": self.frames,
            "times_ps": None if self.times_ps is None else list(self.times_ps),
            "memory_bytes": self.memory_bytes,
            "notices": [notice.as_dict() for notice in self.notices],
        }

    def __str__(self) -> str:
        serves = " and ".join(self.families) or "nothing"
        lines = [f"{self.path}: {self.format}, serves {serves}"]
        residues = "" if self.residues is None else f" in {self.residues} residues"
        chains = f", chains {', '.join(name or '_' for name in self.chains)}" if self.chains else ""
        lines.append(f"  {self.atoms} of {self.file_atoms} atoms{residues}{chains}")
        if self.times_ps is not None:
            first, last = self.times_ps
            lines.append(f"  {self.frames} frames from {first:g} to {last:g} ps")
        lines.append(f"  {self.memory_bytes / 2**20:.1f} MiB of positions once read")
        lines += [f"  not for {family}: {why}" for family, why in self.why_not.items()]
        lines += [f"  notice: {notice}" for notice in self.notices]
        return "\n".join(lines)


def inspect(
    path: str | Path, *, purpose: str | None = None, topology: str | Path | None = None
) -> Inspection:
    """Read a file completely and say what is in it; nothing is kept and nothing is written.

    Args:
        path: A structure or a trajectory.
        purpose: ``surface`` or ``motion``: raise where the file cannot serve it. By default
            either is enough.
        topology: The structure that names the atoms of a trajectory. Without it bonds cannot
            be checked.

    Raises:
        InputError: The file cannot serve; one sentence with the file and the place.
        UsageError: There is no such purpose.
        MachineError: The file may not be read.
    """
    path = Path(path)
    if purpose not in (None, *PURPOSES):
        raise UsageError(f"the purpose should be {' or '.join(PURPOSES)}, found {purpose!r}")
    name = recognise(path)
    if name not in STRUCTURE_FORMATS:
        if purpose == "surface":
            raise InputError(_no_surface(path, name))
        return _inspected_motion(path, name, topology)
    if purpose == "motion":
        return _inspected_motion(path, name, path if topology is None else topology)
    return _inspected_structure(path, name, purpose)


def _no_surface(path: Path, name: str) -> str:
    return (
        f"{path}: this is a trajectory ({name.upper()}); a surface needs a structure "
        "(PDB, mmCIF or GRO)"
    )


def require_surface(structure: Structure) -> None:
    """Raise where a structure has too few of its atoms to have a molecular surface that moves.

    Raises:
        InputError: Only the Cα atoms are there, or hardly any atoms at all.
    """
    _require_all_atoms(structure)
    for notice in _few_atoms(structure):
        raise InputError(f"{structure.name}: {notice.message}")


def _require_all_atoms(structure: Structure) -> None:
    for notice in structure.notices:
        if notice.code == "alpha-carbons-only":
            raise InputError(f"{notice}; a surface needs all heavy atoms")


def _few_atoms(structure: Structure) -> tuple[Notice, ...]:
    """Notice a structure that has a surface, but too small a one to be forecast."""
    count = len(structure)
    if count >= FEWEST_ATOMS:
        return ()
    atoms = "is 1 atom" if count == 1 else f"are {count} atoms"
    message = f"there {atoms} to use; a surface that moves needs at least {FEWEST_ATOMS}"
    return (Notice(code="few-atoms", message=message, count=count),)


def _inspected_structure(path: Path, name: str, purpose: str | None) -> Inspection:
    families: list[str] = []
    why_not: dict[str, str] = {}
    few: tuple[Notice, ...] = ()
    try:
        structure = load_structure(path)
        _require_all_atoms(structure)
        families.append("surface")
        few = placed(_few_atoms(structure), path)
    except InputError as error:
        if purpose == "surface":
            raise
        structure = load_whole_structure(path)
        why_not["surface"] = str(error)
    file = open_models(path)
    models = file.frames
    try:
        check_moves(path, torch.from_numpy(file.table.positions.reshape(models, -1, 3)))
        families.append("motion")
    except InputError as error:
        why_not["motion"] = f"{error}; name a trajectory beside it"
    return Inspection(
        path=path,
        format=name,
        sha256=sha256(path),
        families=tuple(families),
        why_not=why_not,
        atoms=len(structure),
        file_atoms=structure.file_atoms,
        residues=structure.residues,
        chains=tuple(dict.fromkeys(structure.chain_ids.tolist())),
        frames=models,
        times_ps=None,
        memory_bytes=12 * len(structure) * models,
        notices=(*structure.notices, *few),
    )


def _inspected_motion(path: Path, name: str, topology: str | Path | None) -> Inspection:
    file = open_trajectory(path)
    if file.frames < 2:
        raise InputError(f"{path}: there is one frame; motion needs at least two")
    structure = None if topology is None else load_whole_structure(topology)
    times, kept, notices = frame_times(file, time_unit="ps", frame_ps=None, within=slice(None))
    moved = False
    first: np.ndarray | None = None
    told = () if structure is None else structure.notices
    found: dict[Notice, None] = dict.fromkeys((*told, *placed((*file.notices, *notices), path)))
    block = max(2, _BLOCK_BYTES // (12 * file.atoms))
    for start in range(0, file.frames, block):
        if structure is None:
            numbers = kept[(kept >= start) & (kept < start + block)]
            frames = file.read(numbers, np.arange(file.atoms))
            check_coordinates(path, frames, numbers)
            found |= dict.fromkeys(placed(frames.notices, path))
            positions = frames.positions
        else:
            loaded = load_trajectory(structure, path, start=start, stop=start + block)
            found |= dict.fromkeys(loaded.notices)
            positions = loaded.positions.numpy()
        first = positions[0] if first is None else first
        moved = moved or bool((positions != first).any())
    if not moved:
        raise InputError(f"{path}: all {len(kept)} frames are the same, nothing moves")
    return Inspection(
        path=path,
        format=name,
        sha256=sha256(path),
        families=("motion",),
        why_not={} if name in STRUCTURE_FORMATS else {"surface": _no_surface(path, name)},
        atoms=file.atoms if structure is None else len(structure),
        file_atoms=file.atoms,
        residues=None if structure is None else structure.residues,
        chains=() if structure is None else tuple(dict.fromkeys(structure.chain_ids.tolist())),
        frames=len(kept),
        times_ps=(float(times[0]), float(times[-1])),
        memory_bytes=12 * file.atoms * len(kept),
        notices=tuple(found),
    )
