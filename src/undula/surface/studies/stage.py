"""A test protein on which many forecasts are scored: its true surfaces are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.data.prepare import surface_of
from undula.errors import InputError
from undula.geometry.comparison import Solid, compare_surfaces
from undula.geometry.frames import superposition
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.geometry.solids import exact_solid, lattice_solid
from undula.io.datasets import Dataset, PreparedTrajectory
from undula.surface.baselines import averaged, occupancy
from undula.surface.evaluation import MARGIN, forecasters
from undula.surface.forecast import MovingSurface, forecast
from undula.surface.model import System
from undula.surface.posed import SurfaceForecaster
from undula.surface.studies.protocol import Scoring
from undula.types import Structure

FLOOR = "other replica at the same time"
MAJORITY = "majority of the other frames"
_MAJORITY_FRAMES = 25
Scores = dict[str, list[float]]
"""Measure → one number per frame."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One trajectory of a test protein, ready to be forecast and scored.

    Attributes:
        dataset: The protein.
        trajectory: Which of its trajectories.
        first: Its first frame: all that a forecast may see.
        frames: The frames that are scored.
        times_ps: Their times since the first.
        lattice: Where everything is laid down.
        true: Their exact surfaces, posed on the first frame by Cα.
        scoring: How they are compared.
    """

    dataset: Dataset
    trajectory: int
    first: Structure
    frames: tuple[int, ...]
    times_ps: tuple[float, ...]
    lattice: Lattice
    true: tuple[Solid, ...]
    scoring: Scoring

    def scores(self, solid: Callable[[int], Solid]) -> Scores:
        """Compare what a row forecasts for each scored frame (by its place) with the truth."""
        system = System.of(self.first)
        found: Scores = {}
        for place, true in enumerate(self.true):
            measured = compare_surfaces(
                solid(place),
                true,
                centre=system.centre,
                scale=system.scale,
                generator=torch.Generator().manual_seed(self.scoring.seed),
                samples=self.scoring.samples,
                spacing=self.scoring.spacing,
            )
            for name, value in measured.items():
                found.setdefault(name, []).append(value)
        return found

    def model_scores(self, trained: SurfaceForecaster) -> Scores:
        """Score a trained model, which sees the first frame alone."""
        moving = self._moving(trained)

        def solid(place: int) -> Solid:
            found = moving.level_set(self.times_ps[place], lattice=self.lattice)
            return lattice_solid(found.values, self.lattice, mesh=found.mesh)

        return self.scores(solid)

    def trivial_scores(self, trained: SurfaceForecaster) -> dict[str, Scores]:
        """Score the trivial forecasts; the blur is the one fitted on the training proteins."""
        found = {}
        for row in forecasters(self._moving(trained), self.lattice):
            if row.kind == "trivial":
                solids = [row.solid(time) for time in self.times_ps]
                found[row.name] = self.scores(solids.__getitem__)
        return found

    def oracle_scores(self) -> dict[str, Scores]:
        """Score what only someone can forecast who has seen later frames of this protein.

        What may be reached, not what to beat.
        """
        return {
            FLOOR: self.scores(self._other_solids().__getitem__),
            MAJORITY: self.scores(self._majorities().__getitem__),
        }

    @property
    def floor_is_other_half(self) -> bool:
        """Whether there is no other replica, so that the other half of this one stands in."""
        return len(self.dataset.trajectories) < 2

    def _moving(self, trained: SurfaceForecaster) -> MovingSurface:
        return forecast(self.first, self.times_ps, trained, spacing=self.scoring.spacing)

    def _other_solids(self) -> list[Solid]:
        """Return the frame of another replica nearest in time, or half a run off where is none."""
        known = self.dataset.trajectories
        other = known[(self.trajectory + 1) % len(known)]
        times = np.array(other.times_ps)
        wanted = list(self.times_ps)
        if self.floor_is_other_half:
            half = float(times[-1]) / 2
            wanted = [time - half if time > half else time + half for time in self.times_ps]
        nearest = [int(np.abs(times[1:] - time).argmin()) + 1 for time in wanted]
        surfaces = _posed(self.dataset, other, nearest, self.first)
        return [exact_solid(surface, self.lattice) for surface in surfaces]

    def _majorities(self) -> list[Solid]:
        """Return for each scored frame the majority shape of other frames of the trajectory."""
        read = self.dataset.trajectories[self.trajectory]
        frames = sorted({*self.frames, *_even(range(1, len(read)), _MAJORITY_FRAMES)})
        inside = [
            occupancy(surface, self.lattice)
            for surface in _posed(self.dataset, read, frames, self.first)
        ]
        return [
            lattice_solid(
                averaged([one for f, one in zip(frames, inside, strict=True) if f != frame]).to(
                    self.lattice.origin
                ),
                self.lattice,
            )
            for frame in self.frames
        ]


def stage(dataset: Dataset, trajectory: int, scoring: Scoring) -> Stage:
    """Set up one trajectory of a test protein.

    Args:
        dataset: The protein.
        trajectory: Which of its trajectories.
        scoring: How many frames, and how they are compared.

    Raises:
        InputError: It has fewer than three frames.
    """
    read = dataset.trajectories[trajectory]
    if len(read) < 3:
        raise InputError(
            f"{dataset.structure.name}: a test needs at least three frames, "
            f"{read.name} has {len(read)}"
        )
    frames = tuple(_even(range(1, len(read)), scoring.frames))
    start = torch.from_numpy(np.array(read.positions[0], dtype=np.float64))
    first = replace(dataset.structure, positions=start)
    posed = _positions(read, frames, first)
    everything = torch.cat([posed.reshape(-1, 3), start])
    lattice = Lattice.covering(
        everything.amin(dim=0) - MARGIN, everything.amax(dim=0) + MARGIN, scoring.spacing
    )
    surfaces = _posed(dataset, read, frames, first)
    return Stage(
        dataset=dataset,
        trajectory=trajectory,
        first=first,
        frames=frames,
        times_ps=tuple(float(read.times_ps[frame]) for frame in frames),
        lattice=lattice,
        true=tuple(exact_solid(surface, lattice) for surface in surfaces),
        scoring=scoring,
    )


def _positions(
    read: PreparedTrajectory, frames: list[int] | tuple[int, ...], first: Structure
) -> Float[Tensor, "frames atoms 3"]:
    """Return frames superposed by Cα on a first frame."""
    positions = torch.from_numpy(np.array(read.positions[list(frames)], dtype=np.float64))
    on = first.alpha_carbons
    rotation, translation = superposition(positions[:, on], first.positions[on].double())
    return positions @ rotation.mT + translation.unsqueeze(-2)


def _posed(
    dataset: Dataset,
    read: PreparedTrajectory,
    frames: list[int] | tuple[int, ...],
    first: Structure,
) -> Iterator[MolecularSurface]:
    probe = float(dataset.manifest["request"]["rules"]["probe"])
    for positions in _positions(read, frames, first):
        yield surface_of(replace(dataset.structure, positions=positions), probe)


def _even(frames: range, count: int) -> list[int]:
    """Return up to ``count`` of some frames, evenly spaced, the last one among them."""
    if len(frames) <= count:
        return list(frames)
    step = len(frames) / count
    return [frames[int((i + 1) * step + 1e-9) - 1] for i in range(count)]
