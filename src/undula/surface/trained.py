"""A trained surface model with its trivial rows and its provenance, as one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.data.prepare import surface_of
from undula.errors import InputError
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.io.datasets import Dataset
from undula.learn.checkpoint import load_weights, save_weights
from undula.surface.baselines import Blur, StaticSurface, averaged, fitted_blur, occupancy
from undula.surface.model import SurfaceModel
from undula.surface.task import SurfaceTask

_START_PARTS = ("positions", "radii", "alpha_carbons")
WEIGHTS = "model.safetensors"
TRIVIAL = "trivial.safetensors"
TRIVIAL_SPACING = 1.0
TRIVIAL_FRAMES = 25
"""How many evenly spaced training frames of a trajectory the trivial rows are fitted on."""


@dataclass(frozen=True, eq=False)
class Start:
    """The first frame of a training trajectory, in the model's pose.

    Attributes:
        positions: Atoms, Å.
        radii: Their van der Waals radii, Å.
        alpha_carbons: Which of them are Cα.
    """

    positions: Float[Tensor, "atoms 3"]
    radii: Float[Tensor, " atoms"]
    alpha_carbons: Int[Tensor, " residues"]


@dataclass(frozen=True, eq=False)
class TrainedSurface:
    """A model ready to forecast.

    Attributes:
        model: The network.
        blur: σ and cut of the blurred first frame, fitted on the training frames.
        averaged: The majority shape of the training frames of each system, in its pose.
        starts: The first frame of each training trajectory.
        memory_ps: For each system how long a deviation from its mean shape lasts, ps.
        provenance: What it was trained on and how, for the model card.
    """

    model: SurfaceModel
    blur: Blur
    averaged: tuple[StaticSurface, ...]
    starts: tuple[Start, ...]
    memory_ps: tuple[float, ...]
    provenance: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write weights and trivial rows into a folder."""
        save_weights(
            folder / WEIGHTS,
            self.model.state_dict(),
            {"kind": "surface", "model": self.model.describe(), "provenance": self.provenance},
        )
        save_weights(
            folder / TRIVIAL,
            {f"averaged_{i}": static.values for i, static in enumerate(self.averaged)}
            | {
                f"start_{i}_{part}": getattr(start, part)
                for i, start in enumerate(self.starts)
                for part in _START_PARTS
            },
            {
                "kind": "surface-trivial",
                "memory_ps": list(self.memory_ps),
                "blur": asdict(self.blur),
                "lattices": [
                    {"origin": s.lattice.origin.tolist(), "spacing": s.lattice.spacing}
                    for s in self.averaged
                ],
            },
        )

    @classmethod
    def load(cls, folder: Path) -> TrainedSurface:
        """Read what `save` wrote.

        Args:
            folder: A run or result folder, or bundled weights.

        Raises:
            InputError: No trained surface model there, or a damaged one.
        """
        if not (folder / WEIGHTS).is_file():
            hint = " (training has not ended)" if (folder / "checkpoints").is_dir() else ""
            raise InputError(f"{folder} holds no {WEIGHTS}{hint}")
        weights, metadata = load_weights(folder / WEIGHTS)
        if metadata.get("kind") != "surface":
            raise InputError(f"{folder / WEIGHTS} is not a surface model")
        tensors, trivial = load_weights(folder / TRIVIAL)
        model = SurfaceModel.build(metadata["model"], weights).eval()
        model.requires_grad_(False)
        statics = []
        for index, described in enumerate(trivial["lattices"]):
            values = tensors[f"averaged_{index}"]
            origin = torch.tensor(described["origin"], dtype=torch.float64)
            nx, ny, nz = values.shape
            lattice = Lattice(origin=origin, spacing=described["spacing"], shape=(nx, ny, nz))
            statics.append(StaticSurface(lattice, values))
        starts = tuple(
            Start(**{part: tensors[f"start_{index}_{part}"] for part in _START_PARTS})
            for index in range(len(model.trajectories))
        )
        return cls(
            model=model,
            blur=Blur(**trivial["blur"]),
            averaged=tuple(statics),
            starts=starts,
            memory_ps=tuple(trivial["memory_ps"]),
            provenance=metadata["provenance"],
        )


def trivial_rows(
    task: SurfaceTask, datasets: Sequence[Dataset], probe: float
) -> tuple[Blur, tuple[StaticSurface, ...]]:
    """Fit the trivial rows on the frames that training may read, and on no others.

    Args:
        task: Knows which frames those are (training and validation frames).
        datasets: One per system.
        probe: Of the data sets, Å.

    Returns:
        The blur of the first frame (the default one for static structures, which have no later
        frame to fit it on) and each system's majority shape.
    """
    cases = []
    statics = []
    for system, dataset in enumerate(datasets):
        shapes = []
        positions = dataset.structure.positions
        lattice = Lattice.covering(
            positions.amin(dim=0) - 8.0, positions.amax(dim=0) + 8.0, TRIVIAL_SPACING
        )
        for index, trajectory in enumerate(task.trajectories):
            if task.owners[index] != system:
                continue
            readable = sorted(
                f.frame for f in task.training + task.validation if f.trajectory == index
            )
            step = max(1, len(readable) // TRIVIAL_FRAMES)
            occupied = [
                occupancy(_exact(dataset, trajectory.positions[frame], probe), lattice)
                for frame in readable[::step]
            ]
            if len(occupied) > 1:
                cases.append((occupied[0], occupied[1:], lattice))
            shapes += occupied
        statics.append(StaticSurface(lattice, averaged(shapes).float()))
    return fitted_blur(cases) if cases else Blur(), tuple(statics)


def starts(task: SurfaceTask, datasets: Sequence[Dataset]) -> tuple[Start, ...]:
    """Return the first frame of each training trajectory."""
    return tuple(
        Start(
            positions=torch.tensor(np.array(trajectory.positions[0]), dtype=torch.float64),
            radii=datasets[owner].structure.vdw_radii.double(),
            alpha_carbons=datasets[owner].structure.alpha_carbons,
        )
        for trajectory, owner in zip(task.trajectories, task.owners, strict=True)
    )


def memory(task: SurfaceTask, dataset: Dataset, system: int, probe: float) -> float:
    r"""Fit how long a deviation of the surface from its mean lasts, on training frames.

    .. math:: \min_\tau \sum_{i<j} (\rho_{ij} - e^{-(t_j - t_i)/\tau})^2

    where ρ is the correlation, over points around the first frame, of the deviations of two
    frames' signed distances from the mean over frames.

    Args:
        task: Knows which frames may be read.
        dataset: The system's data set.
        system: Its number.
        probe: Of the data set, Å.

    Returns:
        τ in ps; the horizon of training where there are fewer than three frames to tell.
    """
    correlations, gaps = [], []
    for index, trajectory in enumerate(task.trajectories):
        frames = sorted(f.frame for f in task.training + task.validation if f.trajectory == index)
        frames = frames[:: max(1, len(frames) // TRIVIAL_FRAMES)]
        if task.owners[index] != system or len(frames) < 3:
            continue
        points = torch.tensor(np.array(trajectory.pool(0)[:1024])[:, :3], dtype=torch.float64)
        field = torch.stack(
            [
                _exact(dataset, trajectory.positions[frame], probe).signed_distance(points)
                for frame in frames
            ]
        )
        deviation = torch.nn.functional.normalize(field - field.mean(dim=0), dim=1)
        i, j = torch.triu_indices(len(frames), len(frames), offset=1)
        times = torch.from_numpy(trajectory.times_ps[frames])
        correlations.append((deviation @ deviation.T)[i, j])
        gaps.append(times[j] - times[i])
    if not gaps:
        return task.module.horizon_ps
    found, gap = torch.cat(correlations), torch.cat(gaps)
    grid = torch.logspace(-1, 1.5, 101, dtype=torch.float64) * float(gap.min())
    errors = [float((found - torch.exp(-gap / tau)).square().sum()) for tau in grid]
    return float(grid[int(np.argmin(errors))])


def _exact(dataset: Dataset, positions: np.ndarray, probe: float) -> MolecularSurface:
    moved = torch.tensor(positions, dtype=torch.float64)
    return surface_of(replace(dataset.structure, positions=moved), probe)
