"""Decode XTC frames in a process of its own, so that damaged bytes can only crash this one.

Run as a file with a folder as its argument (`undula.io.xtc` does that). The folder holds
``frames.xtc`` and ``atoms.npy``; ``positions.npy`` (Å, float32) and ``alike.npy`` are added. One
point a line on standard output counts the sound frames. On a bad frame the last line is JSON and
the exit code is 3. This file must not import undula or torch: it starts in a fraction of a second.

Packing has many ways to write the same coordinates, and writers take just one. So each frame is
packed again, and ``alike.npy`` tells whether that gave its bytes: damage mostly did not.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
from mdtraj.formats.xtc import XTCTrajectoryFile

PACKED_BYTES = 2**22
"""Of positions, that are packed again at a time."""
LARGEST_PACKED = 2**20
"""Units from the origin up to which single precision keeps integers through both ways."""
_USUAL_PRECISION = 1000.0
_HEADER = struct.Struct(">f8i")
_FIXED_SIZE = 56
_FEW_ATOMS = 9
_ANGSTROM_PER_NM = 10.0


def decode(folder: Path) -> None:
    """Decode all frames of ``frames.xtc``, keep some atoms of each, and pack each again.

    Raises:
        ValueError: A frame cannot be decoded or contradicts its header.
        OSError: There is no room for what is packed again.
    """
    content = np.memmap(folder / "frames.xtc", dtype=np.uint8, mode="r")
    atoms = np.load(folder / "atoms.npy", allow_pickle=False)
    starts = _starts(content)
    kept = np.lib.format.open_memmap(
        folder / "positions.npy", mode="w+", dtype=np.float32, shape=(len(starts), len(atoms), 3)
    )
    alike: list[bool] = []
    waiting: list[np.ndarray] = []
    with XTCTrajectoryFile(str(folder / "frames.xtc")) as file:
        for index, start in enumerate(starts):
            try:
                positions = file.read(1)[0]
            except Exception as error:
                raise ValueError(f"it cannot be decoded ({error})") from error
            if positions.shape != (1, _integer(content, start + 4), 3):
                raise ValueError("it cannot be decoded")
            if not np.isfinite(positions).all():
                raise ValueError("a coordinate is not finite")
            _check_extremes(content, start, positions[0])
            kept[index] = positions[0, atoms] * _ANGSTROM_PER_NM
            waiting.append(positions[0])
            print(".", flush=True)
            if index + 1 == len(starts) or len(waiting) * positions.nbytes >= PACKED_BYTES:
                alike += _packed_alike(folder, content, starts[len(alike) : index + 1], waiting)
                waiting = []
    kept.flush()
    np.save(folder / "alike.npy", np.array(alike, dtype=bool))


def _integer(content: np.ndarray, offset: int) -> int:
    return int.from_bytes(content[offset : offset + 4].tobytes(), "big", signed=True)


def _starts(content: np.ndarray) -> list[int]:
    starts, offset = [], 0
    while offset < len(content):
        starts.append(offset)
        offset = _end(content, offset)
    return starts


def _end(content: np.ndarray, start: int) -> int:
    atoms = _integer(content, start + 4)
    if atoms <= _FEW_ATOMS:
        return start + _FIXED_SIZE + 12 * atoms
    count = _integer(content, start + _FIXED_SIZE + _HEADER.size - 4)
    return start + _FIXED_SIZE + _HEADER.size + (count + 3) // 4 * 4


def _packed_alike(
    folder: Path, content: np.ndarray, starts: list[int], positions: list[np.ndarray]
) -> list[bool]:
    """Tell of some frames whether their positions, nm, pack into the bytes that they have.

    The packing does not know the precision but through the integers: positions are scaled. Those
    too far out for that, and those that are not packed, count as alike.
    """
    if len(positions[0]) <= _FEW_ATOMS:
        return [True] * len(starts)
    again, far = folder / "again.xtc", []
    with XTCTrajectoryFile(str(again), "w") as file:
        for start, some in zip(starts, positions, strict=True):
            header = content[start + _FIXED_SIZE : start + _FIXED_SIZE + _HEADER.size].tobytes()
            precision, *numbers = _HEADER.unpack(header)
            far.append(max(map(abs, numbers[:6])) > LARGEST_PACKED)
            scaled = some.astype(np.float64) * (0.0 if far[-1] else precision / _USUAL_PRECISION)
            file.write(scaled.astype(np.float32))
    packed = np.fromfile(again, dtype=np.uint8)
    alike, offset = [], 0
    for start, passed in zip(starts, far, strict=True):
        if offset + _FIXED_SIZE + _HEADER.size > len(packed):
            break
        end = _end(packed, offset)
        # What the header says of step, time, box and precision is not packed.
        found = content[start + _FIXED_SIZE + 4 : _end(content, start)]
        alike.append(passed or np.array_equal(found, packed[offset + _FIXED_SIZE + 4 : end]))
        offset = end
    if len(alike) != len(starts) or offset != len(packed):
        raise OSError("not all that was packed again has reached the disk")
    return alike


def _check_extremes(content: np.ndarray, start: int, positions: np.ndarray) -> None:
    if len(positions) <= _FEW_ATOMS:
        return
    header = content[start + _FIXED_SIZE : start + _FIXED_SIZE + _HEADER.size].tobytes()
    precision, *numbers = _HEADER.unpack(header)
    low, high = np.array(numbers[:3], dtype=float), np.array(numbers[3:6], dtype=float)
    scaled = positions.astype(np.float64) * precision
    # Half a unit, and the rounding of single precision for large coordinates.
    slack = 0.5 + 2e-7 * np.maximum(np.abs(low), np.abs(high))
    off = np.maximum(np.abs(scaled.min(axis=0) - low), np.abs(scaled.max(axis=0) - high))
    if (off > slack).any():
        raise ValueError("its coordinates do not have the range that its header states")


def main() -> int:
    """Decode the folder named on the command line; 3 if a frame is bad."""
    folder = Path(sys.argv[1])
    try:
        decode(folder)
    except ValueError as error:
        problem = " ".join(str(error).split())
        # The frames that went well are counted by the reader of the points.
        print(json.dumps({"problem": problem}), flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
