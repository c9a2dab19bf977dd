"""Simulate small proteins in two or more replicas each: the ensembles that MoE-DSR learns from.

    python tools/simulate_ensembles.py OUT STRUCTURE… [--picoseconds 200] [--replicas 2]

Each STRUCTURE (PDB or mmCIF, one chain) gives NAME.pdb, the relaxed start, and NAME_R1.xtc,
NAME_R2.xtc, …, the layout of the ATLAS database, heavy atoms only. A replica that is there
already is left alone, so the same command goes on after a kill: until the last is there, the state
that all start from lies beside them in NAME.start.xml. Runs on OpenMM's fastest
platform: a CUDA device if there is one, otherwise the processor.

AMBER99SB-ILDN with OBC implicit solvent, no cut-off, or TIP3P water with PME (``--solvent
explicit``); Langevin (middle) at 300 K, 4 fs with hydrogen mass 3 u and constrained bonds to
hydrogen. Implicit solvent has next to no friction: motions are faster than in water.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from undula import atomic
from undula.data.simulation.proteins import FRICTION_PER_PS, protein_system, repaired
from undula.errors import InputError

STEP_PS = 0.004
TEMPERATURE = 300 * unit.kelvin


def positions_of(simulation: app.Simulation) -> np.ndarray:
    """Return all positions, nm."""
    state = simulation.context.getState(positions=True)
    return state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)


def simulate(path: Path, out: Path, options: argparse.Namespace) -> None:
    """Simulate one protein."""
    name = path.name.split(".")[0]
    wanted = [out / f"{name}_R{replica + 1}.xtc" for replica in range(options.replicas)]
    if (out / f"{name}.pdb").exists() and all(file.exists() for file in wanted):
        print(f"{name}: already there")
        return
    modeller = repaired(path)
    system = protein_system(modeller, options.solvent)
    integrator = openmm.LangevinMiddleIntegrator(
        TEMPERATURE, FRICTION_PER_PS[options.solvent], STEP_PS * unit.picosecond
    )
    simulation = app.Simulation(modeller.topology, system, integrator)
    topology = mdtraj.Topology.from_openmm(modeller.topology)
    kept = topology.select("protein and not element H")
    solute = topology.subset(kept)
    start_file, state_file = out / f"{name}.pdb", out / f"{name}.start.xml"
    if state_file.exists():
        start = openmm.XmlSerializer.deserialize(state_file.read_text())
    elif any(file.exists() for file in wanted):
        raise SystemExit(f"{name}: replicas without {state_file.name}; remove them to start again")
    else:
        start = relaxed(simulation, modeller.positions, options.equilibration)
        atomic.write(state_file, openmm.XmlSerializer.serialize(start))
    simulation.context.setState(start)
    first = positions_of(simulation)[kept]
    mdtraj.Trajectory(first[None], solute).save_pdb(str(start_file))
    every = round(options.every / STEP_PS)
    frames = math.ceil(options.picoseconds / options.every)
    for replica, file in enumerate(wanted):
        if file.exists():
            continue
        begun = time.perf_counter()
        simulation.context.setState(start)
        simulation.context.setVelocitiesToTemperature(TEMPERATURE, 100 + replica)
        kept_frames = [first]
        for _ in range(frames):
            simulation.step(every)
            kept_frames.append(positions_of(simulation)[kept])
        trajectory = mdtraj.Trajectory(
            np.stack(kept_frames), solute, time=np.arange(frames + 1) * options.every
        )
        trajectory.superpose(trajectory, 0)
        temporary = file.with_suffix(".part.xtc")
        trajectory.save_xtc(str(temporary))
        temporary.replace(file)
        days = (time.perf_counter() - begun) / 86400
        print(
            f"{file.name}: {len(kept)} heavy atoms, {frames * options.every:g} ps, "
            f"{frames * options.every / 1000 / days:.0f} ns a day",
            flush=True,
        )
    state_file.unlink()


def relaxed(
    simulation: app.Simulation, positions: unit.Quantity, picoseconds: float
) -> openmm.State:
    """Minimise, warm up for some time, and return the state from which all replicas start."""
    simulation.context.setPositions(positions)
    simulation.minimizeEnergy(maxIterations=500)
    simulation.integrator.setRandomNumberSeed(1)
    simulation.context.setVelocitiesToTemperature(TEMPERATURE, 1)
    simulation.step(round(picoseconds / STEP_PS))
    return simulation.context.getState(positions=True, velocities=True)


def main() -> None:
    """Simulate all that is asked for; go on when one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("structures", type=Path, nargs="+")
    parser.add_argument("--picoseconds", type=float, default=200.0)
    parser.add_argument("--every", type=float, default=4.0, help="time between frames, ps")
    parser.add_argument("--equilibration", type=float, default=20.0, help="before frame 0, ps")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--solvent", choices=list(FRICTION_PER_PS), default="implicit")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for path in options.structures:
        try:
            simulate(path, options.out, options)
        except (ValueError, InputError, openmm.OpenMMException) as error:
            print(f"{path.name}: {error}", file=sys.stderr, flush=True)
            failed.append(path.name)
    if failed:
        raise SystemExit(f"not simulated: {', '.join(failed)}")


if __name__ == "__main__":
    main()
