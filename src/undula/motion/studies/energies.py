"""Potential energies of samples by the force field that made the truth, where OpenMM is there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError, MachineError
from undula.types import MolecularSystem
from undula.units import ANGSTROM_PER_NM

Energies = Callable[[Float[Tensor, "frames atoms 3"]], Float[Tensor, " frames"]]


def energies_of(forces: str, system: MolecularSystem, box: Tensor | None) -> Energies:
    """Return what computes potential energies, kJ/mol, of frames of a simulated system.

    Args:
        forces: A system of ``undula simulate``, in its preset "clean".
        system: The atoms; as many as that preset records, in its order.
        box: Edge vectors, Å; none without a box.

    Raises:
        MachineError: OpenMM is not installed.
        InputError: The atoms are others than those of the preset.
    """
    try:
        import openmm
        from openmm import unit

        from undula.data.simulation import models
    except ImportError as error:
        raise MachineError("energies of samples need OpenMM: pip install openmm") from error
    from dataclasses import replace

    from undula.data.simulation.settings import preset

    config = preset(forces)
    if config.particles:
        config = replace(config, particles=system.molecule_count)
    makers = {"argon": models.argon, "ala2": models.alanine_dipeptide}
    model = makers.get(forces, models.water)(config)
    named = [atom.element.symbol for atom in model.topology.atoms() if atom.element is not None]
    if [name.upper() for name in named] != [str(one).upper() for one in system.structure.elements]:
        raise InputError(f"{system.structure.name} has other atoms than {forces} of simulate")
    context = openmm.Context(
        model.system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    if box is not None:
        context.setPeriodicBoxVectors(*(box.double() / ANGSTROM_PER_NM).tolist())

    def energies(frames: Float[Tensor, "frames atoms 3"]) -> Float[Tensor, " frames"]:
        found = []
        places = torch.zeros(model.system.getNumParticles(), 3, dtype=torch.float64)
        for frame in frames:
            places[torch.from_numpy(model.recorded)] = frame.double() / ANGSTROM_PER_NM
            context.setPositions(places.numpy())
            context.computeVirtualSites()
            state = context.getState(getEnergy=True)
            found.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
        return torch.tensor(found, dtype=torch.float64)

    return energies
