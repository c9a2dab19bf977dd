"""Systems that fit on a line, what they do in a short time, and small models of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undula import atomic
from undula.io.recordings import (
    RecordedFrames,
    Recordings,
    finish_recordings,
    write_recording,
)
from undula.motion.climatology import knot_frames
from undula.motion.climatology_fit import Example, fit_climatology
from undula.motion.encoder import EncoderConfig
from undula.motion.levels import LevelsConfig
from undula.motion.model import DoMiNO, MotionModelConfig
from undula.motion.observation import fitted_usual
from undula.motion.predictors import ClimatologyConfig
from undula.motion.trained import TrainedMotion
from undula.motion.windows import Window
from undula.nn.ode.solve import SolverConfig
from undula.types import MolecularSystem, Structure

MASSES = {"AR": 39.948, "O": 15.999, "H": 1.008, "C": 12.011}
FRAME_PS = 0.1
OBSERVED = 12
ENCODER = EncoderConfig(features=8, layers=1, cutoff=4.0, neighbours=6.0, oldest=8, latent=3)
LEVELS = LevelsConfig(
    horizon=16, strides=(8, 4, 1), solver=SolverConfig(steps=2), segment_chunk=None
)
BOX = torch.tensor([[9.0, 0, 0], [1.5, 9, 0], [-1, 2, 10]], dtype=torch.float64)
"""A skewed one, its faces more than two cutoffs apart."""


def system(elements: list[str], bonds: list[tuple[int, int]], molecules: list[int]):
    atoms = len(elements)
    blank = np.array([""] * atoms)
    structure = Structure(
        name="small",
        positions=torch.zeros(atoms, 3),
        elements=np.array(elements),
        atom_names=np.array(elements),
        residue_names=np.array(["MOL"] * atoms),
        residue_numbers=np.ones(atoms, dtype=np.int64),
        insertion_codes=blank,
        chain_ids=blank,
        residue_index=np.zeros(atoms, dtype=np.int64),
        file_index=np.arange(atoms),
        file_atoms=atoms,
    )
    return MolecularSystem(
        structure=structure,
        bonds=torch.tensor(bonds, dtype=torch.int64).reshape(-1, 2).T.contiguous(),
        molecules=torch.tensor(molecules),
        kinds=np.array(elements),
        masses=torch.tensor([MASSES[symbol] for symbol in elements], dtype=torch.float64),
    )


def argon(atoms: int) -> MolecularSystem:
    return system(["AR"] * atoms, [], list(range(atoms)))


def waters(count: int) -> MolecularSystem:
    bonds = [(3 * k, 3 * k + h) for k in range(count) for h in (1, 2)]
    return system(["O", "H", "H"] * count, bonds, [k for k in range(count) for _ in range(3)])


def chain(atoms: int) -> MolecularSystem:
    return system(["C"] * atoms, [(k, k + 1) for k in range(atoms - 1)], [0] * atoms)


def water_positions(count: int, generator: torch.Generator) -> torch.Tensor:
    """Place rigid waters at random, each turned its own way."""
    one = torch.tensor([[0.0, 0, 0], [0.9572, 0, 0], [-0.23999, 0.92663, 0]], dtype=torch.float64)
    turns = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))[0]
    places = 20 * torch.rand(count, 1, 3, generator=generator, dtype=torch.float64)
    return (one @ turns + places).reshape(-1, 3)


def start(atoms: MolecularSystem, generator: torch.Generator) -> Tensor:
    """Place free atoms in the box, waters near each other, a chain as a spiral."""
    if atoms.kinds[0] == "AR":
        inside = torch.rand(len(atoms), 3, generator=generator, dtype=torch.float64)
        return inside @ BOX
    if atoms.kinds[0] == "O":
        return water_positions(len(atoms) // 3, generator) * 0.4
    turn = torch.arange(len(atoms), dtype=torch.float64) * 1.7
    return torch.stack([turn.cos(), turn.sin(), 0.6 * turn], dim=1)


def path(atoms: MolecularSystem, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw smooth paths of a system: positions, Å, and the velocities along them, Å/ps.

    Molecules fly on and swing, each at its own pace; their atoms tremble about their places.
    """
    time = FRAME_PS * torch.arange(frames, dtype=torch.float64)[:, None, None]

    def numbers(rows: int) -> Tensor:
        return torch.randn(1, rows, 3, generator=generator, dtype=torch.float64)

    molecules = atoms.molecule_count
    fly, swing, tremble = numbers(molecules), 0.5 * numbers(molecules), 0.1 * numbers(len(atoms))
    pace, phase = 4 + numbers(molecules), 3 * numbers(molecules)
    place = fly * time + swing * torch.sin(pace * time + phase)
    speed = fly + pace * swing * torch.cos(pace * time + phase)
    positions = start(atoms, generator) + place[:, atoms.molecules] + tremble * torch.sin(9 * time)
    return positions, speed[:, atoms.molecules] + 9 * tremble * torch.cos(9 * time)


def window(atoms: MolecularSystem, seed: int = 0, frames: int = OBSERVED) -> Window:
    """Observe a system, free atoms in `BOX`."""
    positions, velocities = path(atoms, frames, torch.Generator().manual_seed(seed))
    return Window(
        system=atoms,
        positions=positions,
        velocities=velocities,
        box=BOX if atoms.kinds[0] == "AR" else None,
        frame_ps=FRAME_PS,
    )


def moved(seen: Window, matrix: Tensor, shift: Tensor) -> Window:
    """Turn or mirror all that was observed, then shift it."""
    return replace(
        seen,
        positions=seen.positions @ matrix.T + shift,
        velocities=None if seen.velocities is None else seen.velocities @ matrix.T,
        box=None if seen.box is None else seen.box @ matrix.T,
    )


def stirred(model: DoMiNO, size: float = 0.3) -> DoMiNO:
    """Add noise to all weights, so that nothing is silent any more."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return model


def trained(
    atoms: MolecularSystem,
    encoder: EncoderConfig = ENCODER,
    levels: LevelsConfig = LEVELS,
    *,
    silent: bool = False,
    reference: Tensor | None = None,
    observed: int = OBSERVED,
) -> TrainedMotion:
    """Make a model in float64 with random weights upon a linear forecast fitted to `path`."""
    knots = knot_frames(levels.horizon)
    examples = []
    for seed in range(5):
        seen = window(atoms, 50 + seed, observed + levels.horizon)
        known = replace(
            seen, positions=seen.positions[:observed], velocities=seen.velocities[:observed]
        )
        future = seen.positions[torch.tensor(knots) + observed - 1]
        examples.append(Example(window=known, future=future))
    climatology = fit_climatology(examples, knots, ClimatologyConfig())
    kinds = climatology.kind_of_atoms(atoms)
    ages = encoder.ages(observed)[1:]
    usual = fitted_usual((one.window for one in examples), kinds, len(climatology.kinds), ages)
    config = MotionModelConfig(encoder=encoder, levels=levels)
    model = DoMiNO(config, len(climatology.kinds), 0).double()
    return TrainedMotion(
        model=(model if silent else stirred(model)).eval().requires_grad_(False),
        climatology=climatology,
        usual=usual,
        reference=reference,
        provenance={"system": atoms.structure.name},
    )


def recorded(
    folder: Path,
    atoms: MolecularSystem,
    runs: Sequence[RecordedFrames],
    reference: Tensor | None = None,
) -> Recordings:
    """Write a folder of recordings named ``run_0``, ``run_1``, …"""
    names = [f"run_{number}" for number in range(len(runs))]
    atomic.write_json(folder / "request.json", {})
    for name, frames in zip(names, runs, strict=True):
        write_recording(folder, name, frames)
    return finish_recordings(
        folder,
        atoms,
        names,
        {},
        provenance={"origin": "drawn", "licence": "none"},
        reference=reference,
    )


def vibrating(molecules: int, frames: int, generator: torch.Generator) -> RecordedFrames:
    """Integrate pairs of carbons on springs that swing and turn, each pair far from the others."""
    stiffness, length, step, every = 40.0, 1.5, 0.01, 10

    def force(x: Tensor) -> Tensor:
        between = x[:, 1] - x[:, 0]
        now = between.norm(dim=-1, keepdim=True)
        pull = stiffness * (now - length) * between / now
        return torch.stack([pull, -pull], dim=1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    ends = torch.tensor([[-0.5], [0.5]], dtype=torch.float64)
    axis = torch.nn.functional.normalize(numbers(molecules, 1, 3), dim=-1)
    apart = length + 0.6 * numbers(molecules, 1, 1).clamp(-1, 1)
    places = 30 * torch.arange(molecules, dtype=torch.float64)[:, None, None]
    x, v = places + ends * axis * apart, 0.8 * ends * numbers(molecules, 1, 3)
    positions, velocities = [], []
    for number in range(frames * every):
        if number % every == 0:
            positions.append(x)
            velocities.append(v)
        v = v + step / 2 * force(x)
        x = x + step * v
        v = v + step / 2 * force(x)
    return RecordedFrames(
        positions=torch.stack(positions).flatten(1, 2),
        velocities=torch.stack(velocities).flatten(1, 2),
        frame_ps=step * every,
    )


def pairs(molecules: int) -> MolecularSystem:
    bonds = [(2 * k, 2 * k + 1) for k in range(molecules)]
    return system(["C"] * 2 * molecules, bonds, [k for k in range(molecules) for _ in range(2)])
