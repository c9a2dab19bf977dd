"""Decode XTC frames in a process of its own, so that damaged bytes can only crash this one.

Run as a file with a folder as its argument (`undula.io.xtc` does that). The folder holds
``frames.xtc`` and ``atoms.npy``; ``positions.npy`` (Å, float32) is added. One point a line on
standard output counts the sound frames. On a bad frame the last line is JSON and the exit code
is 3. This file must not import undula or torch: it starts in a fraction of a second.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
from mdtraj.formats.xtc import XTCTrajectoryFile

_HEADER = struct.Struct(">f8i")
_FIXED_SIZE = 56
_FEW_ATOMS = 9
_ANGSTROM_PER_NM = 10.0


def decode(folder: Path) -> None:
    """Decode all frames of ``frames.xtc`` and keep some atoms of each.

    Raises:
        ValueError: A frame cannot be decoded or contradicts its header.
    """
    content = np.memmap(folder / "frames.xtc", dtype=np.uint8, mode="r")
    atoms = np.load(folder / "atoms.npy", allow_pickle=False)
    starts = _starts(content)
    kept = np.lib.format.open_memmap(
        folder / "positions.npy", mode="w+", dtype=np.float32, shape=(len(starts), len(atoms), 3)
    )
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
            print(".", flush=True)
    kept.flush()


def _integer(content: np.ndarray, offset: int) -> int:
    return int.from_bytes(content[offset : offset + 4].tobytes(), "big", signed=True)


def _starts(content: np.ndarray) -> list[int]:
    starts, offset = [], 0
    while offset < len(content):
        starts.append(offset)
        atoms = _integer(content, offset + 4)
        if atoms <= _FEW_ATOMS:
            offset += _FIXED_SIZE + 12 * atoms
        else:
            count = _integer(content, offset + _FIXED_SIZE + _HEADER.size - 4)
            offset += _FIXED_SIZE + _HEADER.size + (count + 3) // 4 * 4
    return starts


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
