"""Read the mmCIF format: gemmi splits the text into words, the numbers are checked here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np

from undula.errors import InputError
from undula.io.atom_table import AtomTable
from undula.io.boxes import edge_vectors
from undula.io.columns import decimals, integers

_CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")


def read_mmcif(path: Path, content: bytes) -> AtomTable:
    """Read all models of the first block of an mmCIF file that holds atoms.

    The author's names and numbers (``auth_…``) are used where they are given, the data bank's
    (``label_…``) otherwise: they are what people and the PDB format call atoms by.

    Args:
        path: For messages.
        content: The unpacked file.

    Raises:
        InputError: The syntax is broken, there are no atoms, or a number is none.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the mmCIF syntax is broken: {reason}") from error
    for block in document:
        if len(block.find_values("_atom_site.Cartn_x")):
            return _table(path, block)
    raise InputError(f"{path}: there are no atoms (no _atom_site.Cartn_x in any data block)")


def _table(path: Path, block: gemmi.cif.Block) -> AtomTable:
    rows = len(block.find_values("_atom_site.Cartn_x"))

    def column(*tags: str, otherwise: str = "") -> np.ndarray:
        """Return the first known value of some columns for each row."""
        values = np.full(rows, "", dtype=object)
        for tag in tags:
            raw = block.find_values(f"_atom_site.{tag}")
            if len(raw) == rows:
                unset = values == ""
                words = [gemmi.cif.as_string(word) for word in raw]
                values[unset] = np.array(words, dtype=object)[unset]
        values[values == ""] = otherwise
        return values.astype(str)

    identifiers = column("id", otherwise="?")
    lines = np.array(identifiers.tolist())

    def place(row: int) -> str:
        return f"{path}: atom {lines[row]}"

    def numbers(values: np.ndarray, what: str) -> np.ndarray:
        return decimals(np.char.encode(values, "utf-8"), place, what)

    positions = np.stack(
        [numbers(column(f"Cartn_{axis}"), f"{axis} coordinate") for axis in "xyz"], axis=1
    )
    model_names = column("pdbx_PDB_model_num", otherwise="1")
    model, models = _in_order(model_names.tolist())
    residue_numbers = column("auth_seq_id", "label_seq_id", otherwise="0")
    return AtomTable(
        path=path,
        positions=positions,
        elements=np.char.upper(column("type_symbol")),
        name_columns=column("auth_atom_id", "label_atom_id"),
        residue_names=column("auth_comp_id", "label_comp_id"),
        residue_numbers=integers(np.char.encode(residue_numbers, "utf-8"), place, "residue number"),
        insertion_codes=column("pdbx_PDB_ins_code"),
        chain_ids=column("auth_asym_id", "label_asym_id"),
        altlocs=column("label_alt_id"),
        occupancies=numbers(column("occupancy", otherwise="1"), "occupancy"),
        lines=lines,
        model=model,
        models=models,
        box=_box(path, block, models),
        row_word="atom",
    )


def _in_order(names: Sequence[str]) -> tuple[np.ndarray, int]:
    """Number distinct names by first appearance."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(name, len(number)) for name in names]), len(number)


def _box(path: Path, block: gemmi.cif.Block, models: int) -> np.ndarray | None:
    words = [block.find_value(f"_cell.{item}") for item in _CELL]
    if any(word is None or word in ("?", ".") for word in words):
        return None
    # A standard uncertainty in parentheses, such as 90.0(2), belongs to the notation.
    plain = [gemmi.cif.as_string(word).split("(")[0] for word in words]
    values = decimals(np.char.encode(plain, "utf-8"), lambda _: str(path), "unit cell")
    return np.repeat(edge_vectors(values[None, :3], values[None, 3:]), models, axis=0)
