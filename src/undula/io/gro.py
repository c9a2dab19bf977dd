"""Read the GRO format of GROMACS: fixed columns, lengths in nm, one frame after another."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from undula.errors import InputError
from undula.io.atom_table import AtomTable
from undula.io.columns import decimals, integers

_NAMES_END = 20
_TIME = re.compile(r"\bt\s*=\s*([-+.\deE]+)")
_BOX_LINE = re.compile(rb"(\s*[-+]?\d+\.\d+){3,9}\s*")


def read_gro(path: Path, content: bytes) -> AtomTable:
    """Read all frames of a GRO file; positions stay in nm, velocities are left alone.

    Args:
        path: For messages.
        content: The unpacked file.

    Raises:
        InputError: A frame holds fewer atoms than it promises, or a number is none.
    """
    lines = re.split(rb"\r\n|\n|\r", content.rstrip())
    records: list[bytes] = []
    numbers: list[int] = []
    model: list[int] = []
    boxes: list[np.ndarray] = []
    times: list[float] = []
    start = 0
    while start < len(lines) and (lines[start].strip() or not boxes):
        count = _promised(path, lines, start)
        body = lines[start + 2 : start + 2 + count]
        found = next((k for k, line in enumerate(body) if _is_no_atom(line)), len(body))
        if found < count:
            raise InputError(
                f"{path}: line {start + 2} promises {count} atoms, but {found} are there"
            )
        records += body
        numbers += range(start + 3, start + 3 + count)
        model += [len(boxes)] * count
        boxes.append(_box(path, lines, start + 2 + count))
        match = _TIME.search(lines[start].decode("latin-1"))
        times.append(float(match[1]) if match and _is_number(match[1]) else np.nan)
        start += count + 3
    if not records:
        raise InputError(f"{path}: there are no atoms")
    return _table(path, records, np.array(numbers), np.array(model), np.stack(boxes), times)


def _promised(path: Path, lines: list[bytes], start: int) -> int:
    text = lines[start + 1].strip() if start + 1 < len(lines) else b""
    if not text.isdigit():
        raise InputError(f"{path}: line {start + 2}: expected the number of atoms of the frame")
    return int(text)


def _is_no_atom(line: bytes) -> bool:
    return not line.strip() or _BOX_LINE.fullmatch(line) is not None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None


def _box(path: Path, lines: list[bytes], index: int) -> np.ndarray:
    words = lines[index].split() if index < len(lines) else []
    if len(words) not in (3, 9):
        raise InputError(f"{path}: line {index + 1}: expected a box of 3 or 9 numbers")
    values = decimals(np.array(words), lambda _: f"{path}: line {index + 1}", "box")
    xx, yy, zz, xy, xz, yx, yz, zx, zy = np.pad(values, (0, 9 - len(values)))
    return np.array([[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]])


def _table(
    path: Path,
    records: list[bytes],
    lines: np.ndarray,
    model: np.ndarray,
    boxes: np.ndarray,
    times: list[float],
) -> AtomTable:
    # The distance of the decimal points is the width of a column: more digits, wider columns.
    points = [index for index, letter in enumerate(records[0]) if letter == ord(".")]
    points = [index for index in points if index >= _NAMES_END]
    if len(points) < 3:
        raise InputError(f"{path}: line {lines[0]}: expected three coordinates")
    width = points[1] - points[0]
    end = _NAMES_END + 3 * width
    letters = np.frombuffer(
        b"".join(record[:end].ljust(end) for record in records), dtype="S1"
    ).reshape(len(records), end)

    def column(first: int, last: int) -> np.ndarray:
        return np.ascontiguousarray(letters[:, first:last]).view(f"S{last - first}")[:, 0]

    def words(first: int, last: int) -> np.ndarray:
        return np.char.strip(np.char.decode(column(first, last), "latin-1"))

    def place(row: int) -> str:
        return f"{path}: line {lines[row]}, atom {records[row][10:15].decode('latin-1').strip()}"

    starts = [_NAMES_END + axis * width for axis in range(3)]
    positions = np.stack(
        [
            decimals(column(first, first + width), place, f"{axis} coordinate")
            for first, axis in zip(starts, "xyz", strict=True)
        ],
        axis=1,
    )
    blank = np.full(len(records), "")
    return AtomTable(
        path=path,
        positions=positions,
        elements=blank,
        name_columns=words(10, 15),
        residue_names=words(5, 10),
        residue_numbers=integers(column(0, 5), place, "residue number"),
        insertion_codes=blank,
        chain_ids=blank,
        altlocs=blank,
        occupancies=np.ones(len(records)),
        lines=lines,
        model=model,
        models=len(boxes),
        times_ps=None if np.isnan(times).any() else np.array(times),
        box=boxes,
    )
