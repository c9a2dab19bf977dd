"""Read XTC: headers here, compressed positions by mdtraj in a child process.

A frame is big-endian: magic 1995, atoms, step, time, box (nm), atoms again, and then up to
nine atoms as plain floats or, for more, the precision, the smallest and largest integer
coordinates, a bit width, the number of bytes, and the bytes padded to a multiple of four.

A reader of damaged bytes may crash, so it runs in a process of its own, on a copy of just the
frames wanted. The extremes in the header are a checksum: the decoded coordinates have to reach
them exactly. All writers that we know (GROMACS, mdtraj, OpenMM, chemfiles, biotite) pack the same
coordinates into the same bytes, so that a frame that would be packed otherwise is damaged, if
others of its file are as they should be.
"""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from undula.errors import InputError, MachineError, Notice
from undula.io import trajectory_child
from undula.io.frame_file import Frames, check_same_atoms, walk
from undula.units import ANGSTROM_PER_NM

MAGIC = struct.pack(">i", 1995)
_FIXED = struct.Struct(">4siif9fi")
_PACKED = struct.Struct(">f8i")
_FEW_ATOMS = 9
_FIRST_BIT_WIDTH, _LAST_BIT_WIDTH = 9, 72
_DECIMALS = tuple(10.0**digits for digits in range(1, 8))
_WITNESSES = 16
_SECONDS = 30.0
_BYTES_PER_SECOND = 4e6
_NOT_THE_FILE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGBUS)
"""What kills a decoder whatever it reads; the last where its result does not fit on the disk."""


@dataclass(frozen=True, kw_only=True)
class XtcHeader:
    """The header of one frame; lengths in nm as written; precision 0 for a few plain floats."""

    start: int
    end: int
    atoms: int
    time: float
    box: tuple[float, ...]
    precision: float


@dataclass(frozen=True, kw_only=True, eq=False)
class XtcFile:
    """An XTC file whose headers are sound."""

    path: Path
    headers: list[XtcHeader]
    notices: tuple[Notice, ...]

    @property
    def atoms(self) -> int:
        """Atoms in every frame."""
        return self.headers[0].atoms

    @property
    def frames(self) -> int:
        """Number of whole frames."""
        return len(self.headers)

    @property
    def times_ps(self) -> np.ndarray:
        """Time of each frame as written."""
        return np.array([header.time for header in self.headers], dtype=np.float64)

    def read(self, frames: np.ndarray, atoms: np.ndarray) -> Frames:
        """Read some atoms of some frames.

        Raises:
            InputError: A frame cannot be decoded, or into what its header or its bytes deny.
            MachineError: There is no room for temporary files.
        """
        positions, alike = self.decoded(frames, atoms)
        notices = self._check_packing(frames, alike)
        box = np.array([self.headers[frame].box for frame in frames.tolist()]).reshape(-1, 3, 3)
        return Frames(
            positions=positions, box=(box * ANGSTROM_PER_NM).astype(np.float32), notices=notices
        )

    def _check_packing(self, frames: np.ndarray, alike: np.ndarray) -> tuple[Notice, ...]:
        """Raise where frames were packed otherwise than most; say so where none are as usual.

        Where few frames are read, others of the file are looked at.
        """
        if alike.all():
            return ()
        if 2 * alike.sum() < len(frames):
            some = np.unique(np.linspace(0, self.frames - 1, _WITNESSES).round().astype(int))
            _, others = self.decoded(some, np.zeros(1, dtype=int))
            if 2 * others.sum() < len(some):
                message = (
                    "frames are packed otherwise than by any writer that undula knows; that they "
                    "are not damaged was seen by their bonds alone"
                )
                return (Notice(code="packing-unknown", message=message, count=self.frames),)
        bad = frames[~alike]
        raise InputError(
            f"{self.path}: frame {bad[0] + 1} is damaged ({len(bad)} of {len(frames)} are): its "
            "coordinates do not pack into its bytes"
        )

    def decoded(self, frames: np.ndarray, atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return some atoms of some frames, Å, and whether each frame packs into its bytes.

        Raises:
            InputError: A frame cannot be decoded, or into what its header denies.
            MachineError: There is no room for temporary files.
        """
        headers = [self.headers[frame] for frame in frames.tolist()]
        try:
            with tempfile.TemporaryDirectory(prefix="undula-") as folder:
                return self._decoded(Path(folder), headers, frames, atoms)
        except OSError as error:
            raise MachineError(f"cannot unpack {self.path}: {error.strerror or error}") from error

    def _decoded(
        self, folder: Path, headers: list[XtcHeader], frames: np.ndarray, atoms: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        with self.path.open("rb") as source, (folder / "frames.xtc").open("wb") as target:
            for header in headers:
                source.seek(header.start)
                content = source.read(header.end - header.start)
                if len(content) != header.end - header.start:
                    raise InputError(f"{self.path}: the file became shorter while it was read")
                target.write(content)
            size = target.tell()
        np.save(folder / "atoms.npy", atoms)
        # -P keeps the folder of the child's file out of its search path.
        command = [sys.executable, "-P", trajectory_child.__file__, str(folder)]
        limit = _SECONDS + size / _BYTES_PER_SECOND
        try:
            child = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL
            )
            answer = child.stdout.splitlines()
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{self.path}: decoding took more than {limit:.0f} s") from error
        if child.returncode == 0:
            found = (folder / name for name in ("positions.npy", "alike.npy"))
            positions, alike = (np.load(path, allow_pickle=False) for path in found)
            return positions, alike
        if -child.returncode in _NOT_THE_FILE:
            raise MachineError(
                f"the process that decodes {self.path} was killed by signal {-child.returncode}: "
                "by another process, for want of memory, or with the disk full"
            )
        if child.returncode < 0:
            problem = f"the decoder was killed by signal {-child.returncode}"
        elif answer and answer[-1].startswith("{"):
            problem = json.loads(answer[-1])["problem"]
        else:
            reason = child.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise MachineError(f"the process that decodes {self.path} failed: {reason[0]}")
        frame = min(answer.count("."), len(frames) - 1)
        raise InputError(f"{self.path}: frame {frames[frame] + 1} is damaged: {problem}")


def open_xtc(path: Path) -> XtcFile:
    """Read all headers of an XTC file.

    Raises:
        InputError: There is no whole frame, a header is damaged, or atom counts differ.
    """
    headers, notices = walk(path, _header, lambda first: MAGIC + struct.pack(">i", first.atoms))
    check_same_atoms(path, [header.atoms for header in headers])
    _check_precision(path, [header.precision for header in headers])
    return XtcFile(path=path, headers=headers, notices=notices)


def _check_precision(path: Path, found: list[float]) -> None:
    """Raise where a frame was rounded otherwise than most, but not to decimals.

    A precision that was damaged by a few percent scales a frame, and its bonds hardly tell.
    """
    usual = Counter(found).most_common(1)[0][0]
    for number, precision in enumerate(found, start=1):
        if precision != usual and precision not in _DECIMALS:
            raise InputError(
                f"{path}: frame {number} is damaged: its precision is {precision:g}, that of "
                f"other frames {usual:g}"
            )


def _header(file: BinaryIO, offset: int) -> XtcHeader | str:
    file.seek(offset)
    content = file.read(_FIXED.size + _PACKED.size)
    if len(content) < _FIXED.size:
        return "the file ends within the header"
    magic, atoms, _, time, *box, again = _FIXED.unpack_from(content)
    if magic != MAGIC:
        return "it does not start with the number 1995"
    if atoms < 1 or again != atoms:
        return f"the header promises {atoms} atoms and again {again}"
    end, precision = offset + _FIXED.size + 12 * atoms, 0.0
    if atoms > _FEW_ATOMS:
        if len(content) < _FIXED.size + _PACKED.size:
            return "the file ends within the header"
        precision, *extremes, width, count = _PACKED.unpack_from(content, _FIXED.size)
        low, high = extremes[:3], extremes[3:]
        # Even three bits an atom would be less than any real file has; this bounds the memory.
        if not 0 < precision < 1e8 or any(a > b for a, b in zip(low, high, strict=True)):
            return "the header has an impossible range of coordinates"
        if not _FIRST_BIT_WIDTH <= width <= _LAST_BIT_WIDTH or not atoms // 8 <= count:
            return f"the header promises {atoms} atoms in {count} bytes"
        end = offset + _FIXED.size + _PACKED.size + (count + 3) // 4 * 4
    return XtcHeader(
        start=offset, end=end, atoms=atoms, time=time, box=tuple(box), precision=precision
    )
