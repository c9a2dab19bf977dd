"""What others make of a simulation: our system, a PDB file, an XTC file."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import openmm
import torch
from jaxtyping import Float
from openmm import app, unit
from torch import Tensor

from undula.data.simulation.models import Model
from undula.io.atom_export import write_xtc as write_frames
from undula.io.kinds import molecular_system
from undula.io.recordings import Recording
from undula.types import MolecularSystem, Structure
from undula.units import ANGSTROM_PER_NM


def molecular_system_of(model: Model, positions: Float[Tensor, "atoms 3"]) -> MolecularSystem:
    """Return the recorded atoms of a model as we know them.

    Bonds and charges are the force field's; the charge of a virtual site that is not recorded,
    as TIP4P's, goes to the atom it hangs on. Masses are those simulated.

    Args:
        model: What was simulated.
        positions: Of the first frame, Å.
    """
    particles = list(model.topology.atoms())
    atoms = [particles[index] for index in model.recorded]
    place = {int(index): row for row, index in enumerate(model.recorded)}
    residue = np.unique([atom.residue.index for atom in atoms], return_inverse=True)[1]
    structure = Structure(
        name=model.name,
        positions=positions.double(),
        elements=np.array([atom.element.symbol.upper() for atom in atoms]),
        atom_names=np.array([atom.name for atom in atoms]),
        residue_names=np.array([atom.residue.name for atom in atoms]),
        residue_numbers=np.array([int(atom.residue.id) for atom in atoms]),
        insertion_codes=np.array([atom.residue.insertionCode.strip() for atom in atoms]),
        chain_ids=np.array([atom.residue.chain.id for atom in atoms]),
        residue_index=residue,
        file_index=np.arange(len(atoms)),
        file_atoms=len(atoms),
        box=torch.from_numpy(model.box_nm * ANGSTROM_PER_NM) if model.periodic else None,
    )
    bonds = [
        (place.get(bond[0].index), place.get(bond[1].index)) for bond in model.topology.bonds()
    ]
    kept = [(i, j) for i, j in bonds if i is not None and j is not None]
    masses = [
        model.system.getParticleMass(int(k)).value_in_unit(unit.dalton) for k in model.recorded
    ]
    return replace(
        molecular_system(
            structure,
            torch.tensor(kept, dtype=torch.int64).reshape(-1, 2).T,
            torch.tensor(_charges(model), dtype=torch.float64),
        ),
        masses=torch.tensor(masses, dtype=torch.float64),
    )


def pdb_text(model: Model, positions: np.ndarray) -> str:
    """Return the recorded atoms at one moment as a PDB file, without the day it was written.

    Args:
        model: What was simulated.
        positions: Of the recorded atoms, Å.
    """
    particles = list(model.topology.atoms())
    places = np.zeros((len(particles), 3))
    places[model.recorded] = positions / ANGSTROM_PER_NM
    modeller = app.Modeller(model.topology, places * unit.nanometer)
    recorded = set(model.recorded.tolist())
    modeller.delete([atom for atom in particles if atom.index not in recorded])
    if not model.periodic:
        modeller.topology.setPeriodicBoxVectors(None)
    text = io.StringIO()
    app.PDBFile.writeFile(modeller.topology, modeller.positions, text, keepIds=True)
    lines = text.getvalue().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("REMARK"))


def write_xtc(path: Path, recording: Recording) -> None:
    """Write a recording as XTC (to 0.01 Å), atoms unwrapped as they are.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    boxes = recording.boxes
    write_frames(
        path,
        torch.from_numpy(np.array(recording.positions)),
        (recording.start_ps + np.arange(len(recording)) * recording.frame_ps).tolist(),
        None if boxes is None else torch.from_numpy(np.array(boxes)),
    )


def _charges(model: Model) -> list[float]:
    """Return the charge of each recorded atom, e, with those of its virtual sites."""
    system = model.system
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    count = system.getNumParticles()
    charge = [
        force.getParticleParameters(k)[0].value_in_unit(unit.elementary_charge)
        for k in range(count)
    ]
    for site in range(count):
        if system.isVirtualSite(site):
            charge[system.getVirtualSite(site).getParticle(0)] += charge[site]
    return [charge[int(index)] for index in model.recorded]
