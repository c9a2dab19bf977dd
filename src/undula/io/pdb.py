"""Read the PDB format: fixed columns, checked number by number.

The columns are read here and not by a library because a trajectory needs the atoms in the
order of the file, and because libraries read ``21.ish`` as 21. Serial numbers are not used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from undula.errors import InputError, Notice
from undula.io.atom_table import AtomTable
from undula.io.boxes import edge_vectors
from undula.io.columns import decimals, hybrid_36

_WIDTH = 80


def read_pdb(path: Path, content: bytes) -> AtomTable:
    """Read all models of a PDB file.

    Four-letter residue names (columns 18–21), segment names in place of a blank chain and
    hybrid-36 residue numbers are understood. A blank occupancy is 1.

    Args:
        path: For messages.
        content: The unpacked file.

    Raises:
        InputError: A number is none, or MODEL and ENDMDL do not enclose the atoms in turn.
    """
    records: list[bytes] = []
    lines: list[int] = []
    model_of: list[int] = []
    starts: list[tuple[int, str]] = []
    cell: tuple[int, bytes] | None = None
    inside = False
    for number, line in enumerate(re.split(rb"\r\n|\n|\r", content), start=1):
        kind = line[:6]
        if kind in (b"ATOM  ", b"HETATM"):
            if starts and not inside:
                raise InputError(f"{path}: line {number}: this atom stands outside of any model")
            records.append(line[:_WIDTH].ljust(_WIDTH).replace(b"\t", b" "))
            lines.append(number)
            model_of.append(max(len(starts) - 1, 0))
        elif kind.rstrip() == b"MODEL":
            if inside:
                raise InputError(f"{path}: line {number}: MODEL before the ENDMDL of the last one")
            if records and not starts:
                raise InputError(f"{path}: line {number}: atoms stand before the first MODEL")
            starts.append((number, line[6:].decode("latin-1").strip()))
            inside = True
        elif kind == b"ENDMDL":
            if not inside:
                raise InputError(f"{path}: line {number}: ENDMDL without a MODEL before it")
            inside = False
        elif kind == b"CRYST1" and cell is None:
            cell = (number, line.ljust(54))
    if inside:
        raise InputError(f"{path}: line {starts[-1][0]}: this MODEL is not closed by ENDMDL")
    if not records:
        raise InputError(f"{path}: there are no atoms, only other records")
    return _table(path, records, np.array(lines), np.array(model_of), starts, cell)


def _table(
    path: Path,
    records: list[bytes],
    lines: np.ndarray,
    model: np.ndarray,
    starts: list[tuple[int, str]],
    cell: tuple[int, bytes] | None,
) -> AtomTable:
    letters = np.frombuffer(b"".join(records), dtype="S1").reshape(len(records), _WIDTH)

    def column(first: int, last: int) -> np.ndarray:
        """Return columns by the PDB's own numbers, from 1 and with the last included."""
        width = last - first + 1
        return np.ascontiguousarray(letters[:, first - 1 : last]).view(f"S{width}")[:, 0]

    def words(first: int, last: int) -> np.ndarray:
        # Latin-1 decodes any byte, so a strange letter in a name cannot stop the reading.
        return np.char.strip(np.char.decode(column(first, last), "latin-1"))

    def place(row: int) -> str:
        return f"{path}: line {lines[row]}"

    axes = ((31, 38, "x"), (39, 46, "y"), (47, 54, "z"))
    positions = np.stack(
        [decimals(column(first, last), place, f"{x} coordinate") for first, last, x in axes], axis=1
    )
    occupancy = column(55, 60)
    blank = np.char.strip(occupancy) == b""
    occupancies = decimals(np.where(blank, b"1.00", occupancy), place, "occupancy")
    chains = words(22, 22)
    segments = words(73, 76)
    chain_ids = np.where(chains == "", segments, chains)
    notices = _oddities(path, starts, int(((chains == "") & (segments != "")).sum()))
    elements = np.char.upper(words(77, 78))
    return AtomTable(
        path=path,
        positions=positions,
        elements=np.where(np.char.isalpha(elements), elements, ""),
        name_columns=np.char.decode(column(13, 16), "latin-1"),
        residue_names=words(18, 21),
        residue_numbers=_residue_numbers(words(23, 26), place),
        insertion_codes=words(27, 27),
        chain_ids=chain_ids,
        altlocs=words(17, 17),
        occupancies=occupancies,
        lines=lines,
        model=model,
        models=max(len(starts), 1),
        box=None if cell is None else _box(path, cell, max(len(starts), 1)),
        notices=notices,
    )


def _residue_numbers(texts: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    distinct, inverse = np.unique(texts, return_inverse=True)
    values = np.zeros(len(distinct), dtype=np.int64)
    for index, text in enumerate(distinct.tolist()):
        value = hybrid_36(text, 4) if text else 0
        if value is None:
            row = int(np.nonzero(inverse == index)[0][0])
            raise InputError(f"{place(row)}: the residue number is no number ({text!r})")
        values[index] = value
    return values[inverse]


def _oddities(path: Path, starts: list[tuple[int, str]], segments: int) -> tuple[Notice, ...]:
    notices = []
    odd = [number for number, text in starts if not text.isdecimal()]
    if odd:
        notices.append(
            Notice(
                code="models-unnumbered",
                message=f"{len(odd)} MODEL records have no number; models count from 1",
                count=len(odd),
                place=f"{path}: line {odd[0]}",
            )
        )
    if segments:
        notices.append(
            Notice(
                code="segments-as-chains",
                message=f"{segments} atoms without a chain took their segment name as chain",
                count=segments,
            )
        )
    return tuple(notices)


def _box(path: Path, cell: tuple[int, bytes], models: int) -> np.ndarray | None:
    number, line = cell
    fields = [line[start:end] for start, end in ((6, 15), (15, 24), (24, 33))]
    fields += [line[start:end] for start, end in ((33, 40), (40, 47), (47, 54))]
    if any(not field.strip() for field in fields):
        return None
    values = decimals(np.array(fields), lambda _: f"{path}: line {number}", "unit cell")
    return np.repeat(edge_vectors(values[None, :3], values[None, 3:]), models, axis=0)
