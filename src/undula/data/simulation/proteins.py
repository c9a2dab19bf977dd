"""Proteins for OpenMM: repaired by PDBFixer, in AMBER99SB-ILDN, with implicit or explicit water."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit
from pdbfixer import PDBFixer

from undula import atomic
from undula.data.simulation.models import CUTOFF_NM, Model
from undula.data.simulation.settings import SimulateConfig, recording_stem
from undula.errors import InputError

FRICTION_PER_PS = {"implicit": 5.0, "explicit": 1.0}
_PADDING_NM = 0.9
_FORCES = {
    "implicit": "AMBER99SB-ILDN, OBC implicit solvent, no cut-off, hydrogens of 3 u",
    "explicit": f"AMBER99SB-ILDN, TIP3P, 0.1 M NaCl, PME, cut off at {CUTOFF_NM} nm, 1 bar, "
    "hydrogens of 3 u",
}


def repaired(path: Path) -> app.Modeller:
    """Read a structure and return it with all its heavy atoms and hydrogens, without ligands.

    Missing residues stay missing; hydrogens are those at pH 7.

    Raises:
        InputError: PDBFixer cannot read the file, or finds no protein in it.
    """
    try:
        fixer = PDBFixer(filename=str(path))
        fixer.findMissingResidues()
        fixer.missingResidues = {}
        fixer.findNonstandardResidues()
        fixer.replaceNonstandardResidues()
        fixer.removeHeterogens(keepWater=False)
        fixer.findMissingAtoms()
        fixer.addMissingAtoms(seed=0)
        fixer.addMissingHydrogens(7.0)
    except (ValueError, KeyError, IndexError, AttributeError, OSError) as error:
        raise InputError(f"{path} cannot be repaired for a simulation: {error}") from error
    if fixer.topology.getNumAtoms() == 0:
        raise InputError(f"{path} holds no protein to simulate")
    return app.Modeller(fixer.topology, fixer.positions)


def protein_system(
    modeller: app.Modeller, solvent: str, temperature_k: float = 300.0
) -> openmm.System:
    """Return forces and constraints of a protein; with explicit solvent, add the water.

    AMBER99SB-ILDN, bonds to hydrogen constrained, hydrogens of 3 u. Implicit solvent is OBC
    without a cut-off; it has next to no friction, so that motions are faster than in water.
    Explicit solvent is TIP3P in a rhombic dodecahedron at 1 bar.

    Raises:
        InputError: The force field does not know a residue.
    """
    common = {"constraints": app.HBonds, "hydrogenMass": 3 * unit.dalton}
    try:
        if solvent == "implicit":
            field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
            return field.createSystem(modeller.topology, nonbondedMethod=app.NoCutoff, **common)
        field = app.ForceField("amber99sbildn.xml", "tip3p.xml")
        modeller.addSolvent(
            field,
            padding=_PADDING_NM * unit.nanometer,
            boxShape="dodecahedron",
            ionicStrength=0.1 * unit.molar,
        )
        system = field.createSystem(
            modeller.topology,
            nonbondedMethod=app.PME,
            nonbondedCutoff=CUTOFF_NM * unit.nanometer,
            **common,
        )
    except ValueError as error:
        raise InputError(f"the protein cannot be simulated: {error}") from error
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, temperature_k * unit.kelvin, 25))
    return system


def protein(path: Path, config: SimulateConfig, folder: Path) -> Model:
    """Build a protein from a structure file, once; water and ions are not recorded.

    PDBFixer and the solvation put hydrogens and waters elsewhere each time, and not always as
    many. So what was built is kept in a folder, and read from there by a run that goes on.

    Args:
        path: The structure file.
        config: Solvent and temperature.
        folder: Where the built system is kept.

    Raises:
        InputError: The file cannot serve.
    """
    if not (folder / "start.npy").exists():
        modeller = repaired(path)
        kept = modeller.topology.getNumAtoms()
        system = protein_system(modeller, config.solvent, config.temperature_k)
        atomic.write_json(folder / "topology.json", _described(modeller.topology) | {"kept": kept})
        atomic.write(folder / "system.xml", openmm.XmlSerializer.serialize(system))
        places = modeller.positions.value_in_unit(unit.nanometer)
        atomic.write_array(folder / "start.npy", np.array(places, dtype=np.float64))
    described = atomic.read_json(folder / "topology.json")
    start = np.load(folder / "start.npy")
    return Model(
        name=recording_stem(path),
        topology=_topology(described),
        system=openmm.XmlSerializer.deserialize(
            (folder / "system.xml").read_text(encoding="utf-8")
        ),
        start=lambda _: start,
        recorded=np.arange(described["kept"]),
        periodic=False,
        forces=_FORCES[config.solvent],
    )


def _described(topology: app.Topology) -> dict[str, Any]:
    """Return chains, residues, atoms and bonds as plain values."""
    return {
        "chains": [chain.id for chain in topology.chains()],
        "residues": [
            [residue.name, residue.id, residue.insertionCode, residue.chain.index]
            for residue in topology.residues()
        ],
        "atoms": [
            [atom.name, atom.element and atom.element.symbol, atom.residue.index]
            for atom in topology.atoms()
        ],
        "bonds": [[bond[0].index, bond[1].index] for bond in topology.bonds()],
    }


def _topology(described: dict[str, Any]) -> app.Topology:
    """Return what `_described` described."""
    topology = app.Topology()
    chains = [topology.addChain(name) for name in described["chains"]]
    residues = [
        topology.addResidue(name, chains[chain], number, code)
        for name, number, code, chain in described["residues"]
    ]
    atoms = [
        topology.addAtom(name, symbol and app.Element.getBySymbol(symbol), residues[residue])
        for name, symbol, residue in described["atoms"]
    ]
    for i, j in described["bonds"]:
        topology.addBond(atoms[i], atoms[j])
    return topology
