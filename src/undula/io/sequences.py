"""Amino acid sequences: from FASTA and CSV files, and from prepared data sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from undula.errors import InputError
from undula.io.datasets import read_structure
from undula.io.residues import standard_name
from undula.types import Structure

_LETTERS = {
    "ALA": "A",
    "ARG": "R",
    "ASN": "N",
    "ASP": "D",
    "CYS": "C",
    "GLN": "Q",
    "GLU": "E",
    "GLY": "G",
    "HIS": "H",
    "ILE": "I",
    "LEU": "L",
    "LYS": "K",
    "MET": "M",
    "MSE": "M",
    "PHE": "F",
    "PRO": "P",
    "SER": "S",
    "THR": "T",
    "TRP": "W",
    "TYR": "Y",
    "VAL": "V",
}
_NAME_COLUMNS = ("name", "id")
_SEQUENCE_COLUMNS = ("seqres", "sequence")


def load_sequences(paths: Sequence[Path]) -> dict[str, str]:
    """Read the sequences of FASTA files, CSV files and data set folders, in their order.

    A FASTA name ends at the first blank. A CSV file has a column ``name`` (or ``id``) and one
    ``seqres`` (or ``sequence``). A data set is named as its folder.

    Args:
        paths: What to read.

    Returns:
        Name → sequence in upper-case letters, never empty.

    Raises:
        InputError: A file is missing, of another kind or empty; a name comes twice; a sequence is
            empty or holds something else than letters.
    """
    found: dict[str, str] = {}
    for path in paths:
        before = len(found)
        for name, text in _read(path):
            sequence = "".join(text.split()).upper().removesuffix("*")
            if not name:
                raise InputError(f"{path}: a sequence has no name, after {len(found)} others")
            if name in found:
                raise InputError(f"{path}: {name} is there twice")
            if not sequence:
                raise InputError(f"{path}: the sequence of {name} is empty")
            odd = next((i for i, c in enumerate(sequence) if not "A" <= c <= "Z"), None)
            if odd is not None:
                raise InputError(
                    f"{path}: letter {odd + 1} of {name} is {sequence[odd]!r}, no amino acid"
                )
            found[name] = sequence
        if len(found) == before:
            raise InputError(f"{path} holds no sequences")
    return found


def sequence_of(structure: Structure) -> str:
    """Return the one-letter sequence of the residues with a Cα, chain after chain.

    What is no standard amino acid is X; gaps leave no trace.
    """
    names = structure.residue_names[structure.alpha_carbons.numpy()].tolist()
    return "".join(_LETTERS.get(standard_name(name) or "", "X") for name in names)


def _read(path: Path) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        return iter([(path.resolve().name, sequence_of(read_structure(path)))])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"cannot read {path}: {reason}") from error
    if text.lstrip().startswith(">"):
        return _fasta(text)
    return _csv(path, text)


def _fasta(text: str) -> Iterator[tuple[str, str]]:
    for entry in text.lstrip()[1:].split("\n>"):
        head, _, body = entry.partition("\n")
        yield head.split()[0] if head.split() else "", body


def _csv(path: Path, text: str) -> Iterator[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = [column.strip() for column in rows.fieldnames or []]
        rows.fieldnames = columns
        name, sequence = (
            next((c for c in choices if c in columns), None)
            for choices in (_NAME_COLUMNS, _SEQUENCE_COLUMNS)
        )
        if name is None or sequence is None:
            raise InputError(
                f"{path} is neither FASTA (a line that begins with >) nor CSV with the columns "
                "name and seqres"
            )
        for row in rows:
            yield (row[name] or "").strip(), row[sequence] or ""
    except csv.Error as error:
        raise InputError(f"{path} is no CSV file: {error}") from error
