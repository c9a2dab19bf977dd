"""What is simulated: atoms, forces, and where they start; argon, water, alanine dipeptide."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from jaxtyping import Float
from openmm import app, unit
from torch import Tensor

from undula.data.simulation.settings import SimulateConfig
from undula.errors import UsageError
from undula.geometry.frames import random_rotation

SIGMA_NM = 0.34
ARGON_MASS_U = 39.948
ARGON_DENSITY = 0.5
"""Atoms in a volume of σ³."""
KELVIN_KJ = 0.00831446261815324
"""Boltzmann's constant, kJ/mol/K."""
WATER_PER_NM3 = 258 / 1.97786**3
"""Molecules in a nm³ at 0.997 g/cm³."""
PUBLISHED_WATER_EDGE_NM = 2.0
CUTOFF_NM = 0.9
"""Of water and proteins in water."""
_WIDEST = 0.49
"""The cut-off is at most this part of the box."""
_NOISE_NM = 0.0005
"""Of the published start."""

_ALANINE_DIPEPTIDE = """
    ACE H1  1.90 1.27 0.79  ACE CH3 1.99 2.18 0.19  ACE H2  1.28 2.92 0.54  ACE H3  1.79 1.94 -0.86
    ACE C   3.40 2.72 0.31  ACE O   4.24 2.12 0.97  ALA N   3.64 3.87 -0.33 ALA H   2.87 4.30 -0.83
    ALA CA  4.92 4.58 -0.34 ALA HA  5.50 4.27 0.53  ALA CB  5.69 4.19 -1.60 ALA HB1 5.14 4.49 -2.49
    ALA HB2 6.67 4.68 -1.61 ALA HB3 5.85 3.11 -1.62 ALA C   4.73 6.12 -0.24 ALA O   3.67 6.65 -0.58
    NME N   5.78 6.82 0.21  NME H   6.62 6.32 0.46  NME C   5.79 8.28 0.37  NME H1  4.99 8.59 1.04
    NME H2  6.75 8.61 0.78  NME H3  5.65 8.76 -0.60
"""
"""Residue, atom and place in Å; a conformation of its force field, which is relaxed first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """What OpenMM needs to simulate one system.

    Attributes:
        name: Of the system and of its files.
        topology: All particles, bonds and the box.
        system: Masses, forces and constraints.
        start: Draws where all particles begin, nm; not yet relaxed.
        recorded: Which particles are kept: no virtual sites, and not the water around a protein.
        periodic: Whether the recording is in a box.
        forces: What acts, in words, for the record.
    """

    name: str
    topology: app.Topology
    system: openmm.System
    start: Callable[[torch.Generator], np.ndarray]
    recorded: np.ndarray
    periodic: bool
    forces: str

    @property
    def box_nm(self) -> np.ndarray:
        """Edge vectors of the box at the start, one a row, nm."""
        vectors = self.system.getDefaultPeriodicBoxVectors()
        return np.array([edge.value_in_unit(unit.nanometer) for edge in vectors])


def argon(config: SimulateConfig) -> Model:
    """Build a Lennard-Jones fluid with the parameters of argon at reduced density 0.5.

    Switched off from 0.9 nm to 1.02 nm, nearer in a box too small for that. As published: cut at
    1.02 nm and shifted, ε = 0.238 kcal/mol, 39.9 u.
    """
    count, published = config.particles, config.as_published
    edge = (count / ARGON_DENSITY) ** (1 / 3) * SIGMA_NM
    mass = 39.9 if published else ARGON_MASS_U
    depth = 0.238 * 4.184 if published else 120 * KELVIN_KJ
    cutoff = min(3 * SIGMA_NM, _WIDEST * edge)
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(cutoff)
    force.setUseDispersionCorrection(True)
    force.setUseSwitchingFunction(not published)
    force.setSwitchingDistance(cutoff * 0.9 / 1.02)
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors([edge, 0, 0], [0, edge, 0], [0, 0, edge])
    topology = app.Topology()
    topology.setUnitCellDimensions((edge, edge, edge) * unit.nanometer)
    chain = topology.addChain("A")
    for _ in range(count):
        system.addParticle(mass)
        force.addParticle(0.0, SIGMA_NM, depth)
        residue = topology.addResidue("AR", chain)
        topology.addAtom("AR", app.Element.getBySymbol("Ar"), residue)
    system.addForce(force)
    if published:
        system.addForce(_constant_in_reach(count, cutoff, depth))
    else:
        system.addForce(openmm.CMMotionRemover(1))

    def start(generator: torch.Generator) -> np.ndarray:
        if published:
            places = torch.quasirandom.SobolEngine(3).draw(count, dtype=torch.float64)
            return _turned((places * edge).numpy(), edge, generator)
        return _sites(count, edge, generator)

    return Model(
        name="argon",
        topology=topology,
        system=system,
        start=start,
        recorded=np.arange(count),
        periodic=True,
        forces=f"Lennard-Jones, sigma {SIGMA_NM} nm, epsilon {depth:.5f} kJ/mol, "
        + (f"shifted at {cutoff:.4f} nm" if published else f"switched off at {cutoff:.4f} nm"),
    )


def water(config: SimulateConfig) -> Model:
    """Build rigid TIP3P or TIP4P-Ew water at 0.997 g/cm³, electrostatics by PME.

    As published: as many molecules as OpenMM's own solvation puts into 2 nm; the cut-off, 0.9 nm,
    is ours.

    Raises:
        UsageError: As published, and ``particles`` is another number.
    """
    name, published, count = config.system, config.as_published, config.particles
    model = {"tip3p": "tip3p", "tip4p": "tip4pew"}[name]
    field = app.ForceField(f"{model}.xml")
    places: np.ndarray | None = None
    if published:
        edge = PUBLISHED_WATER_EDGE_NM
        filled = app.Modeller(app.Topology(), [] * unit.nanometer)
        filled.addSolvent(field, model=model, boxSize=openmm.Vec3(edge, edge, edge))
        topology, places = filled.topology, _nanometres(filled.positions)
        found = topology.getNumResidues()
        if found != count:
            raise UsageError(f"a published box of {name} holds {found} molecules, not {count}")
    else:
        edge = (count / WATER_PER_NM3) ** (1 / 3)
        topology = _waters(count, edge, virtual=name == "tip4p")
    cutoff = min(CUTOFF_NM, _WIDEST * edge)
    system = field.createSystem(
        topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=cutoff * unit.nanometer,
        rigidWater=True,
        removeCMMotion=not published,
    )

    def start(generator: torch.Generator) -> np.ndarray:
        if places is not None:
            return _turned(places, edge, generator)
        return _molecules(count, edge, generator, virtual=name == "tip4p")

    return Model(
        name=name,
        topology=topology,
        system=system,
        start=start,
        recorded=np.array([atom.index for atom in topology.atoms() if atom.element is not None]),
        periodic=True,
        forces=f"{model}, rigid, PME, cut off at {cutoff:.4f} nm",
    )


def alanine_dipeptide(_config: SimulateConfig) -> Model:
    """Build ACE-ALA-NME in AMBER99SB-ILDN with OBC implicit solvent, hydrogens of 3 u."""
    words = _ALANINE_DIPEPTIDE.split()
    rows = [words[first : first + 5] for first in range(0, len(words), 5)]
    topology = app.Topology()
    chain = topology.addChain("A")
    residues = {name: topology.addResidue(name, chain) for name in ("ACE", "ALA", "NME")}
    for residue, atom, *_ in rows:
        topology.addAtom(atom, app.Element.getBySymbol(atom[0]), residues[residue])
    topology.createStandardBonds()
    places = np.array([[float(number) for number in row[2:]] for row in rows]) / 10
    field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    system = field.createSystem(
        topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=3 * unit.dalton,
    )
    return Model(
        name="ala2",
        topology=topology,
        system=system,
        start=lambda _: places,
        recorded=np.arange(len(rows)),
        periodic=False,
        forces="AMBER99SB-ILDN, OBC implicit solvent, no cut-off, hydrogens of 3 u",
    )


def _nanometres(positions: unit.Quantity) -> np.ndarray:
    return np.array(positions.value_in_unit(unit.nanometer), dtype=np.float64)


def _constant_in_reach(count: int, cutoff: float, depth: float) -> openmm.CustomNonbondedForce:
    """Return what makes the energy of a cut Lennard-Jones pair zero at the cut-off."""
    ratio = (SIGMA_NM / cutoff) ** 6
    force = openmm.CustomNonbondedForce(f"{-4 * depth * (ratio**2 - ratio)!r}")
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(cutoff)
    for _ in range(count):
        force.addParticle([])
    return force


def _sites(count: int, edge: float, generator: torch.Generator) -> np.ndarray:
    """Draw different places of a cubic lattice that fills the box, nm."""
    side = math.ceil(round(count ** (1 / 3), 9))
    chosen = torch.randperm(side**3, generator=generator)[:count]
    index = torch.stack([chosen // side**2, chosen // side % side, chosen % side], dim=1)
    return ((index.double() + 0.5) * edge / side).numpy()


def _turned(places: np.ndarray, edge: float, generator: torch.Generator) -> np.ndarray:
    """Return the start of the public scripts: turned against its box, with a little noise."""
    rotation = random_rotation(generator).numpy()
    noise = torch.randn(places.shape, generator=generator, dtype=torch.float64).numpy()
    return (places - edge / 2) @ rotation.T + edge / 2 + _NOISE_NM * noise


def _waters(count: int, edge: float, *, virtual: bool) -> app.Topology:
    topology = app.Topology()
    topology.setUnitCellDimensions((edge, edge, edge) * unit.nanometer)
    chain = topology.addChain("A")
    for _ in range(count):
        residue = topology.addResidue("HOH", chain)
        oxygen = topology.addAtom("O", app.element.oxygen, residue)
        for name in ("H1", "H2"):
            topology.addBond(oxygen, topology.addAtom(name, app.element.hydrogen, residue))
        if virtual:
            topology.addAtom("M", None, residue)
    return topology


def _molecules(count: int, edge: float, generator: torch.Generator, *, virtual: bool) -> np.ndarray:
    """Draw molecules of any orientation on a lattice, nm; OpenMM puts the virtual sites right."""
    half = math.radians(104.52) / 2
    across, along = 0.09572 * math.sin(half), 0.09572 * math.cos(half)
    rows = [[0.0, 0, 0], [across, along, 0], [-across, along, 0]] + [[0.0, 0, 0]] * virtual
    molecule: Float[Tensor, "atoms 3"] = torch.tensor(rows, dtype=torch.float64)
    centres = torch.from_numpy(_sites(count, edge, generator))
    turned = [molecule @ random_rotation(generator).mT + centre for centre in centres]
    return torch.cat(turned).numpy()
