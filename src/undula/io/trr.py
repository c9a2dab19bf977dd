"""Read TRR: positions and velocities in full precision, frame by frame.

A frame is big-endian: magic 1993, a version string, the sizes in bytes of ten blocks, the
number of atoms, step, time and λ, and then the blocks that are there: box, virial, pressure,
positions, velocities, forces, all in single or all in double precision. Frames may lack
positions or velocities; some programs write zeros instead.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from undula.errors import InputError, Notice
from undula.io.frame_file import Frames, check_same_atoms, walk
from undula.units import ANGSTROM_PER_NM

SIGNATURE = struct.pack(">iii", 1993, 13, 12) + b"GMX_trn_file"
_SIZES = struct.Struct(">13i")


@dataclass(frozen=True, kw_only=True)
class TrrHeader:
    """The header of one frame; the parts are offsets in the file, or none."""

    start: int
    end: int
    atoms: int
    time: float
    real: str
    box: int | None
    positions: int | None
    velocities: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrrFile:
    """A TRR file whose headers are sound; frames without positions are left out."""

    path: Path
    headers: list[TrrHeader]
    notices: tuple[Notice, ...]

    @property
    def atoms(self) -> int:
        """Atoms in every frame."""
        return self.headers[0].atoms

    @property
    def frames(self) -> int:
        """Number of whole frames with positions."""
        return len(self.headers)

    @property
    def times_ps(self) -> np.ndarray:
        """Time of each frame as written."""
        return np.array([header.time for header in self.headers], dtype=np.float64)

    def read(self, frames: np.ndarray, atoms: np.ndarray) -> Frames:
        """Read some atoms of some frames; velocities only if all these frames have them."""
        headers = [self.headers[frame] for frame in frames.tolist()]
        positions = np.zeros((len(headers), len(atoms), 3), dtype=np.float32)
        velocities = np.zeros_like(positions)
        box = np.zeros((len(headers), 3, 3), dtype=np.float32)
        moving = [header.velocities is not None for header in headers]
        with self.path.open("rb") as file:
            for index, header in enumerate(headers):
                positions[index] = _block(file, header, header.positions)[atoms]
                if header.velocities is not None:
                    velocities[index] = _block(file, header, header.velocities)[atoms]
                if header.box is not None:
                    box[index] = _reals(file, header, header.box, 9).reshape(3, 3)
        # Damaged bytes may be no numbers; whoever asked for them looks at that.
        with np.errstate(invalid="ignore", over="ignore"):
            return Frames(
                positions=positions * np.float32(ANGSTROM_PER_NM),
                box=box * np.float32(ANGSTROM_PER_NM),
                velocities=velocities * np.float32(ANGSTROM_PER_NM) if all(moving) else None,
            )


def open_trr(path: Path) -> TrrFile:
    """Read all headers of a TRR file and look for frames of zeros.

    Raises:
        InputError: There is no whole frame, a header is damaged, or no frame has positions.
    """
    headers, notices = walk(path, _header, lambda _: SIGNATURE)
    check_same_atoms(path, [header.atoms for header in headers])
    with path.open("rb") as file:
        checked = [_without_zeros(file, header) for header in headers]
    kept = [header for header in checked if header.positions is not None]
    if not kept:
        raise InputError(f"{path}: none of the {len(headers)} frames has positions")
    odd = []
    if len(kept) < len(headers):
        count = len(headers) - len(kept)
        message = f"{count} frames have no positions (or only zeros) and were left out"
        odd.append(Notice(code="frames-without-positions", message=message, count=count))
    still = sum(header.velocities is None for header in kept)
    if 0 < still < len(kept) or any(
        before.velocities is not None and after.velocities is None
        for before, after in zip(headers, checked, strict=True)
    ):
        message = f"{still} frames have no velocities (or only zeros); none are used there"
        odd.append(Notice(code="frames-without-velocities", message=message, count=still))
    return TrrFile(path=path, headers=kept, notices=(*notices, *odd))


def _header(file: BinaryIO, offset: int) -> TrrHeader | str:
    file.seek(offset)
    content = file.read(len(SIGNATURE) + _SIZES.size + 16)
    if not content.startswith(SIGNATURE):
        return "it does not start with the number 1993 and the name of the format"
    if len(content) < len(SIGNATURE) + _SIZES.size + 8:
        return "the file ends within the header"
    sizes = _SIZES.unpack_from(content, len(SIGNATURE))
    blocks, atoms = sizes[:10], sizes[10]
    box, positions, velocities, forces = blocks[2], blocks[7], blocks[8], blocks[9]
    if min(blocks) < 0 or atoms < 1:
        return f"the header promises {atoms} atoms and blocks of {min(blocks)} bytes"
    per_atom = {size for size in (positions, velocities, forces) if size}
    real = "f8" if box == 72 or per_atom == {24 * atoms} else "f4"
    width = int(real[1])
    if per_atom - {3 * width * atoms} or box not in (0, 9 * width):
        return f"the sizes of its blocks do not fit {atoms} atoms"
    time = struct.unpack_from(">d" if width == 8 else ">f", content, len(SIGNATURE) + _SIZES.size)
    # The blocks follow each other in the order of their sizes; an empty one takes no room.
    starts, position = [], offset + len(SIGNATURE) + _SIZES.size + 2 * width
    for size in blocks:
        starts.append(position if size else None)
        position += size
    return TrrHeader(
        start=offset,
        end=position,
        atoms=atoms,
        time=time[0],
        real=">" + real,
        box=starts[2],
        positions=starts[7],
        velocities=starts[8],
    )


def _without_zeros(file: BinaryIO, header: TrrHeader) -> TrrHeader:
    """Forget positions or velocities of which all numbers are zero."""
    positions, velocities = header.positions, header.velocities
    return replace(
        header,
        positions=None if _is_zero(file, header, positions) else positions,
        velocities=None if _is_zero(file, header, velocities) else velocities,
    )


def _is_zero(file: BinaryIO, header: TrrHeader, offset: int | None) -> bool:
    # One atom may rest at the origin; all of them cannot. Mostly the first few tell.
    if offset is None or header.atoms == 1:
        return False
    few = 3 * min(header.atoms, 64)
    # A damaged number may be none; whoever asked for it looks at that.
    with np.errstate(invalid="ignore"):
        return not (_reals(file, header, offset, few).any() or _block(file, header, offset).any())


def _block(file: BinaryIO, header: TrrHeader, offset: int | None) -> np.ndarray:
    assert offset is not None
    return _reals(file, header, offset, 3 * header.atoms).reshape(-1, 3)


def _reals(file: BinaryIO, header: TrrHeader, offset: int, count: int) -> np.ndarray:
    file.seek(offset)
    return np.frombuffer(file.read(count * int(header.real[2])), dtype=header.real, count=count)
