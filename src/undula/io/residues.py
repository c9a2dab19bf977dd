"""What residues are: the names by which files call amino acids, water, nucleotides and ions.

A residue of another name counts as an amino acid if it has a peptide backbone, so that modified
residues (phosphoserine, arsenocysteine, …) stay in the chain without a list of them all.
"""

from __future__ import annotations

import re

import numpy as np

from undula.elements import ELEMENTS

_BACKBONE = ("N", "CA", "C", "O")
_SIDE_CHAINS = {
    "ALA": "CB",
    "ARG": "CB CG CD NE CZ NH1 NH2",
    "ASN": "CB CG OD1 ND2",
    "ASP": "CB CG OD1 OD2",
    "CYS": "CB SG",
    "GLN": "CB CG CD OE1 NE2",
    "GLU": "CB CG CD OE1 OE2",
    "GLY": "",
    "HIS": "CB CG ND1 CD2 CE1 NE2",
    "ILE": "CB CG1 CG2 CD1",
    "LEU": "CB CG CD1 CD2",
    "LYS": "CB CG CD CE NZ",
    "MET": "CB CG SD CE",
    "MSE": "CB CG SE CE",
    "PHE": "CB CG CD1 CD2 CE1 CE2 CZ",
    "PRO": "CB CG CD",
    "SER": "CB OG",
    "THR": "CB OG1 CG2",
    "TRP": "CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "CB CG CD1 CD2 CE1 CE2 CZ OH",
    "VAL": "CB CG1 CG2",
}
HEAVY_ATOMS = {
    name: frozenset((*_BACKBONE, *atoms.split())) for name, atoms in _SIDE_CHAINS.items()
}
"""The heavy atoms of the amino acids within a chain, by PDB names."""

# Names of other programs: protonation states of AMBER, CHARMM and GROMACS.
_VARIANTS = {
    "HIS": "HID HIE HIP HSD HSE HSP HISA HISB HISD HISE HISH HIS1 HIS2",
    "CYS": "CYX CYM CYS2 CYSH CYSS",
    "ASP": "ASH ASPH ASPP",
    "GLU": "GLH GLUH GLUP",
    "LYS": "LYN LYSH LSN LYP",
    "ARG": "ARN ARGN",
    "TYR": "TYM",
}
_STANDARD_NAME = {
    variant: name for name, variants in _VARIANTS.items() for variant in variants.split()
} | {name: name for name in HEAVY_ATOMS}
_ATOM_ALIASES = {"OT1": "O", "OC1": "O", "O1": "O", "OT": "O"}
_OTHER_AMINO_ACIDS = frozenset(
    ["UNK", "ASX", "GLX", "XLE", "SEC", "PYL", "ACE", "NME", "NMA", "NH2", "NHE", "FOR"]
)
_WATER = frozenset(
    [
        "HOH",
        "WAT",
        "H2O",
        "DOD",
        "SOL",
        "TIP",
        "TIP3",
        "TIP4",
        "TIP5",
        "TP3",
        "TP4",
        "T3P",
        "T4P",
        "T4E",
        "SPC",
        "SPCE",
    ]
)
_NUCLEOTIDES = frozenset(
    [
        "A",
        "C",
        "G",
        "U",
        "I",
        "T",
        "N",
        "DA",
        "DC",
        "DG",
        "DT",
        "DU",
        "DI",
        "RA",
        "RC",
        "RG",
        "RU",
        "ADE",
        "CYT",
        "GUA",
        "THY",
        "URA",
    ]
    + [f"{kind}{base}{end}" for kind in "DR" for base in "ACGTU" for end in "35N"]
)
_SUGAR = frozenset(("C1'", "C2'", "C3'", "C4'", "O4'"))
_CHARMM_IONS = {"SOD": "NA", "CLA": "CL", "POT": "K", "CES": "CS", "CAL": "CA", "LIT": "LI"}
_VIRTUAL_SITE = re.compile(r"(MW|M|EPW|EP|LP|OM)\d?")
LONGEST_BACKBONE_BOND = 1.8
"""Å; N–CA and CA–C longer than this are no peptide backbone."""


def standard_name(residue_name: str) -> str | None:
    """Return the plain three-letter name of an amino acid with a known composition, or none.

    AMBER's terminal forms such as ``NALA`` are known too.
    """
    name = residue_name.upper()
    if len(name) == 4 and name[0] in "NC" and name not in _STANDARD_NAME:
        name = name[1:]
    return _STANDARD_NAME.get(name)


def missing_heavy_atoms(residue_name: str, atom_names: list[str]) -> list[str]:
    """List the heavy atoms that an amino acid should have within a chain and has not.

    Args:
        residue_name: As in the file; nothing is missing from a residue of unknown composition.
        atom_names: Names of the atoms that are there; the names of other programs are known
            (``CD`` of isoleucine, ``OT1`` for the oxygen).
    """
    name = standard_name(residue_name)
    if name is None:
        return []
    present = {_ATOM_ALIASES.get(atom, atom) for atom in atom_names}
    if name == "ILE" and "CD" in present:
        present.add("CD1")
    return sorted(HEAVY_ATOMS[name] - present)


def kind_of_residue(residue_name: str, atom_names: list[str], positions: np.ndarray) -> str:
    """Tell what a residue is.

    Args:
        residue_name: As in the file.
        atom_names: Names of its atoms, stripped.
        positions: Their positions, Å, to recognise a peptide backbone under an unknown name.

    Returns:
        ``protein``, ``water``, ``nucleic``, ``ion`` (a single atom) or ``ligand``.
    """
    name = residue_name.upper()
    if standard_name(name) or name in _OTHER_AMINO_ACIDS:
        return "protein"
    if name in _WATER:
        return "water"
    plain = {atom.replace("*", "'") for atom in atom_names}
    if name in _NUCLEOTIDES or len(plain & _SUGAR) >= 3:
        return "nucleic"
    if len(atom_names) == 1:
        return "ion"
    if {"N", "CA", "C"} <= plain:
        n, alpha, c = (positions[atom_names.index(atom)] for atom in ("N", "CA", "C"))
        bonds = np.linalg.norm(alpha - n), np.linalg.norm(c - alpha)
        if max(bonds) < LONGEST_BACKBONE_BOND:
            return "protein"
    return "ligand"


def is_virtual_site(atom_name: str, residue_name: str) -> bool:
    """Tell whether an atom is a mass-less site of a water model, such as ``MW`` of TIP4P."""
    known = residue_name.upper() in _WATER
    return known and _VIRTUAL_SITE.fullmatch(atom_name.upper()) is not None


def guessed_element(name_column: str, residue_name: str, kind: str, atoms_in_residue: int) -> str:
    """Guess an element from the name of an atom; the empty string if that is impossible.

    In proteins, nucleic acids and water the first letter tells (``CA`` is carbon); elsewhere the
    position does: a symbol of two letters starts one column further left (``CA  `` is calcium),
    and an ion is called as its residue.

    Args:
        name_column: The four columns of a PDB file, or a stripped name of another format.
        residue_name: As in the file.
        kind: What `kind_of_residue` says.
        atoms_in_residue: Number of atoms of the residue.
    """
    name = re.sub(r"[^A-Z]", "", name_column.upper())
    residue = re.sub(r"[^A-Z]", "", residue_name.upper())
    if not name:
        return ""
    if kind in ("protein", "nucleic", "water"):
        if name.startswith("SE") and residue in ("MSE", "SEC"):
            return "SE"
        return name[0] if name[0] in "HDCNOSPF" else ""
    if atoms_in_residue == 1:
        if name in _CHARMM_IONS:
            return _CHARMM_IONS[name]
        if name[:2] in ELEMENTS and (residue.startswith(name[:2]) or len(name_column) < 4):
            return name[:2]
    starts_left = len(name_column) == 4 and name_column[0].isalpha()
    if starts_left and len(name_column.strip()) < 4 and name[:2] in ELEMENTS:
        return name[:2]
    return name[0] if name[0] in ELEMENTS else (name[:2] if name[:2] in ELEMENTS else "")
