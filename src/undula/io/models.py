"""Read the models of a PDB, mmCIF or GRO file as the frames of a trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from undula.errors import Notice
from undula.io.atom_table import AtomTable
from undula.io.frame_file import Frames
from undula.io.structures import load_atom_table


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFile:
    """A structure file whose models have the same atoms."""

    table: AtomTable

    @property
    def path(self) -> Path:
        """The file."""
        return self.table.path

    @property
    def atoms(self) -> int:
        """Atoms in every model."""
        return len(self.table.rows(0))

    @property
    def frames(self) -> int:
        """Number of models."""
        return self.table.models

    @property
    def times_ps(self) -> np.ndarray | None:
        """Times in the titles of a GRO file; other formats have none."""
        return self.table.times_ps

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What is odd about the file."""
        return self.table.notices

    def read(self, frames: np.ndarray, atoms: np.ndarray) -> Frames:
        """Read some atoms of some models."""
        whole = self.table.positions.reshape(self.frames, self.atoms, 3)
        box = np.zeros((self.frames, 3, 3)) if self.table.box is None else self.table.box
        # What is too large for single precision is infinite; whoever asked for it looks at that.
        with np.errstate(over="ignore"):
            return Frames(
                positions=whole[np.ix_(frames, atoms)].astype(np.float32),
                box=box[frames].astype(np.float32),
            )


def open_models(path: Path) -> ModelFile:
    """Read all models of a structure file.

    Raises:
        InputError: The file is damaged, or its models have different atoms.
    """
    table = load_atom_table(path)
    table.check_models_alike()
    return ModelFile(table=table)
