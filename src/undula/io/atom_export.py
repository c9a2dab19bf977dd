"""Write moving atoms for other programs: XTC, and PDB files of one or many models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mdtraj
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula import atomic
from undula.errors import InputError, MachineError, UsageError
from undula.geometry.frames import make_whole
from undula.io.xtc import open_xtc
from undula.types import MolecularSystem, Structure
from undula.units import ANGSTROM_PER_NM

_LARGEST_PDB = 9999.999
_LARGEST_B = 999.99
_SERIALS, _NUMBERS = 99_999, 9_999


def in_box(
    positions: Float[Tensor, "frames atoms 3"],
    system: MolecularSystem,
    box: Float[Tensor, "3 3"] | None,
) -> Float[Tensor, "frames atoms 3"]:
    """Bring every molecule into the box as a whole: its centre, not each of its atoms.

    Args:
        positions: In any image, Å.
        system: The atoms.
        box: Edge vectors, Å; without one nothing is moved.
    """
    if box is None:
        return positions
    edges = box.to(positions)
    whole = make_whole(positions, edges.expand(len(positions), 3, 3), system.bonds)
    size = torch.bincount(system.molecules, minlength=system.molecule_count).to(whole)
    centres = whole.new_zeros(len(whole), len(size), 3)
    centres = centres.index_add(1, system.molecules, whole) / size[:, None]
    shift = (centres @ torch.linalg.inv(edges)).floor() @ edges
    return whole - shift[:, system.molecules]


def write_xtc(
    path: Path,
    positions: Float[Tensor, "frames atoms 3"],
    times_ps: Sequence[float],
    box: Float[Tensor, "3 3"] | Float[Tensor, "frames 3 3"] | None,
) -> None:
    """Write frames as XTC: nm, to 0.001 nm.

    Args:
        path: The file.
        positions: Å, written as they are.
        times_ps: Of the frames.
        box: Edge vectors, Å: one, or one a frame; none leaves zeros.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    frames = len(positions)
    edges = torch.zeros(3, 3) if box is None else box.detach().cpu() / ANGSTROM_PER_NM
    with atomic.replacing(path) as temporary:
        try:
            with mdtraj.formats.XTCTrajectoryFile(str(temporary), "w") as file:
                file.write(
                    positions.detach().cpu().float().numpy() / np.float32(ANGSTROM_PER_NM),
                    time=np.asarray(times_ps, dtype="f4"),
                    step=np.arange(frames, dtype=np.int32),
                    box=np.broadcast_to(edges.numpy(), (frames, 3, 3)).astype("f4"),
                )
        except RuntimeError as error:
            raise MachineError(f"cannot write {path}: {error}") from error
        _check_whole(path, temporary, frames)


def _check_whole(path: Path, written: Path, frames: int) -> None:
    """Raise where not all has reached the disk: the writer does not say so when it is full."""
    try:
        found = open_xtc(written)
        whole = found.frames == frames and not found.notices
    except InputError:
        whole = False
    if frames and not whole:
        raise MachineError(f"cannot write {path}: not all of it has reached the disk")


def write_pdb(
    path: Path,
    system: MolecularSystem,
    positions: Float[Tensor, "frames atoms 3"],
    *,
    box: Float[Tensor, "3 3"] | None = None,
    b_factors: Float[Tensor, "frames atoms"] | None = None,
    remarks: Sequence[str] = (),
) -> None:
    """Write frames as the models of a PDB file; a single frame has no MODEL record.

    Args:
        path: The file.
        system: The atoms; bonds stand in CONECT records where serial numbers allow it.
        positions: Å.
        box: Edge vectors, Å, for the CRYST1 record.
        b_factors: In the unit the reader is told of in ``remarks``; numbers above 999.99 are
            written as that.
        remarks: Sentences for REMARK records; of each, ASCII letters are kept.

    Raises:
        UsageError: A coordinate does not fit into eight columns.
    """
    if float(positions.abs().max()) > _LARGEST_PDB:
        raise UsageError(
            f"{path}: a coordinate is beyond {_LARGEST_PDB:g} Å, which a PDB file cannot hold; "
            "write XTC instead"
        )
    lines = [
        f"REMARK   6 {sentence.encode('ascii', 'replace').decode()[:68]}" for sentence in remarks
    ]
    if box is not None:
        lines.append(_cryst1(box))
    heads = _heads(system.structure)
    elements = [f"{symbol:>12s}" for symbol in system.structure.elements.tolist()]
    spreads = torch.zeros(positions.shape[:2]) if b_factors is None else b_factors
    for number, (frame, spread) in enumerate(
        zip(positions.tolist(), spreads.clamp(max=_LARGEST_B).tolist(), strict=True)
    ):
        if len(positions) > 1:
            lines.append(f"MODEL     {number + 1:>4d}")
        for head, (x, y, z), b, tail in zip(heads, frame, spread, elements, strict=True):
            lines.append(f"{head}{x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}{tail}")
        if len(positions) > 1:
            lines.append("ENDMDL")
    lines += _conect(system)
    atomic.write(path, "\n".join([*lines, "END", ""]))


def _heads(structure: Structure) -> list[str]:
    """Return the first 30 columns of each atom's record."""
    standard = {"C", "N", "O", "S", "H"}
    heads = []
    for row in range(len(structure)):
        name, element = str(structure.atom_names[row])[:4], str(structure.elements[row])
        # Names start in the second column unless they are long or the element has two letters.
        shown = f" {name:<3s}" if len(element) == 1 and len(name) < 4 else f"{name:<4s}"
        protein = bool((structure.atom_names == "CA").any()) and element in standard
        record = "ATOM  " if protein else "HETATM"
        serial = (row % _SERIALS) + 1
        residue = str(structure.residue_names[row])[:3]
        chain = str(structure.chain_ids[row])[:1] or " "
        number = int(structure.residue_numbers[row]) % (_NUMBERS + 1)
        code = str(structure.insertion_codes[row])[:1] or " "
        heads.append(f"{record}{serial:>5d} {shown} {residue:>3s} {chain}{number:>4d}{code}   ")
    return heads


def _conect(system: MolecularSystem) -> list[str]:
    if len(system) > _SERIALS:
        return []
    around: dict[int, list[int]] = {}
    for i, j in system.bonds.T.tolist():
        around.setdefault(i, []).append(j)
        around.setdefault(j, []).append(i)
    return [
        f"CONECT{atom + 1:>5d}" + "".join(f"{other + 1:>5d}" for other in sorted(some)[start:][:4])
        for atom, some in sorted(around.items())
        for start in range(0, len(some), 4)
    ]


def _cryst1(box: Float[Tensor, "3 3"]) -> str:
    edges = box.detach().cpu().double()
    lengths = edges.norm(dim=1)
    a, b, c = (edges / lengths[:, None]).unbind()
    angles = [float(torch.rad2deg(torch.acos((u @ v).clamp(-1, 1)))) for u, v in _sides(a, b, c)]
    sizes = "".join(f"{float(length):9.3f}" for length in lengths)
    return f"CRYST1{sizes}" + "".join(f"{angle:7.2f}" for angle in angles) + " P 1           1"


def _sides(a: Tensor, b: Tensor, c: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(b, c), (a, c), (a, b)]
