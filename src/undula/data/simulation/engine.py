"""OpenMM at work: relax a start, then frame after frame, from checkpoint to checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import openmm
import torch
from openmm import unit

from undula.data.simulation.models import Model
from undula.data.simulation.settings import SimulateConfig
from undula.errors import MachineError

PROPERTIES: Mapping[str, Mapping[str, str]] = {
    "CPU": {"DeterministicForces": "true"},
    "CUDA": {"DeterministicForces": "true", "Precision": "mixed"},
    "OpenCL": {"Precision": "mixed"},
}
"""What each platform is told, besides the threads of the CPU."""
_BEADS, _PARTS, _YOSHIDA_SUZUKI = 10, 5, 5
"""Of the Nosé–Hoover chain."""
_REDRAW_PS = 0.5
"""Between two draws of velocities in the first half of an equilibration."""
_STEPS_AT_ONCE = 20
"""So few that a signal which comes meanwhile is heard soon."""
_TRIES = 20
"""Starts that are tried where atoms may lie on each other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """Some frames of a run, as they are kept until it is finished.

    Attributes:
        motion: Positions (Å) and velocities (Å/ps), frames × 2 × atoms × 3, float32.
        potential: Energy of each frame, kJ/mol.
        checkpoint: OpenMM's own, where the next frame begins.
    """

    motion: np.ndarray
    potential: np.ndarray
    checkpoint: bytes


def chosen_platform(name: str) -> str:
    """Return the name of a platform that works here; the fastest one for "auto".

    Raises:
        MachineError: OpenMM does not have it here, or it finds no device.
    """
    found = [openmm.Platform.getPlatform(k) for k in range(openmm.Platform.getNumPlatforms())]
    found.sort(key=lambda platform: -platform.getSpeed())
    names = [platform.getName() for platform in found]
    if name != "auto" and name not in names:
        raise MachineError(f"OpenMM has no platform {name} here; it has {', '.join(names)}")
    reason = ""
    for candidate in names if name == "auto" else [name]:
        probe = openmm.System()
        probe.addParticle(1.0)
        try:
            openmm.Context(
                probe,
                openmm.VerletIntegrator(0.001),
                openmm.Platform.getPlatform(candidate),
            )
        except openmm.OpenMMException as error:
            reason = str(error)
        else:
            return candidate
    raise MachineError(f"OpenMM's platform {name} does not work here: {reason}")


def seed_of(*numbers: int) -> int:
    """Return a seed for OpenMM (which takes 0 for "any") from seed, trajectory and purpose."""
    return 1 + int(np.random.SeedSequence(numbers).generate_state(1)[0]) % (2**31 - 2)


def _advance(context: openmm.Context, steps: int) -> None:
    """Take steps, some at a time; the trajectory is that of taking them all at once."""
    for first in range(0, steps, _STEPS_AT_ONCE):
        context.getIntegrator().step(min(_STEPS_AT_ONCE, steps - first))


class Engine:
    """One system on one platform.

    Every stretch of frames begins in a new context from the checkpoint before it. So a run that
    was killed and goes on is the same as one that was not, wherever the platform itself repeats
    to the byte: Reference, and CPU with one thread.
    """

    def __init__(self, model: Model, config: SimulateConfig, platform: str) -> None:
        """Keep what is simulated, how, and on which platform (`chosen_platform`)."""
        self.model = model
        self.config = config
        self.platform = openmm.Platform.getPlatform(platform)
        self.properties = dict(PROPERTIES.get(platform, {}))
        if platform == "CPU":
            self.properties["Threads"] = str(config.threads)

    def started(self, trajectory: int) -> bytes:
        """Relax and equilibrate a start; return the checkpoint of the first frame.

        In the first half of the equilibration velocities are drawn anew every 0.5 ps, because a
        Nosé–Hoover chain is slow to take away the heat of a lattice that melts; in the second
        half the thermostat alone is at work. As published there is no equilibration: velocities
        are drawn, the positions relaxed, one step made, and another start tried where atoms lie
        on each other.

        Raises:
            MachineError: The system flies apart.
        """
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, trajectory, 0))
        reason = ""
        for attempt in range(_TRIES if self.config.as_published else 1):
            places = self.model.start(generator)
            context = self._context(seed_of(self.config.seed, trajectory, 1, attempt))
            try:
                context.setPositions(places)
                context.computeVirtualSites()
                self._equilibrate(context, trajectory)
            except openmm.OpenMMException as error:
                reason = str(error)
            else:
                return context.createCheckpoint()
        raise MachineError(f"{self.model.name} flies apart from its start: {reason}")

    def frames(self, checkpoint: bytes, count: int, trajectory: int, first: int) -> Stretch:
        """Simulate the frames that follow a checkpoint, the one at its own time included.

        OpenMM's integrators keep velocities half a step before positions. With Nosé–Hoover those
        recorded are the mean of the two half steps around the frame, as in velocity Verlet. With
        Langevin they are OpenMM's own: at steps of 4 fs the mean would be 10 % too cold.

        Args:
            checkpoint: Where the first of these frames is.
            count: How many.
            trajectory: Its number.
            first: Number of the first frame; with ``trajectory`` it seeds the noise.

        Raises:
            MachineError: The system flies apart, or the checkpoint is of another OpenMM.
        """
        recorded, steps = self.model.recorded, self.config.steps_per_frame
        langevin = self.config.thermostat == "langevin"
        motion = np.empty((count, 2, len(recorded), 3), dtype=np.float32)
        potential = np.empty(count)
        try:
            context = self._context(seed_of(self.config.seed, trajectory, 2, first))
            context.loadCheckpoint(checkpoint)
            for frame in range(count):
                state = context.getState(positions=True, velocities=True, energy=True)
                before = state.getVelocities(asNumpy=True)[recorded]
                context.getIntegrator().step(1)
                after = context.getState(velocities=True).getVelocities(asNumpy=True)[recorded]
                places = state.getPositions(asNumpy=True)[recorded]
                motion[frame, 0] = places.value_in_unit(unit.angstrom)
                speed = before if langevin else (before + after) / 2
                motion[frame, 1] = speed.value_in_unit(unit.angstrom / unit.picosecond)
                energy = state.getPotentialEnergy()
                potential[frame] = energy.value_in_unit(unit.kilojoule_per_mole)
                _advance(context, steps - 1)
        except openmm.OpenMMException as error:
            raise MachineError(
                f"{self.model.name} stopped in frames {first + 1} to {first + count}: {error}"
            ) from error
        return Stretch(motion=motion, potential=potential, checkpoint=context.createCheckpoint())

    def _equilibrate(self, context: openmm.Context, trajectory: int) -> None:
        config, draw = self.config, 0

        def redraw() -> None:
            nonlocal draw
            seed = seed_of(config.seed, trajectory, 3, draw)
            context.setVelocitiesToTemperature(config.temperature_k * unit.kelvin, seed)
            draw += 1

        if config.as_published:
            redraw()
            openmm.LocalEnergyMinimizer.minimize(context, 1.0)
            context.getIntegrator().step(1)
            return
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 1000)
        redraw()
        steps = round(config.equilibration_ps / (config.step_fs / 1000))
        between = max(1, round(_REDRAW_PS / (config.step_fs / 1000)))
        for begin in range(0, steps // 2, between):
            _advance(context, min(between, steps // 2 - begin))
            redraw()
        _advance(context, steps - steps // 2)

    def _context(self, seed: int) -> openmm.Context:
        config = self.config
        temperature, step = config.temperature_k * unit.kelvin, config.step_fs * unit.femtosecond
        friction = config.friction_per_ps / unit.picosecond
        if config.thermostat == "nose-hoover":
            integrator = openmm.NoseHooverIntegrator(
                temperature, friction, step, _BEADS, _PARTS, _YOSHIDA_SUZUKI
            )
        else:
            integrator = openmm.LangevinMiddleIntegrator(temperature, friction, step)
            integrator.setRandomNumberSeed(seed)
        for force in self.model.system.getForces():
            if isinstance(force, openmm.MonteCarloBarostat):
                force.setRandomNumberSeed(seed)
        return openmm.Context(self.model.system, integrator, self.platform, self.properties)
