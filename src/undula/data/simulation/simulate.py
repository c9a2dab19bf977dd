"""Simulations to recordings: `simulate` runs OpenMM and goes on where a run was killed."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undula import atomic
from undula.data.prepare import begin, input_hash
from undula.data.simulation.settings import INSTALL, SimulateConfig, recording_stem
from undula.errors import UsageError
from undula.io.recordings import (
    FORMAT,
    RecordedFrames,
    Recordings,
    finish_recordings,
    is_recorded,
    open_recordings,
    write_recording,
)
from undula.locks import claims
from undula.units import ANGSTROM_PER_NM

if TYPE_CHECKING:
    from undula.data.simulation.engine import Engine
    from undula.data.simulation.models import Model

BUILT = "built.unfinished"
"""Where a protein's built system is kept until all its trajectories are there."""
LICENCE = "made by you with undula simulate; no one else's data"


@claims("out")
def simulate(
    config: SimulateConfig,
    out: Path,
    *,
    structure: Path | None = None,
    xtc: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Recordings:
    """Simulate trajectories of a system into a folder of recordings; go on after a kill.

    Positions are unwrapped, every frame has its velocities (`Engine.frames` tells of which half
    step) and its potential energy. A finished trajectory is kept; of an unfinished one all up to
    the last checkpoint. On Reference, and on CPU with one thread, the same settings and seed give
    the same bytes, whether a run was killed or not. On CPU with more threads, CUDA and OpenCL they
    give other trajectories of the same kind, and so does a protein anywhere when all of it is
    done again, because PDBFixer places its hydrogens anew.

    ``OUT/NAME.pdb`` is the first frame, for viewers.

    Args:
        config: The rules (`undula.data.simulation.settings.preset`).
        out: The folder to make.
        structure: Of a protein.
        xtc: Whether to write each trajectory as ``OUT/RECORDING.xtc`` too.
        say: Called with a line now and then.

    Returns:
        The complete folder.

    Raises:
        UsageError: OpenMM is not installed, or the folder was begun with other rules.
        InputError: The structure cannot serve.
        MachineError: The platform does not work here, the disk is full, or the like.
    """
    if (config.system == "protein") != (structure is not None):
        raise UsageError("a structure is simulated as a protein, and a protein needs a structure")
    if any(importlib.util.find_spec(extra) is None for extra in ("openmm", "pdbfixer")):
        raise UsageError(INSTALL)
    from undula.data.simulation.engine import Engine, chosen_platform

    platform = chosen_platform(config.platform)
    config = replace(config, platform=platform)
    stem = config.system if structure is None else recording_stem(structure)
    names = [f"{stem}_{number}" for number in range(config.trajectories)]
    request = _request(config, names, structure)
    begin(out, request)
    if (out / "manifest.json").exists():
        say(f"{out} is complete")
        made = open_recordings(out)
    else:
        engine = Engine(_model(config, structure, out), config, platform)
        for number, name in enumerate(names):
            if is_recorded(out, name):
                say(f"{name}: already there")
            else:
                _run(engine, out, name, number, say)
        made = _finish(engine.model, config, out, names, request)
        shutil.rmtree(out / BUILT, ignore_errors=True)
    if xtc:
        from undula.data.simulation.viewing import write_xtc

        for recording in made.recordings:
            write_xtc(out / f"{recording.name}.xtc", recording)
    return made


def _model(config: SimulateConfig, structure: Path | None, out: Path) -> Model:
    from undula.data.simulation import models

    if structure is not None:
        from undula.data.simulation.proteins import protein

        return protein(structure, config, out / BUILT)
    build = {
        "argon": models.argon,
        "tip3p": models.water,
        "tip4p": models.water,
        "ala2": models.alanine_dipeptide,
    }
    return build[config.system](config)


def _request(config: SimulateConfig, names: list[str], structure: Path | None) -> dict[str, Any]:
    import openmm

    topology = {"name": config.system, "sha256": ""}
    if structure is not None:
        topology = {"name": structure.name, "sha256": input_hash(structure)}
    return {
        "format": FORMAT,
        "topology": topology,
        "trajectories": [{"name": name, "file": name, "sha256": ""} for name in names],
        "rules": {**asdict(config), "openmm": openmm.__version__},
    }


def _run(engine: Engine, out: Path, name: str, trajectory: int, say: Callable[[str], None]) -> None:
    """Simulate one trajectory, stretch by stretch, and write it when it is whole."""
    config, folder = engine.config, out / f"{name}.unfinished"
    firsts = range(0, config.frames, config.checkpoint_frames)
    states = sorted(folder.glob("state-*.chk"))
    if states:
        done = int(states[-1].stem.removeprefix("state-"))
        say(f"{name}: goes on from frame {done + 1}")
    else:
        say(f"{name}: relaxing the start, {config.equilibration_ps:g} ps of equilibration")
        done = 0
        states = [folder / "state-00000000.chk"]
        atomic.write(states[0], engine.started(trajectory))
    checkpoint = states[-1].read_bytes()
    for first in (k for k in firsts if k >= done):
        count = min(config.checkpoint_frames, config.frames - first)
        begun = time.perf_counter()
        stretch = engine.frames(checkpoint, count, trajectory, first)
        seconds = time.perf_counter() - begun
        atomic.write_array(folder / f"motion-{first:08d}.npy", stretch.motion)
        atomic.write_array(folder / f"potential-{first:08d}.npy", stretch.potential)
        checkpoint = stretch.checkpoint
        atomic.write(folder / f"state-{first + count:08d}.chk", checkpoint)
        for old in states:
            old.unlink(missing_ok=True)
        states = [folder / f"state-{first + count:08d}.chk"]
        per_day = count * config.every_ps / 1000 / seconds * 86400
        say(f"{name}: {first + count} of {config.frames} frames, {per_day:.0f} ns a day")
    motion = np.concatenate([np.load(folder / f"motion-{first:08d}.npy") for first in firsts])
    potential = np.concatenate([np.load(folder / f"potential-{k:08d}.npy") for k in firsts])
    model = engine.model
    frames = RecordedFrames(
        positions=torch.from_numpy(motion[:, 0]),
        velocities=torch.from_numpy(motion[:, 1]),
        box=torch.from_numpy(model.box_nm * ANGSTROM_PER_NM) if model.periodic else None,
        potential=torch.from_numpy(potential),
        frame_ps=config.every_ps,
    )
    write_recording(out, name, frames)
    shutil.rmtree(folder)


def _finish(
    model: Model, config: SimulateConfig, out: Path, names: list[str], request: dict[str, Any]
) -> Recordings:
    import openmm

    from undula.data.simulation.viewing import molecular_system_of, pdb_text

    first = np.load(out / f"{names[0]}.positions.npy", mmap_mode="r")[0]
    atomic.write(out / f"{model.name}.pdb", pdb_text(model, first))
    return finish_recordings(
        out,
        molecular_system_of(model, torch.from_numpy(np.array(first))),
        names,
        request,
        provenance={
            "origin": f"undula simulate {config.system}, preset {config.preset}",
            "licence": LICENCE,
            "engine": f"OpenMM {openmm.__version__}, platform {config.platform}",
            "forces": model.forces,
            "preset": config.preset,
            "seed": config.seed,
            "wrapped": config.as_published,
            "centre_of_mass": "drifts" if config.as_published else "at rest",
            "velocities": "of half a step before the frame"
            if config.thermostat == "langevin"
            else "mean of the half steps before and after the frame",
            "masses": "as simulated",
        },
    )
