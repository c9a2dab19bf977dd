"""A test protein on which many forecasts are scored: its true surfaces are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
from undula.geometry.residue_motion import FEWEST_NODES
from undula.geometry.solids import exact_solid, lattice_solid
from undula.io.datasets import Dataset, PreparedTrajectory
from undula.surface.baselines import occupancy
from undula.surface.elastic_ensemble import SurfaceEnsemble, elastic_ensemble
from undula.surface.evaluation import MARGIN
from undula.surface.forecast import MovingSurface, forecast
from undula.surface.forecasters import (
    OTHER_FRAMES,
    OTHERS,
    Forecaster,
    even,
    forecasters,
    majority_oracle,
)
from undula.surface.model import System
from undula.surface.posed import SurfaceForecaster
from undula.surface.sample_scores import (
    Ground,
    ensemble_row,
    ground,
    model_rows,
    scored,
    trivial_rows,
    typical_fields,
)
from undula.surface.spread import SpreadRow
from undula.surface.studies.protocol import Scoring
from undula.types import Structure, Trajectory

FLOOR = "other replica at the same time"
REPLICA = "frames of another replica"
"""Name of the oracle that takes another replica for a distribution: the floor of those scores."""
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
        for row in self._rows(self._moving(trained)):
            if row.kind == "trivial":
                solids = [row.solid(time) for time in self.times_ps]
                found[row.name] = self.scores(solids.__getitem__)
        return found

    def model_spread(self, trained: SurfaceForecaster) -> dict[str, Scores]:
        """Score a trained model as a distribution: its samples, if it has any, and without."""
        members = self.scoring.members if trained.distributional else 0
        moving = self._moving(trained, members)
        rows, counted = model_rows(moving, self._ground, typical_fields(moving, self._ground))
        return self._measures(rows, members if counted else 0)

    def trivial_spread(self, trained: SurfaceForecaster) -> dict[str, Scores]:
        """Score the trivial forecasts as distributions, the elastic network's ensemble too."""
        moving = self._moving(trained)
        return self._measures(trivial_rows(moving, self._ground, self._rows(moving), self._network))

    def oracle_spread(self) -> dict[str, Scores]:
        """Score another replica's frames as a distribution, if there is another."""
        if self.floor_is_other_half:
            return {}
        known = self.dataset.trajectories
        other = known[(self.trajectory + 1) % len(known)]
        frames = even(range(1, len(other)), self.scoring.members)
        posed = _positions(other, frames, self.first)
        members = tuple(replace(self.first, positions=positions) for positions in posed)
        if len(members) < 2:
            return {}
        ensemble = SurfaceEnsemble(members=members, probe=_probe(self.dataset))
        return self._measures([ensemble_row(REPLICA, "oracle", ensemble, self._ground)])

    def _measures(self, rows: Sequence[SpreadRow], samples: int = 0) -> dict[str, Scores]:
        scores = scored(self._ground, rows, samples=samples)
        return {
            row.name: {name: [value] for name, value in scores.measures(row).items()}
            for row in rows
        }

    @cached_property
    def _ground(self) -> Ground:
        """Where distributions are compared; computed when it is first needed."""
        read = self.dataset.trajectories[self.trajectory]
        frames = Trajectory(
            structure=self.first,
            positions=_positions(read, self.frames, self.first),
            times_ps=torch.arange(len(self.frames), dtype=torch.float64),
        )
        found = ground(
            surface_of(self.first, _probe(self.dataset)),
            self.times_ps,
            frames,
            [solid.mesh for solid in self.true],
            self.lattice,
            self.scoring.seed,
        )
        assert found is not None  # no scored frame is the first one
        return found

    @cached_property
    def _network(self) -> SurfaceEnsemble | None:
        if len(self.first.alpha_carbons) < FEWEST_NODES:
            return None
        return elastic_ensemble(
            self.first,
            _probe(self.dataset),
            members=self.scoring.members,
            seed=self.scoring.seed,
        )

    def _rows(self, moving: MovingSurface) -> list[Forecaster]:
        return forecasters(moving, self.lattice, self._network)

    def oracle_scores(self) -> dict[str, Scores]:
        """Score what only someone can forecast who has seen later frames of this protein.

        What may be reached, not what to beat.
        """
        majority = self._majority()
        return {
            FLOOR: self.scores(self._other_solids().__getitem__),
            OTHERS: self.scores(lambda place: majority.solid(self.times_ps[place])),
        }

    @property
    def floor_is_other_half(self) -> bool:
        """Whether there is no other replica, so that the other half of this one stands in."""
        return len(self.dataset.trajectories) < 2

    def _moving(self, trained: SurfaceForecaster, samples: int = 0) -> MovingSurface:
        return forecast(
            self.first,
            self.times_ps,
            trained,
            spacing=self.scoring.spacing,
            samples=samples,
            seed=self.scoring.seed,
        )

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

    def _majority(self) -> Forecaster:
        """Return the majority shape of the other frames of the trajectory."""
        read = self.dataset.trajectories[self.trajectory]
        frames = sorted({*self.frames, *even(range(1, len(read)), OTHER_FRAMES)})
        surfaces = _posed(self.dataset, read, frames, self.first)
        occupied = {
            frame: occupancy(surface, self.lattice)
            for frame, surface in zip(frames, surfaces, strict=True)
        }
        scored_frames = dict(zip(self.times_ps, self.frames, strict=True))
        return majority_oracle(occupied, scored_frames, self.lattice)


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
    frames = tuple(even(range(1, len(read)), scoring.frames))
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
    probe = _probe(dataset)
    for positions in _positions(read, frames, first):
        yield surface_of(replace(dataset.structure, positions=positions), probe)


def _probe(dataset: Dataset) -> float:
    """Return the radius of the probe that a data set was made with, Å."""
    return float(dataset.manifest["request"]["rules"]["probe"])
