"""Fluids in fixed point: archives of position differences of argon or of water.

An ``.npz`` archive (never with pickled objects) holds positions as integer first differences,
so that ten thousand frames stay small, and velocities of the first frames in eight bits::

    position_first  position_step  position_unit_nm        positions, nm
    velocity  velocity_unit_nm_per_ps                      of the first frames, nm/ps
    box_nm  frame_ps  [potential_kj_mol]

It names no atoms. They are taken for water where every three atoms in a row have the distances
of O, H, H, and for argon where none are close to each other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, Notice
from undula.geometry.neighbours import search_tree
from undula.io.arrays import load_archive
from undula.io.boxes import SMALLEST_WIDTH
from undula.io.kinds import molecular_system
from undula.io.recordings import RecordedFrames
from undula.io.trajectories import LARGEST_COORDINATE
from undula.types import MolecularSystem, Structure
from undula.units import ANGSTROM_PER_NM

CLOSEST_ARGON = 2.5
"""Å; two atoms of argon are hardly ever closer (they touch at 3.8)."""
WATER_BOND, WATER_SPAN = (0.9, 1.05), (1.4, 1.75)
"""Å; distances O–H and H–H in the water of force fields, rounded to 0.01 Å."""
_COUNTS = {"position_first": 2, "position_step": 3, "velocity": 3}
_NUMBERS = {
    "position_unit_nm": (),
    "velocity_unit_nm_per_ps": (),
    "frame_ps": (),
    "box_nm": (3,),
}


def is_archive(path: Path) -> bool:
    """Tell by its content whether a file is an archive of arrays, and so no structure.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def load_fluid(path: Path) -> tuple[MolecularSystem, RecordedFrames]:
    """Load a trajectory of argon or water.

    Args:
        path: The archive.

    Returns:
        The system in its first frame, and all frames: positions in Å as the archive's integers
        say, unwrapped; velocities in Å/ps of the first frames; one box.

    Raises:
        InputError: The file is no such archive, is damaged, or holds other atoms.
    """
    arrays = load_archive(path)
    _check(path, arrays)
    try:
        return _fluid(path, arrays)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def _fluid(path: Path, arrays: dict[str, np.ndarray]) -> tuple[MolecularSystem, RecordedFrames]:
    first, step = (arrays[f"position_{what}"].astype(np.int64) for what in ("first", "step"))
    counts = np.cumsum(np.concatenate([first[None], step]), axis=0)
    positions = counts * (float(arrays["position_unit_nm"]) * ANGSTROM_PER_NM)
    unit = float(arrays["velocity_unit_nm_per_ps"]) * ANGSTROM_PER_NM
    edges = arrays["box_nm"].astype(np.float64) * ANGSTROM_PER_NM
    # A comparison with a number that is not finite is false.
    if not (np.abs(positions) <= LARGEST_COORDINATE).all():
        raise InputError(f"an atom lies beyond {LARGEST_COORDINATE:,.0f} Å")
    if not ((edges >= SMALLEST_WIDTH) & (edges <= LARGEST_COORDINATE)).all():
        raise InputError(f"the box cannot have edges of {edges} Å")
    potential = arrays.get("potential_kj_mol")
    box = torch.from_numpy(np.diag(edges))
    system, notice = _system(path, torch.from_numpy(positions[0]), box)
    with np.errstate(over="ignore"):
        velocities = (arrays["velocity"] * unit).astype(np.float32)
    frames = RecordedFrames(
        positions=torch.from_numpy(positions.astype(np.float32)),
        frame_ps=float(arrays["frame_ps"]),
        velocities=torch.from_numpy(velocities),
        box=box,
        potential=None if potential is None else torch.from_numpy(potential.astype(np.float64)),
        notices=(notice,),
    )
    return system, frames


def _check(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for key in (*_COUNTS, *_NUMBERS):
        if key not in arrays:
            raise InputError(f"{path}: there is no {key}; it is no fluid in fixed point")
    for key, axes in _COUNTS.items():
        if arrays[key].ndim != axes or arrays[key].dtype.kind != "i":
            raise InputError(f"{path}: {key} should hold integers along {axes} axes")
    for key, shape in _NUMBERS.items():
        value = arrays[key]
        if value.shape != shape or value.dtype.kind != "f":
            raise InputError(f"{path}: {key} should hold {3 if shape else 1} real numbers")
        if not (np.isfinite(value) & (value > 0)).all():
            raise InputError(f"{path}: {key} should be positive, found {value}")
    first, step, velocity = (arrays[key].shape for key in _COUNTS)
    if first[-1] != 3 or first[0] == 0 or step[1:] != first or velocity[1:] != first:
        raise InputError(
            f"{path}: positions of {first}, steps of {step} and velocities of {velocity} do not "
            "belong together"
        )
    if not 0 < velocity[0] <= step[0] + 1:
        raise InputError(f"{path}: {velocity[0]} frames of velocities for {step[0] + 1} frames")
    potential = arrays.get("potential_kj_mol")
    if potential is not None and (
        potential.shape != (step[0] + 1,) or potential.dtype.kind not in "iuf"
    ):
        raise InputError(f"{path}: potential_kj_mol should hold one energy a frame")


def _system(
    path: Path, positions: Float[Tensor, "atoms 3"], box: Float[Tensor, "3 3"]
) -> tuple[MolecularSystem, Notice]:
    if _is_water(positions):
        name, what = "water", "water, its atoms in the order O, H, H"
        labels = ["O", "H", "H"], ["O", "H1", "H2"], "HOH"
    elif _closest(positions, box) > CLOSEST_ARGON:
        name, what = "argon", "argon"
        labels = ["AR"], ["AR"], "AR"
    else:
        raise InputError(
            f"{path}: the {len(positions)} atoms are neither argon nor water in the order O, H, H; "
            "other systems are read from a structure and a trajectory"
        )
    elements, atom_names, residue = labels
    molecules = len(positions) // len(elements)
    structure = Structure(
        name=name,
        positions=positions,
        elements=np.array(elements * molecules),
        atom_names=np.array(atom_names * molecules),
        residue_names=np.full(len(positions), residue),
        residue_numbers=np.repeat(np.arange(1, molecules + 1), len(elements)),
        insertion_codes=np.full(len(positions), ""),
        chain_ids=np.full(len(positions), "A"),
        residue_index=np.repeat(np.arange(molecules), len(elements)),
        file_index=np.arange(len(positions)),
        file_atoms=len(positions),
        box=box,
    )
    message = f"the archive names no atoms; its {len(positions)} were taken for {what}"
    notice = Notice(code="atoms-guessed", message=message, count=len(positions))
    return molecular_system(structure, _chains(molecules, len(elements))), notice


def _chains(molecules: int, size: int) -> Int[Tensor, "2 bonds"]:
    """Return the bonds of molecules whose first atom is bonded to each of the others."""
    first = torch.arange(molecules) * size
    others = [torch.stack([first, first + k]) for k in range(1, size)]
    return torch.cat([torch.zeros(2, 0, dtype=torch.int64), *others], dim=1)


def _is_water(positions: Float[Tensor, "atoms 3"]) -> bool:
    if len(positions) % 3:
        return False
    oxygen, one, other = positions.reshape(-1, 3, 3).unbind(dim=1)
    distances = (one - oxygen).norm(dim=1), (other - oxygen).norm(dim=1), (other - one).norm(dim=1)
    ranges = WATER_BOND, WATER_BOND, WATER_SPAN
    return all(
        bool(((low < distance) & (distance < high)).all())
        for distance, (low, high) in zip(distances, ranges, strict=True)
    )


def _closest(positions: Float[Tensor, "atoms 3"], box: Float[Tensor, "3 3"]) -> float:
    """Return the least distance between two atoms in a rectangular box, Å."""
    edges = box.diagonal()
    wrapped = positions - (positions / edges).floor() * edges
    corners = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3) * edges
    images = (wrapped[None] + corners[:, None]).reshape(-1, 3)
    near = ((images > -CLOSEST_ARGON) & (images < edges + CLOSEST_ARGON)).all(dim=1)
    distances, _ = search_tree(images[near].numpy()).query(wrapped.numpy(), k=2)
    return float(np.asarray(distances)[:, 1].min())
