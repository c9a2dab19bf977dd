"""Read a structure: which atoms are kept, and what makes a file unfit.

What a file holds is read by `undula.io.pdb`, `undula.io.mmcif` and `undula.io.gro`; conformations
are chosen by `undula.io.conformers`. On top of that these rules hold; each thing that is dropped,
assumed or guessed is counted in a `Notice` of the structure.

1.  One model is read, by default the first. All models must have the same atoms.
2.  With ``select="protein"`` the residues kept are amino acids, standard or with a peptide
    backbone, and caps. Nucleic acids and water are dropped always, ions and ligands unless
    ``heterogens="keep"``. With ``select="all"`` every residue is kept.
3.  Hydrogens (and deuterium) are dropped unless ``hydrogens="keep"``. Mass-less sites of water
    models are always dropped.
4.  An element that is missing or no element is guessed from the atom's name. If an atom to be
    kept has no known element even then, the file is refused.
5.  Lengths are in the unit of the format (GRO nm, else Å). If neighbouring atoms are less than
    0.6 Å apart in the median the file is refused and the option for nm is named; if those of
    a protein are over 6 Å apart, the option for Å.
6.  Refused as well: an extent beyond 5,000 Å (of all atoms in the file), and two atoms of one
    residue less than 0.05 Å apart. Of two such atoms in different residues the later is dropped.
7.  Flaws of the molecule are counted only (`undula.io.flaws`). Nothing is ever invented.
8.  A box thinner than 4 Å stands for no box (the PDB's unit cube is not even worth a notice).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from undula.elements import ELEMENTS
from undula.errors import InputError, Notice, UsageError
from undula.geometry.neighbours import search_tree
from undula.io.atom_table import AtomTable
from undula.io.boxes import SMALLEST_WIDTH, widths
from undula.io.conformers import Residue, residues
from undula.io.flaws import flaws
from undula.io.formats import STRUCTURE_FORMATS, read_text, recognise
from undula.io.gro import read_gro
from undula.io.mmcif import read_mmcif
from undula.io.pdb import read_pdb
from undula.io.residues import guessed_element, is_virtual_site
from undula.notices import placed
from undula.types import Structure
from undula.units import ANGSTROM_PER_NM

LARGEST_EXTENT = 5_000.0
"""Å; beyond the largest virus particles, and small enough to reject an atom gone astray."""
CLOSEST_ATOMS = 0.05
"""Å; atoms closer than this are one atom listed twice, or damage."""
SMALLEST_SPACING, LARGEST_SPACING = 0.6, 6.0
"""Å; a median distance to the nearest atom that is not between these means another unit."""

_READERS = {"pdb": read_pdb, "mmcif": read_mmcif, "gro": read_gro}
_NATIVE_UNIT = {"pdb": "angstrom", "mmcif": "angstrom", "gro": "nm"}
_CHOICES = {
    "hydrogens": ("drop", "keep"),
    "heterogens": ("drop", "keep"),
    "select": ("protein", "all"),
    "length_unit": ("auto", "angstrom", "nm"),
}


@dataclass(frozen=True, kw_only=True)
class _Kept:
    rows: np.ndarray
    residue_index: np.ndarray
    kinds: np.ndarray
    elements: np.ndarray


def load_structure(
    path: str | Path,
    *,
    chain: str | None = None,
    altloc: str = "highest",
    hydrogens: str = "drop",
    heterogens: str = "drop",
    model: int = 1,
    length_unit: str = "auto",
    select: str = "protein",
) -> Structure:
    """Load a structure from a PDB, mmCIF or GRO file, packed with gzip or not.

    The content decides the format, not the suffix. The rules are those of this module.

    Args:
        path: The file.
        chain: Ids of the chains to keep, separated by commas; ``_`` is the blank one. By default
            all chains.
        altloc: ``highest`` occupancy, the ``first``, or the label of a conformation.
        hydrogens: ``drop`` or ``keep``.
        heterogens: Whether to ``drop`` or ``keep`` ions and ligands beside proteins.
        model: Which model, from 1.
        length_unit: ``auto`` is the format's own, else ``angstrom`` or ``nm``.
        select: ``protein``, or ``all`` residues.

    Returns:
        The structure in Å; ``file_index`` leads to the atoms in a trajectory of the whole file.

    Raises:
        InputError: The file cannot serve; one sentence with the file and the place.
        UsageError: An option has a value that does not exist.
        MachineError: The file may not be read.
    """
    options = {
        "hydrogens": hydrogens,
        "heterogens": heterogens,
        "select": select,
        "length_unit": length_unit,
    }
    for option, value in options.items():
        if value not in _CHOICES[option]:
            known = " or ".join(_CHOICES[option])
            raise UsageError(f"{option} should be {known}, found {value!r}")
    path = Path(path)
    table = load_atom_table(path, length_unit=length_unit)
    table.check_models_alike()
    if not 1 <= model <= table.models:
        raise InputError(f"{path}: there is no model {model}, the file has {table.models}")
    rows = table.rows(model - 1)
    if len(rows) == 0:
        raise InputError(f"{path}: there are no atoms")
    _check_extent(table, rows)
    found, notices = residues(table, rows, altloc)
    notices = [*table.notices, *_model_notice(table, model), *notices]
    kept, dropped = _kept(
        table,
        _chosen_chains(table, found, chain),
        select=select,
        heterogens=heterogens == "keep",
        hydrogens=hydrogens == "keep",
    )
    notices += dropped
    _check_unit(table, kept)
    kept, coincident = _without_coincident(table, kept)
    notices += [*coincident, *flaws(table, kept.rows, kept.residue_index, kept.kinds)]
    box, box_notice = _box(table, model)
    name = path.name.removesuffix(".gz")
    return Structure(
        name=name.rsplit(".", 1)[0] or name,
        positions=torch.from_numpy(table.positions[kept.rows]),
        elements=kept.elements,
        atom_names=np.char.strip(table.name_columns[kept.rows]),
        residue_names=table.residue_names[kept.rows],
        residue_numbers=table.residue_numbers[kept.rows],
        insertion_codes=table.insertion_codes[kept.rows],
        chain_ids=table.chain_ids[kept.rows],
        residue_index=kept.residue_index,
        file_index=kept.rows - rows[0],
        file_atoms=len(rows),
        box=box,
        notices=placed((*notices, *box_notice), path),
    )


def load_atom_table(path: Path, *, length_unit: str = "auto") -> AtomTable:
    """Load the atoms of all models as they are written, with lengths in Å.

    Args:
        path: A PDB, mmCIF or GRO file, packed with gzip or not.
        length_unit: ``auto``, ``angstrom`` or ``nm``.

    Raises:
        InputError: The file is of another format, or a number in it is none.
    """
    name = recognise(path)
    if name not in STRUCTURE_FORMATS:
        raise InputError(
            f"{path}: this is a trajectory ({name.upper()}), which names no atoms; "
            "expected a structure (PDB, mmCIF or GRO)"
        )
    table = _READERS[name](path, read_text(path))
    unit = _NATIVE_UNIT[name] if length_unit == "auto" else length_unit
    scale = ANGSTROM_PER_NM if unit == "nm" else 1.0
    with np.errstate(over="ignore"):
        positions = table.positions * scale
        box = None if table.box is None else table.box * scale
    far = np.nonzero(~np.isfinite(positions))[0]
    if len(far):
        raise InputError(f"{table.place(int(far[0]))}: this atom lies beyond all numbers")
    return replace(table, positions=positions, box=box)


def _model_notice(table: AtomTable, model: int) -> list[Notice]:
    if table.models == 1:
        return []
    message = f"model {model} of {table.models} was used"
    return [Notice(code="one-model-used", message=message, count=table.models - 1)]


def _chosen_chains(table: AtomTable, found: list[Residue], chain: str | None) -> list[Residue]:
    if chain is None:
        return found
    wanted = {"" if name.strip() == "_" else name.strip() for name in chain.split(",")}
    present = sorted({str(table.chain_ids[residue.rows[0]]) for residue in found})
    for name in sorted(wanted):
        if name not in present:
            known = ", ".join(other or "_" for other in present)
            raise InputError(
                f"{table.path}: there is no chain {name or '_'}, only {known} (_ is a blank id)"
            )
    return [residue for residue in found if str(table.chain_ids[residue.rows[0]]) in wanted]


def _kept(
    table: AtomTable, found: list[Residue], *, select: str, heterogens: bool, hydrogens: bool
) -> tuple[_Kept, list[Notice]]:
    kinds_kept = {"protein"}
    if heterogens or select == "all":
        kinds_kept |= {"ion", "ligand"}
    if select == "all":
        kinds_kept |= {"water", "nucleic"}
    if select == "protein" and not any(residue.kind == "protein" for residue in found):
        names = Counter(str(table.residue_names[residue.rows[0]]) or "blank" for residue in found)
        listed = ", ".join(name for name, _ in names.most_common(4))
        raise InputError(
            f"{table.path}: there is no protein among {len(found)} residues ({listed})"
        )
    dropped: Counter[str] = Counter()
    guessed: list[int] = []
    rows: list[int] = []
    index: list[int] = []
    kinds: list[str] = []
    elements: list[str] = []
    number = 0
    for residue in found:
        if residue.kind not in kinds_kept:
            dropped[residue.kind] += 1
            continue
        before = len(rows)
        for row in residue.rows.tolist():
            residue_name = str(table.residue_names[row])
            column = str(table.name_columns[row])
            if is_virtual_site(column.strip(), residue_name):
                dropped["virtual"] += 1
                continue
            element = str(table.elements[row])
            if element not in ELEMENTS:
                element = guessed_element(column, residue_name, residue.kind, len(residue.rows))
                if not element:
                    written = f"element {table.elements[row]}" if table.elements[row] else "element"
                    raise InputError(f"{table.place(row)}: unknown {written}")
                guessed.append(row)
            if not hydrogens and element in ("H", "D"):
                dropped["hydrogen"] += 1
                continue
            rows.append(row)
            index.append(number)
            kinds.append(residue.kind)
            elements.append(element)
        number += len(rows) > before
    if not rows:
        raise InputError(f"{table.path}: no atoms are left after dropping hydrogens")
    kept = _Kept(
        rows=np.array(rows),
        residue_index=np.array(index),
        kinds=np.array(kinds),
        elements=np.array(elements),
    )
    return kept, _drop_notices(table, dropped, guessed)


def _drop_notices(table: AtomTable, dropped: Counter[str], guessed: list[int]) -> list[Notice]:
    words = {
        "hydrogen": ("hydrogens-dropped", "hydrogen atoms were dropped"),
        "water": ("water-dropped", "water molecules were dropped"),
        "ion": ("ions-dropped", "ions were dropped"),
        "ligand": ("ligands-dropped", "ligands were dropped"),
        "nucleic": ("nucleic-dropped", "nucleotides were dropped"),
        "virtual": ("virtual-sites-dropped", "mass-less sites of a water model were dropped"),
    }
    notices = [
        Notice(code=code, message=f"{dropped[key]} {text}", count=dropped[key])
        for key, (code, text) in words.items()
        if dropped[key]
    ]
    if guessed:
        notices.append(
            Notice(
                code="elements-guessed",
                message=f"{len(guessed)} elements were guessed from the names of the atoms",
                count=len(guessed),
                place=table.place(guessed[0]),
            )
        )
    return notices


def _check_extent(table: AtomTable, rows: np.ndarray) -> None:
    positions = table.positions[rows]
    extent = float(np.ptp(positions, axis=0).max())
    if extent > LARGEST_EXTENT:
        distance = np.abs(positions - np.median(positions, axis=0)).max(axis=1)
        far = int(rows[int(distance.argmax())])
        raise InputError(
            f"{table.place(far)}: this atom lies far away, the extent of {extent:,.0f} Å exceeds "
            f"{LARGEST_EXTENT:,.0f} Å"
        )


def _check_unit(table: AtomTable, kept: _Kept) -> None:
    positions = np.unique(table.positions[kept.rows], axis=0)
    if len(positions) < 4:
        return
    distance = np.asarray(search_tree(positions).query(positions, k=2)[0])
    nearest = float(np.median(distance[:, 1]))
    if SMALLEST_SPACING < nearest < LARGEST_SPACING or nearest < CLOSEST_ATOMS:
        return
    alpha = _alpha_distances(table, kept)
    if nearest > LARGEST_SPACING and not alpha:
        return  # A thin gas may be like this.
    spacing = np.median(alpha) if alpha else nearest
    between = "between neighbouring Cα" if alpha else "to the nearest atom"
    unit = "nm" if nearest < SMALLEST_SPACING else "angstrom"
    raise InputError(
        f"{table.path}: the median distance {between} is {spacing:.3g} Å; use --length-unit {unit}"
    )


def _without_coincident(table: AtomTable, kept: _Kept) -> tuple[_Kept, list[Notice]]:
    """Drop the later of two atoms at one place in different residues, by rule 6."""
    positions = table.positions[kept.rows]
    # Exact copies first: many atoms at one point would make very many close pairs.
    _, first, place = np.unique(positions, axis=0, return_index=True, return_inverse=True)
    original = first[place.reshape(-1)]
    copies = np.nonzero(original != np.arange(len(positions)))[0]
    distinct = np.sort(first)
    close = search_tree(positions[distinct]).query_pairs(CLOSEST_ATOMS, output_type="ndarray")
    pairs = np.concatenate(
        [np.stack([original[copies], copies], axis=1), np.sort(distinct[close], axis=1)]
    )
    if len(pairs) == 0:
        return kept, []
    i, j = pairs.T
    together = np.nonzero(kept.residue_index[i] == kept.residue_index[j])[0]
    if len(together):
        one, other = (table.place(int(kept.rows[side[together[0]]])) for side in (i, j))
        raise InputError(
            f"{one}: this atom coincides with {other.removeprefix(f'{table.path}: ')} of the same "
            f"residue (less than {CLOSEST_ATOMS} Å apart)"
        )
    rest = np.setdiff1d(np.arange(len(positions)), j)
    index = kept.residue_index[rest]
    reduced = _Kept(
        rows=kept.rows[rest],
        residue_index=np.cumsum(np.diff(index, prepend=index[:1]) != 0),
        kinds=kept.kinds[rest],
        elements=kept.elements[rest],
    )
    dropped = len(positions) - len(rest)
    notice = Notice(
        code="coincident-dropped",
        message=f"{dropped} atoms at the place of an atom of another residue were dropped",
        count=dropped,
        place=table.place(int(kept.rows[j[0]])),
    )
    return reduced, [notice]


def _alpha_distances(table: AtomTable, kept: _Kept) -> list[float]:
    names = np.char.strip(table.name_columns[kept.rows])
    alpha = (names == "CA") & (kept.kinds == "protein")
    rows = kept.rows[alpha]
    same = table.chain_ids[rows[1:]] == table.chain_ids[rows[:-1]]
    adjoin = np.diff(kept.residue_index[alpha]) == 1
    return np.linalg.norm(np.diff(table.positions[rows], axis=0), axis=1)[same & adjoin].tolist()


def _box(table: AtomTable, model: int) -> tuple[torch.Tensor | None, list[Notice]]:
    if table.box is None:
        return None, []
    box = table.box[model - 1]
    if np.isfinite(box).all() and widths(box) >= SMALLEST_WIDTH:
        return torch.from_numpy(np.ascontiguousarray(box)), []
    if np.array_equal(box, np.eye(3)):
        return None, []
    message = f"the box is thinner than {SMALLEST_WIDTH:g} Å and was taken for none"
    return None, [Notice(code="box-dropped", message=message)]
