"""Group the rows of an atom table into residues and choose one conformation of each.

Rules:

- Neighbouring rows with the same chain, number, insertion code and name are one residue. Rows
  elsewhere in the file join it if they all carry an alternative-location label, or if they have
  the same residue name and only atom names not seen yet.
- A residue takes one conformation throughout: that of the highest mean occupancy, then that with
  more atoms, then the first (``highest``); or the first (``first``); or the one with the given
  label where the residue has it. Conformations may differ in residue name (microheterogeneity).
- A name that is still there twice, less than 3 Å apart, is a duplicate in proteins, of which the
  first is kept. It starts a new residue where the copies are farther apart, and in everything
  that is no protein (waters that are all called ``HOH 1``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from undula.errors import Notice, UsageError
from undula.io.atom_table import AtomTable
from undula.io.residues import kind_of_residue

FARTHEST_DUPLICATE = 3.0
"""Å; atoms of one name farther apart belong to different residues with the same number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Residue:
    """One residue in one conformation.

    Attributes:
        rows: Rows of the atom table, ascending.
        kind: What `kind_of_residue` says.
    """

    rows: np.ndarray
    kind: str


@dataclass
class _Count:
    altlocs: list[int] = field(default_factory=list)
    names: list[int] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)


def residues(table: AtomTable, rows: np.ndarray, altloc: str) -> tuple[list[Residue], list[Notice]]:
    """List the residues of some rows, each in one conformation.

    Args:
        table: The file's atoms.
        rows: The rows of one model.
        altloc: ``highest``, ``first``, or the label of a conformation.

    Returns:
        The residues in the order of the file, and notices of what was left out.

    Raises:
        UsageError: ``altloc`` is no rule and no label.
    """
    if altloc not in ("highest", "first") and len(altloc) != 1:
        raise UsageError(f"altloc should be highest, first or one letter, found {altloc!r}")
    count = _Count()
    found: list[Residue] = []
    for group in _groups(table, rows):
        chosen = _conformation(table, group, altloc, count)
        found += _without_repeats(table, chosen, count)
    return found, _notices(table, count)


def _groups(table: AtomTable, rows: np.ndarray) -> list[np.ndarray]:
    columns = (table.chain_ids, table.residue_numbers, table.insertion_codes, table.residue_names)
    if len(rows) == 0:
        return []
    new = np.zeros(len(rows), dtype=bool)
    for column in columns:
        new[1:] |= column[rows[1:]] != column[rows[:-1]]
    runs = np.split(rows, np.nonzero(new)[0])
    open_group: dict[tuple[str, int, str], int] = {}
    groups: list[list[np.ndarray]] = []
    labelled = table.altlocs != ""
    for position, run in enumerate(runs):
        first = int(run[0])
        chain, number, code, name = (column[first] for column in columns)
        key = (str(chain), int(number), str(code))
        index = open_group.get(key)
        if index is not None:
            last = groups[index]
            neighbours = position > 0 and last[-1] is runs[position - 1]
            same_name = table.residue_names[last[0][0]] == name
            if (
                labelled[run].all()
                or (neighbours and all(labelled[part].all() for part in last))
                or (same_name and not _names(table, last) & _names(table, [run]))
            ):
                last.append(run)
                continue
        open_group[key] = len(groups)
        groups.append([run])
    return [np.sort(np.concatenate(parts)) for parts in groups]


def _names(table: AtomTable, parts: list[np.ndarray]) -> set[str]:
    return {name.strip() for part in parts for name in table.name_columns[part].tolist()}


def _conformation(table: AtomTable, group: np.ndarray, altloc: str, count: _Count) -> np.ndarray:
    labels = table.altlocs[group]
    if not (labels != "").any():
        return group
    names = table.residue_names[group]
    candidates: dict[tuple[str, str], list[int]] = {}
    for row, label, name in zip(group.tolist(), labels.tolist(), names.tolist(), strict=True):
        if label:
            candidates.setdefault((label, name), []).append(row)
    plain = set(names[labels == ""].tolist()) - {name for _, name in candidates}
    for name in sorted(plain):
        candidates["", name] = group[(labels == "") & (names == name)].tolist()
    # The first conformation is the one whose first atom comes first.
    options = sorted(candidates, key=lambda option: candidates[option][0])
    if altloc not in ("highest", "first"):
        options = [option for option in options if option[0] == altloc] or options
    if altloc == "first":
        label, name = options[0]
    else:
        means = {o: round(float(table.occupancies[candidates[o]].mean()), 3) for o in options}
        label, name = max(options, key=lambda o: (means[o], len(candidates[o])))
    kept = ((labels == label) | (labels == "")) & (names == name)
    count.altlocs += group[~kept].tolist()
    if len(set(names.tolist())) > 1:
        count.names.append(int(group[kept][0]))
    return group[kept]


def _without_repeats(table: AtomTable, rows: np.ndarray, count: _Count) -> list[Residue]:
    names = [name.strip() for name in table.name_columns[rows].tolist()]
    if len(set(names)) == len(names):
        return [_residue(table, rows, names)]
    is_protein = _residue(table, rows, names).kind == "protein"
    parts: list[dict[str, int]] = [{}]
    for row, name in zip(rows.tolist(), names, strict=True):
        if name in parts[-1]:
            apart = np.linalg.norm(table.positions[row] - table.positions[parts[-1][name]])
            if is_protein and apart < FARTHEST_DUPLICATE:
                count.duplicates.append(row)
                continue
            parts.append({})
        parts[-1][name] = row
    return [_residue(table, np.array(list(part.values())), list(part)) for part in parts]


def _residue(table: AtomTable, rows: np.ndarray, names: list[str]) -> Residue:
    kind = kind_of_residue(str(table.residue_names[rows[0]]), names, table.positions[rows])
    return Residue(rows=rows, kind=kind)


def _notices(table: AtomTable, count: _Count) -> list[Notice]:
    notices = []
    if count.altlocs:
        notices.append(
            Notice(
                code="altlocs-dropped",
                message=f"{len(count.altlocs)} atoms of other conformations were dropped",
                count=len(count.altlocs),
                place=table.place(count.altlocs[0]),
            )
        )
    if count.names:
        notices.append(
            Notice(
                code="microheterogeneity",
                message=f"{len(count.names)} residues have several names; one was chosen",
                count=len(count.names),
                place=table.place(count.names[0]),
            )
        )
    if count.duplicates:
        notices.append(
            Notice(
                code="duplicates-dropped",
                message=f"{len(count.duplicates)} atoms are listed twice; the first was kept",
                count=len(count.duplicates),
                place=table.place(count.duplicates[0]),
            )
        )
    return notices
