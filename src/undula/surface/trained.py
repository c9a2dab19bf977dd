"""A trained surface model with its trivial rows and its provenance, as one folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.data.prepare import surface_of
from undula.errors import InputError, UsageError
from undula.geometry.frames import rmsd, superposition
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface, molecular_surface
from undula.io.datasets import Dataset, PreparedTrajectory
from undula.learn.checkpoint import described_in, load_weights, save_weights
from undula.surface.baselines import (
    Blur,
    Shifts,
    StaticSurface,
    TrivialCase,
    averaged,
    distances,
    fitted_blur,
    fitted_shifts,
    occupancy,
)
from undula.surface.model import SurfaceModel
from undula.surface.task import SurfaceTask
from undula.types import Structure

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

    def __post_init__(self) -> None:
        atoms, on = len(self.positions), self.alpha_carbons
        if self.positions.shape != (atoms, 3) or self.radii.shape != (atoms,):
            raise InputError("a first frame needs a position and a radius for each atom")
        if on.is_floating_point() or on.ndim != 1 or not ((on >= 0) & (on < atoms)).all():
            raise InputError("a first frame names Cα that it does not have")
        if not (self.radii > 0).all():
            raise InputError("the radii of a first frame should be positive")


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
        shifts: Of the dilated and the eroded first frame, fitted likewise; none in weights that
            are older than those rows, and where there was no later frame to fit them on.
    """

    model: SurfaceModel
    blur: Blur
    averaged: tuple[StaticSurface, ...]
    starts: tuple[Start, ...]
    memory_ps: tuple[float, ...]
    provenance: dict[str, Any]
    shifts: Shifts | None = None

    @property
    def horizon_ps(self) -> float:
        """The longest lag in training, ps."""
        return self.model.horizon_ps

    @property
    def distributional(self) -> bool:
        """It forecasts the typical shape only."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of it."""
        grids = self.model.config.grid is not None
        kind = "splines on grids" if grids else "DSR's implicit network"
        return (
            f"Model: {kind}, trained for {self.provenance['steps']} steps on "
            f"{self.provenance['training_frames']} frames up to {self.horizon_ps:g} ps.",
            "It knows only the protein it was trained on.",
        )

    def posed(
        self, structure: Structure, surface: MolecularSurface, seed: int
    ) -> TrainedProteinField:
        """Bind the model to a structure of a protein it was trained on.

        Raises:
            InputError: It was not.
        """
        del seed
        return TrainedProteinField(self, structure, surface, self.model.system_of(structure))

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
                "shifts": self.shifts and asdict(self.shifts),
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
        with described_in(folder / WEIGHTS):
            check_provenance(metadata["provenance"], ("steps", "training_frames"))
            model = SurfaceModel.build(metadata["model"], weights).eval()
            model.requires_grad_(False)
        with described_in(folder / TRIVIAL):
            return cls._with_rows(model, metadata["provenance"], tensors, trivial)

    @classmethod
    def _with_rows(
        cls,
        model: SurfaceModel,
        provenance: dict[str, Any],
        tensors: Mapping[str, Tensor],
        trivial: Mapping[str, Any],
    ) -> TrainedSurface:
        """Put a model together with what was stored of its trivial rows."""
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
        for start, (name, system) in zip(starts, model.trajectories, strict=True):
            if len(start.alpha_carbons) != len(model.alpha_carbons(system)):
                raise InputError(f"the first frame of {name} has another number of Cα")
        memory_ps = tuple(float(one) for one in trivial["memory_ps"])
        if not len(memory_ps) == len(statics) == len(model.sequences):
            raise InputError(f"there should be rows for {len(model.sequences)} systems")
        return cls(
            model=model,
            blur=Blur(**trivial["blur"]),
            averaged=tuple(statics),
            starts=starts,
            memory_ps=memory_ps,
            provenance=provenance,
            shifts=known_shifts(trivial),
        )


def check_provenance(provenance: Mapping[str, Any], numbers: Sequence[str]) -> None:
    """Raise where the record of a training lacks one of some numbers that readers are told.

    Raises:
        InputError: The first one.
    """
    for name in numbers:
        value = provenance.get(name)
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"the provenance should tell {name}, found {value!r}")


def known_shifts(metadata: Mapping[str, Any]) -> Shifts | None:
    """Return the shifts that stand in the metadata of weights, if they do."""
    found = metadata.get("shifts")
    return None if found is None else Shifts(**found)


@dataclass(frozen=True, eq=False)
class BasePoints:
    """Points in the model's pose with the distances to two known surfaces.

    Attributes:
        points: In the model's pose, Å.
        bases: Distance to the structure's own surface and to the trajectory's first frame, Å;
            without rows for a model that has no base.
    """

    points: Float[Tensor, "n 3"]
    bases: Float[Tensor, "bases n"]

    def __getitem__(self, rows: Tensor) -> BasePoints:
        return BasePoints(self.points[rows], self.bases[:, rows])


@dataclass(frozen=True, eq=False)
class TrainedProteinField:
    """The moving field of a protein that the model was trained on, in a structure's pose.

    Attributes:
        trained: The model.
        structure: The first frame.
        first_surface: Its exact surface.
        system: Which of the model's systems it is.
    """

    trained: TrainedSurface
    structure: Structure
    first_surface: MolecularSurface
    system: int

    @cached_property
    def to_model(self) -> tuple[Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
        """Rotation R and translation t into the model's pose: R x + t."""
        on = self.structure.alpha_carbons
        known = self.trained.model.alpha_carbons(self.system)
        return superposition(self.structure.positions[on].double(), known)

    @cached_property
    def start(self) -> int:
        """Which training trajectory began nearest to the structure, by RMSD of the Cα."""
        rotation, translation = self.to_model
        on = self.structure.alpha_carbons
        posed = self.structure.positions[on].double() @ rotation.T + translation
        known = self.trained.model.trajectories
        distances = {
            index: float(rmsd(posed, start.positions[start.alpha_carbons]))
            for index, start in enumerate(self.trained.starts)
            if known[index][1] == self.system
        }
        return min(distances, key=lambda index: distances[index])

    @cached_property
    def known_surface(self) -> MolecularSurface:
        """The exact surface of that trajectory's first frame, in the model's pose."""
        start = self.trained.starts[self.start]
        probe = float(self.trained.provenance.get("probe", 1.4))
        return molecular_surface(start.positions, start.radii, probe=probe)

    def known(self, points: Float[Tensor, "n 3"]) -> BasePoints:
        """Return points in the model's pose with their distances to the known surfaces."""
        rotation, translation = self.to_model
        moved = points.double() @ rotation.T + translation
        if self.trained.model.config.base != "first-frame":
            return BasePoints(moved, torch.zeros(0, len(points), dtype=torch.float64))
        own = self.first_surface.signed_distance(points).double()
        return BasePoints(moved, torch.stack([own, self.known_surface.signed_distance(moved)]))

    @torch.no_grad()
    def values(self, known: BasePoints, time_ps: float, sample: int | None) -> Float[Tensor, " n"]:
        r"""Return the field; its base fades from the structure's own surface to the known one.

        .. math:: b(x, t) = d_{known}(x) + e^{-t/\tau} (d_{own}(x) - d_{known}(x))

        The network corrects the known first frame. What the given structure has of its own is
        a deviation, and that is forgotten as fast as deviations were in training (τ).
        """
        assert sample is None, "this kind of model draws no samples"
        model = self.trained.model
        latent = model.latents[self.start]
        lag = torch.tensor([time_ps], dtype=torch.float64, device=latent.device)
        condition = model.conditions(lag, latent[None])[0]
        base = None
        if len(known.bases):
            own, other = known.bases
            kept = math.exp(-time_ps / self.trained.memory_ps[self.system])
            base = (other + kept * (own - other)).to(condition.dtype)
        return model.field(known.points, condition, self.system, base)

    def samples(self, known: BasePoints, time_ps: float, count: int) -> Float[Tensor, "count n"]:
        """Refuse: this kind of model draws no samples."""
        del known, time_ps, count
        raise UsageError("this model forecasts the typical surface only and draws no samples")

    def still(self, lattice: Lattice) -> dict[str, Float[Tensor, "nx ny nz"]]:
        """Return the majority shape of the training frames: trivial for a known protein."""
        rotation, translation = self.to_model
        points = lattice.points() @ rotation.T + translation
        averages = self.trained.averaged[self.system].field(points).reshape(lattice.shape)
        return {"averaged training frames": averages}


def trivial_rows(
    task: SurfaceTask, datasets: Sequence[Dataset], probe: float
) -> tuple[Blur, Shifts | None, tuple[StaticSurface, ...]]:
    """Fit the trivial rows on the frames that training may read, and on no others.

    Args:
        task: Knows which frames those are (training and validation frames).
        datasets: One per system.
        probe: Of the data sets, Å.

    Returns:
        The blur of the first frame (the default one for static structures, which have no later
        frame to fit it on), the shifts of the dilated and eroded one (none for those), and each
        system's majority shape.
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
            first, *later = (
                _exact(dataset, trajectory.positions[frame], probe) for frame in readable[::step]
            )
            start = distances(first, lattice)
            others = [occupancy(surface, lattice) for surface in later]
            if others:
                cases.append(TrivialCase(first=start, later=others, lattice=lattice))
            shapes += [start < 0, *others]
        statics.append(StaticSurface(lattice, averaged(shapes).float()))
    if not cases:
        return Blur(), None, tuple(statics)
    return fitted_blur(cases), fitted_shifts(cases), tuple(statics)


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
    cases = []
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
        cases.append((trajectory.times_ps[frames], field))
    return fitted_memory(cases) or task.module.horizon_ps


def fitted_memory(cases: Sequence[tuple[np.ndarray, Float[Tensor, "frames points"]]]) -> float:
    """Fit τ of `memory` on fields at the same points over time.

    Args:
        cases: Times in ps and fields of some trajectories.

    Returns:
        τ in ps; 0 where no trajectory has three frames to tell.
    """
    correlations, gaps = [], []
    for lags, field in cases:
        if len(field) < 3:
            continue
        deviation = torch.nn.functional.normalize(field - field.mean(dim=0), dim=1)
        i, j = torch.triu_indices(len(field), len(field), offset=1)
        times = torch.from_numpy(np.array(lags))
        correlations.append((deviation @ deviation.T)[i, j].double())
        gaps.append(times[j] - times[i])
    if not gaps:
        return 0.0
    found, gap = torch.cat(correlations), torch.cat(gaps)
    grid = torch.logspace(-1, 1.5, 101, dtype=torch.float64) * float(gap.min())
    errors = [float((found - torch.exp(-gap / tau)).square().sum()) for tau in grid]
    return float(grid[int(np.argmin(errors))])


def trivial_case(
    dataset: Dataset, trajectory: PreparedTrajectory, frames: Sequence[int], probe: float
) -> TrivialCase:
    """Return what `fitted_blur` and `fitted_shifts` need of a trajectory's readable frames."""
    positions = torch.tensor(np.array(trajectory.positions[0]))
    lattice = Lattice.covering(
        positions.amin(dim=0).double() - 8.0, positions.amax(dim=0).double() + 8.0, TRIVIAL_SPACING
    )
    later = [frame for frame in frames if frame > 0]
    first, *others = (
        _exact(dataset, trajectory.positions[frame], probe)
        for frame in [0, *later[:: max(1, len(later) // TRIVIAL_FRAMES)]]
    )
    return TrivialCase(
        first=distances(first, lattice),
        later=[occupancy(surface, lattice) for surface in others],
        lattice=lattice,
    )


def _exact(dataset: Dataset, positions: np.ndarray, probe: float) -> MolecularSurface:
    moved = torch.tensor(positions, dtype=torch.float64)
    return surface_of(replace(dataset.structure, positions=moved), probe)
