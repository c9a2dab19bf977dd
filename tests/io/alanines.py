"""Text of a small peptide in the PDB format, for the tests of readers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# One alanine (L) of ideal geometry; the next begins where its own N would be.
ALANINE = {
    "N": (0.0, 0.0, 0.0),
    "CA": (1.458, 0.0, 0.0),
    "C": (2.009, 1.42, 0.0),
    "O": (1.251, 2.39, 0.0),
    "CB": (1.988, -0.773, -1.199),
}
NEXT = np.array([3.33, 1.54, 0.0])


def pdb_line(
    name: str,
    position: Sequence[float],
    *,
    record: str = "ATOM",
    serial: int = 1,
    altloc: str = "",
    residue: str = "ALA",
    chain: str = "A",
    number: int | str = 1,
    code: str = "",
    occupancy: float = 1.0,
    element: str | None = None,
    segment: str = "",
) -> str:
    """Write one ATOM line; the element is the first letter of the name if it is not given."""
    x, y, z = position
    symbol = name[0] if element is None else element
    column = f"{name:<4}" if len(name) == 4 or len(symbol) == 2 else f" {name:<3}"
    return (
        f"{record:<6}{serial:5d} {column}{altloc:1}{residue:<4}{chain:1}{number:>4}{code:1}   "
        f"{x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{0.0:6.2f}      {segment:<4}{symbol:>2}"
    )


def residue_lines(number: int, start: int | None = None, **fields: object) -> list[str]:
    """Write the lines of one alanine, placed as residue ``start`` of a straight chain."""
    offset = NEXT * ((number if start is None else start) - 1)
    return [
        pdb_line(name, np.add(position, offset), number=number, **fields)  # type: ignore[arg-type]
        for name, position in ALANINE.items()
    ]


def peptide_lines(residues: int = 3, **fields: object) -> list[str]:
    """Write the lines of a chain of alanines."""
    return [line for k in range(1, residues + 1) for line in residue_lines(k, **fields)]
