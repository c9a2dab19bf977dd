"""Count what is imperfect in a protein: it is told, and never repaired.

Counted are missing heavy atoms, amino acids without Cα, breaks of the chain (C–N over 2.0 Å, or
no C or N to tell and a gap in the numbers), amino acids of other names, mirrored (D) residues,
occupancies of zero, and proteins of which only Cα is there.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Int

from undula.errors import Notice
from undula.io.atom_table import AtomTable
from undula.io.residues import missing_heavy_atoms, standard_name

LONGEST_PEPTIDE_BOND = 2.0
"""Å; a longer C–N distance is a break of the chain."""

_MESSAGES = {
    "nonstandard-residues": "amino acids of other kinds were kept",
    "atoms-missing": "heavy atoms are missing; none was added",
    "alpha-carbons-missing": "amino acids have no Cα",
    "chain-breaks": "breaks of the chain; no loop was built",
    "mirrored-residues": "amino acids are mirror images (D)",
    "zero-occupancies": "atoms of occupancy zero were kept",
    "alpha-carbons-only": "amino acids, of all of which only Cα is there",
}


def flaws(
    table: AtomTable,
    rows: Int[np.ndarray, " atoms"],
    residue_index: Int[np.ndarray, " atoms"],
    kinds: np.ndarray,
) -> list[Notice]:
    """Count the flaws of the atoms that are kept.

    Args:
        table: The file's atoms, Å.
        rows: Rows of the atoms, residue by residue.
        residue_index: Which residue each belongs to, ascending.
        kinds: What `undula.io.residues.kind_of_residue` says, one per atom.

    Returns:
        One notice for each kind of flaw that occurs, with the place of the first.
    """
    count: Counter[str] = Counter()
    place: dict[str, int] = {}

    def add(code: str, row: int, times: int = 1) -> None:
        count[code] += times
        place.setdefault(code, row)

    before: tuple[int, dict[str, np.ndarray]] | None = None
    known = 0
    for part in np.split(np.arange(len(rows)), np.nonzero(np.diff(residue_index))[0] + 1):
        if kinds[part[0]] != "protein":
            continue
        row = int(rows[part[0]])
        names = [name.strip() for name in table.name_columns[rows[part]].tolist()]
        atoms = dict(zip(names, table.positions[rows[part]], strict=True))
        name = str(table.residue_names[row])
        missing = missing_heavy_atoms(name, names)
        if missing:
            add("atoms-missing", row, len(missing))
        if standard_name(name) is None:
            add("nonstandard-residues", row)
        else:
            known += 1
            if names == ["CA"]:
                add("alpha-carbons-only", row)
            if "CA" not in atoms:
                add("alpha-carbons-missing", row)
        if _is_mirrored(atoms):
            add("mirrored-residues", row)
        if before is not None and table.chain_ids[row] == table.chain_ids[before[0]]:
            numbers = table.residue_numbers[[before[0], row]]
            if _is_break(before[1], atoms, int(np.diff(numbers)[0])):
                add("chain-breaks", row)
        before = row, atoms
    if count["alpha-carbons-only"] < known:
        del count["alpha-carbons-only"]
    zero = rows[table.occupancies[rows] == 0]
    if len(zero):
        add("zero-occupancies", int(zero[0]), len(zero))
    return [
        Notice(
            code=code,
            message=f"{count[code]} {message}",
            count=count[code],
            place=table.place(place[code]),
        )
        for code, message in _MESSAGES.items()
        if count[code]
    ]


def _is_mirrored(atoms: dict[str, np.ndarray]) -> bool:
    if not {"N", "CA", "C", "CB"} <= atoms.keys():
        return False
    bonds = np.stack([atoms[name] - atoms["CA"] for name in ("N", "C", "CB")])
    # L-amino acids have a positive triple product, about 2.6 Å³.
    return bool(np.linalg.det(bonds) < -1.0)


def _is_break(left: dict[str, np.ndarray], right: dict[str, np.ndarray], numbers: int) -> bool:
    if "C" in left and "N" in right:
        return bool(np.linalg.norm(right["N"] - left["C"]) > LONGEST_PEPTIDE_BOND)
    return abs(numbers) > 1
