"""Read DCD of CHARMM, NAMD, X-PLOR and OpenMM: Fortran records of single-precision coordinates.

Big- and little-endian files, record markers of four and of eight bytes, fixed atoms, unit cells
and the fourth dimension of CHARMM are understood; files of velocities are refused by name.
Every marker of every frame is checked against the size that the header implies.

The unit cell is written in three ways. Off-diagonal numbers of at most one are cosines; else,
from CHARMM version 25 on, the numbers are a symmetric shape matrix (unless all three are 90);
else they are degrees.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from undula.errors import InputError, Notice
from undula.io.boxes import edge_vectors
from undula.io.frame_file import Frames, tail_notice

PICOSECONDS_PER_AKMA = 0.04888821
"""The unit of time of CHARMM and NAMD: √(u Å² mol / kcal)."""

_CONTROL_BYTES = 84
_LAST_VERSION_WITH_ANGLES = 24


@dataclass(frozen=True, kw_only=True)
class _Header:
    order: str
    marker: int
    promised: int
    first_step: int
    steps_between: int
    step_akma: float
    version: int
    has_cell: bool
    has_fourth: bool
    atoms: int
    free: np.ndarray | None
    end: int


@dataclass(frozen=True, kw_only=True, eq=False)
class DcdFile:
    """A DCD file whose markers are sound."""

    path: Path
    header: _Header
    frames: int
    notices: tuple[Notice, ...]

    @property
    def atoms(self) -> int:
        """Atoms in every frame."""
        return self.header.atoms

    @property
    def times_ps(self) -> np.ndarray | None:
        """Time of each frame; none where the header gives no step or the placeholder 1."""
        header = self.header
        if header.step_akma in (0.0, 1.0) or header.steps_between < 1:
            return None
        steps = header.first_step + np.arange(self.frames) * float(header.steps_between)
        return steps * header.step_akma * PICOSECONDS_PER_AKMA

    def read(self, frames: np.ndarray, atoms: np.ndarray) -> Frames:
        """Read some atoms of some frames."""
        first, _ = _frame_types(self.header)
        start = np.memmap(self.path, dtype=first, mode="r", offset=self.header.end, shape=1)
        rest = _rest(self.path, self.header, self.frames - 1)
        positions = np.empty((len(frames), len(atoms), 3), dtype=np.float32)
        cells = np.zeros((len(frames), 6))
        for index, frame in enumerate(frames.tolist()):
            record = rest[frame - 1] if frame else start[0]
            xyz = np.stack([record[axis] for axis in "xyz"], axis=1)
            if frame and self.header.free is not None:
                whole = np.stack([start[0][axis] for axis in "xyz"], axis=1)
                whole[self.header.free] = xyz
                xyz = whole
            positions[index] = xyz[atoms]
            if self.header.has_cell:
                cells[index] = record["cell"]
        return Frames(positions=positions, box=_boxes(cells, self.header.version))


def open_dcd(path: Path) -> DcdFile:
    """Read the header of a DCD file and check the markers of all frames.

    Raises:
        InputError: The header is damaged or of a kind that is not read, there is no whole
            frame, or a frame in the middle is damaged.
    """
    header = _read_header(path)
    first, later = _frame_types(header)
    rest = path.stat().st_size - header.end - first.itemsize
    if rest < 0:
        raise InputError(f"{path}: there is no whole frame: the file ends within the first")
    start = np.memmap(path, dtype=first, mode="r", offset=header.end, shape=1)
    frames = 1 + rest // later.itemsize
    sound = np.concatenate([_is_sound(start), _is_sound(_rest(path, header, frames - 1))])
    if not sound[0]:
        raise InputError(f"{path}: frame 1 is damaged: a record has another length than promised")
    whole = int(np.nonzero(sound)[0].max()) + 1
    if not sound[:whole].all():
        frame = int(np.nonzero(~sound)[0][0]) + 1
        raise InputError(
            f"{path}: frame {frame} is damaged: a record has another length than promised"
        )
    notices = []
    tail = rest - (whole - 1) * later.itemsize
    if tail:
        notices.append(tail_notice(path, whole, tail))
    if header.promised not in (0, whole):
        message = f"the header promises {header.promised} frames, but {whole} are there"
        notices.append(Notice(code="frame-count-differs", message=message, place=str(path)))
    return DcdFile(path=path, header=header, frames=whole, notices=tuple(notices))


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        head = file.read(16)
        marker = 8 if head[8:12] in (b"CORD", b"VELD") else 4
        if head[marker : marker + 4] == b"VELD":
            raise InputError(f"{path}: this DCD file holds velocities, expected coordinates")
        order = "<" if head[0] == _CONTROL_BYTES else ">"
        code = f"{order}{'i' if marker == 4 else 'q'}"
        file.seek(0)

        def record(what: str, size: int | None = None) -> bytes:
            length = struct.unpack(code, file.read(marker).ljust(marker, b"\xff"))[0]
            if length < 0 or length > 2**28 or (size is not None and length != size):
                raise InputError(f"{path}: the {what} of this DCD file is damaged")
            content = file.read(length)
            if len(content) < length or file.read(marker) != struct.pack(code, length):
                raise InputError(f"{path}: the {what} of this DCD file is cut or damaged")
            return content

        control = record("header", _CONTROL_BYTES)[4:]
        numbers = struct.unpack(f"{order}20i", control)
        record("title")
        atoms = struct.unpack(f"{order}i", record("number of atoms", 4))[0]
        version, fixed = numbers[19], numbers[8]
        size = path.stat().st_size
        if not 0 < atoms <= size // 4 or not 0 <= fixed < atoms:
            raise InputError(
                f"{path}: the header promises {atoms} atoms ({fixed} of them fixed), which "
                f"{size} bytes cannot hold"
            )
        free = None
        if fixed:
            indices = record("list of free atoms", 4 * (atoms - fixed))
            free = np.frombuffer(indices, dtype=f"{order}i4") - 1
            if free.min() < 0 or free.max() >= atoms or len(np.unique(free)) != len(free):
                raise InputError(f"{path}: the list of free atoms of this DCD file is damaged")
        # X-PLOR, which has no version, writes the step in double precision.
        step = struct.unpack_from(f"{order}f" if version else f"{order}d", control, 36)[0]
        return _Header(
            order=order,
            marker=marker,
            promised=numbers[0],
            first_step=numbers[1],
            steps_between=numbers[2],
            step_akma=step if np.isfinite(step) and step > 0 else 0.0,
            version=version,
            has_cell=bool(version and numbers[10]),
            has_fourth=bool(version and numbers[11]),
            atoms=atoms,
            free=free,
            end=file.tell(),
        )


def _frame_types(header: _Header) -> tuple[np.dtype, np.dtype]:
    """Return the layout of the first frame and of the later ones, which leave out fixed atoms."""

    def frame(atoms: int) -> np.dtype:
        marker = f"{header.order}i{header.marker}"
        axes = "xyzw" if header.has_fourth else "xyz"
        records = [("cell", "f8", 6)] if header.has_cell else []
        records += [(axis, "f4", atoms) for axis in axes]
        fields: list[tuple] = []
        for name, kind, count in records:
            fields.append((f"before_{name}", marker))
            fields.append((name, header.order + kind, (count,)))
            fields.append((f"after_{name}", marker))
        return np.dtype(fields)

    later = header.atoms if header.free is None else len(header.free)
    return frame(header.atoms), frame(later)


def _rest(path: Path, header: _Header, frames: int) -> np.ndarray:
    first, later = _frame_types(header)
    if frames < 1:
        return np.empty(0, dtype=later)
    offset = header.end + first.itemsize
    return np.memmap(path, dtype=later, mode="r", offset=offset, shape=frames)


def _is_sound(frames: np.ndarray) -> np.ndarray:
    """Tell for each frame whether all record markers state the sizes of their records."""
    sound = np.ones(len(frames), dtype=bool)
    names = frames.dtype.names or ()
    for before, name, after in zip(names[::3], names[1::3], names[2::3], strict=True):
        size = frames.dtype[name].itemsize
        sound &= (frames[before] == size) & (frames[after] == size)
    return sound


def _boxes(cells: np.ndarray, version: int) -> np.ndarray:
    """Turn cells as written (a, γ, b, β, α, c) into edge vectors, zero where there is none."""
    a, gamma, b, beta, alpha, c = cells.T
    off = np.stack([alpha, beta, gamma], axis=1)
    with np.errstate(invalid="ignore"):
        angles = np.where(np.abs(off) <= 1, np.degrees(np.arccos(np.clip(off, -1, 1))), off)
    angles = np.where(off == 0, 90.0, angles)
    boxes = edge_vectors(np.stack([a, b, c], axis=1), angles)
    if version > _LAST_VERSION_WITH_ANGLES:
        shape = np.stack([a, gamma, beta, gamma, b, alpha, beta, alpha, c], axis=1)
        is_shape = (np.abs(off) > 1).any(axis=1) & (off != 90).any(axis=1)
        boxes[is_shape] = shape.reshape(-1, 3, 3)[is_shape]
    boxes[~(np.stack([a, b, c], axis=1) > 0).all(axis=1)] = 0
    # What is too large for single precision is infinite; whoever asked for it looks at that.
    with np.errstate(over="ignore"):
        return boxes.astype(np.float32)
