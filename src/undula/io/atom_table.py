"""The atoms of a structure file as they are written there, before any rule is applied."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from undula.errors import InputError, Notice


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomTable:
    """One row per atom in the order of the file, all models one after the other.

    Attributes:
        path: The file, for messages.
        positions: In the unit of the file.
        elements: Upper-case symbols as written; empty where the file has none.
        name_columns: Atom names with the blanks of their columns (PDB) or stripped.
        residue_names: As written.
        residue_numbers: As written.
        insertion_codes: One character or empty.
        chain_ids: As written; may be empty.
        altlocs: Label of the alternative location, one character or empty.
        occupancies: 1 where the file has none.
        lines: Line of the file, from 1, or the atom's id in mmCIF.
        model: Which model, from 0.
        models: How many models there are.
        times_ps: Time of each model, or none.
        box: Edge vectors of each model in rows, in the unit of the file; none if not given.
        row_word: What ``lines`` counts, for messages.
        notices: What was odd in the file.
    """

    path: Path
    positions: Float[np.ndarray, "rows 3"]
    elements: np.ndarray
    name_columns: np.ndarray
    residue_names: np.ndarray
    residue_numbers: np.ndarray
    insertion_codes: np.ndarray
    chain_ids: np.ndarray
    altlocs: np.ndarray
    occupancies: np.ndarray
    lines: np.ndarray
    model: np.ndarray
    models: int
    times_ps: np.ndarray | None = None
    box: Float[np.ndarray, "models 3 3"] | None = None
    row_word: str = "line"
    notices: tuple[Notice, ...] = ()

    def place(self, row: int) -> str:
        """Name an atom for a message: file, line, atom, residue and chain."""
        chain = f" of chain {self.chain_ids[row]}" if self.chain_ids[row] else ""
        residue = f"{self.residue_names[row]} {self.residue_numbers[row]}"
        code = self.insertion_codes[row]
        return (
            f"{self.path}: {self.row_word} {self.lines[row]}, atom {self.name_columns[row].strip()}"
            f" in {residue}{code}{chain}"
        )

    def rows(self, model: int) -> np.ndarray:
        """Return the rows of one model (from 0) in the order of the file."""
        return np.nonzero(self.model == model)[0]

    def check_models_alike(self) -> None:
        """Raise where a model has other atoms, or the same in another order, than the first.

        Raises:
            InputError: The number of the model and its first differing atom.
        """
        first = self.rows(0)
        for model in range(1, self.models):
            rows = self.rows(model)
            where = f"{self.path}: model {model + 1}"
            if len(rows) != len(first):
                raise InputError(f"{where} has {len(rows)} atoms, the first has {len(first)}")
            for label in ("name_columns", "residue_names", "residue_numbers", "chain_ids"):
                column = getattr(self, label)
                differs = np.nonzero(column[rows] != column[first])[0]
                if len(differs):
                    mine, others = (self.place(int(r[differs[0]])) for r in (rows, first))
                    raise InputError(
                        f"{where} has other atoms than the first: {mine.split(': ')[-1]} against "
                        f"{others.split(': ')[-1]}"
                    )
