"""Recordings of atoms that remember their velocity for a while, written in a moment."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.motion.small_systems import argon, waters

from undula import atomic
from undula.data.velocities import examined
from undula.io.recordings import RecordedFrames, Recordings, finish_recordings, write_recording

EDGE = 10.0
FRAME_PS = 0.1
OBSERVED, WINDOW, HORIZON = 40, 12, 40
KNOWN = 40


def walk(frames: int, atoms: int, seed: int, memory: float = 0.97) -> RecordedFrames:
    """Let atoms run with velocities that fade; positions are their integral."""
    generator = torch.Generator().manual_seed(seed)
    kick = torch.randn(frames + 8, atoms, 3, generator=generator, dtype=torch.float64)
    smooth = kick.unfold(0, 8, 1).mean(dim=-1)
    velocity = torch.zeros(frames, atoms, 3, dtype=torch.float64)
    velocity[0] = smooth[0]
    for step in range(1, frames):
        velocity[step] = memory * velocity[step - 1] + 0.5 * smooth[step]
    velocity = velocity - velocity.mean(dim=1, keepdim=True)
    start = EDGE * torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
    steps = (velocity[1:] + velocity[:-1]) / 2 * FRAME_PS
    positions = start + torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(dim=0)])
    return RecordedFrames(
        positions=positions.float(),
        frame_ps=FRAME_PS,
        velocities=velocity[:KNOWN].float(),
        box=EDGE * torch.eye(3),
    )


def walkers(
    folder: Path, *, atoms: int = 8, recordings: int = 3, water: bool = False
) -> Recordings:
    """Write recordings of free atoms, or of atoms that are called water."""
    folder.mkdir(parents=True, exist_ok=True)
    request = {"test": atoms}
    atomic.write_json(folder / "request.json", request)
    names = [f"run{number}" for number in range(recordings)]
    for number, name in enumerate(names):
        frames = walk(OBSERVED + HORIZON + 4, atoms, number)
        write_recording(folder, name, examined(frames))
    system = waters(atoms // 3) if water else argon(atoms)
    provenance = {"origin": "test", "licence": "CC0-1.0"}
    return finish_recordings(folder, system, names, request, provenance=provenance)
