"""Scoring a moving surface against what happened, beside the trivial forecasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from undula.data.prepare import aligned, surface_of
from undula.errors import InputError, Notice, UsageError
from undula.geometry.comparison import Solid, compare_surfaces
from undula.geometry.frames import superposition
from undula.geometry.lattice import Lattice
from undula.geometry.residue_motion import FEWEST_NODES
from undula.geometry.solids import exact_solid
from undula.surface.baselines import occupancy
from undula.surface.elastic_ensemble import MEMBERS, SurfaceEnsemble, elastic_ensemble
from undula.surface.forecast import MovingSurface, coloured
from undula.surface.forecasters import (
    OTHER_FRAMES,
    Forecaster,
    Kind,
    even,
    fitted_numbers,
    forecasters,
    majority_oracle,
)
from undula.surface.model import System, sequence
from undula.surface.sample_scores import ground, sample_scores
from undula.surface.spread import SampleScores
from undula.types import Mesh, Trajectory

MARGIN = 8.0
"""Space around all true atoms on the lattices, Å."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How surfaces are compared.

    Attributes:
        spacing: Of lattices and meshes, Å, the same for truth and all forecasts.
        samples: Points drawn on each mesh for the distances (300,000 in DSR).
        seed: Of those points, and of the elastic network.
        members: Of the elastic network.
    """

    spacing: float = 0.7
    samples: int = 20_000
    seed: int = 0
    members: int = MEMBERS

    def __post_init__(self) -> None:
        if not self.spacing > 0 or self.samples < 1:
            raise UsageError("spacing should be positive and samples at least 1")
        if self.members < 2:
            raise UsageError(f"an elastic network needs at least two members, not {self.members}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Scores of a forecast and of the trivial forecasts, frame by frame.

    Attributes:
        times_ps: Of the frames that were compared.
        scores: Row name → measure → one number per frame (`compare_surfaces` names them).
        kinds: Row name → model, trivial or oracle.
        truth: True meshes in the forecast's pose, coloured by displacement.
        forecast: Forecast meshes at the same times.
        notices: Times without a true frame, and what the truth's reader said.
        samples: The forecast as a distribution, where there is a later frame.
        remarks: How the trivial rows came by their numbers.
    """

    times_ps: tuple[float, ...]
    scores: Mapping[str, Mapping[str, list[float]]]
    kinds: Mapping[str, Kind]
    truth: list[Mesh]
    forecast: list[Mesh]
    notices: tuple[Notice, ...]
    samples: SampleScores | None = None
    remarks: tuple[str, ...] = ()


def evaluate(
    moving: MovingSurface, truth: Trajectory, config: EvaluationConfig | None = None
) -> Evaluation:
    """Score a forecast at its times against a trajectory that starts at its structure.

    Every true frame is superposed by Cα on the forecast's structure; normalised measures use
    the centre and scale of that structure, never of later frames.

    Args:
        moving: The forecast.
        truth: Frames of the same protein (its atoms may differ, as when a forecast from a
            crystal structure meets a simulation); its first frame is time 0.
        config: Lattices and samples.

    Raises:
        InputError: The truth is another protein, or has no frame at any of the times.
    """
    config = config or EvaluationConfig()
    told = _told(moving, truth)
    frames = told.posed(told.frames)
    lattice = _lattice_around(moving, frames, config.spacing)
    ensemble = _ensemble(moving, config)
    rows = forecasters(moving, lattice, ensemble)
    compared = [*rows, *_oracle(told, lattice)]
    scores: dict[str, dict[str, list[float]]] = {row.name: {} for row in compared}
    true_meshes, forecast_meshes = [], []
    for index, time in enumerate(told.times_ps):
        true = exact_solid(surface_of(frames.frame(index), moving.probe), lattice)
        true_meshes.append(true.mesh)
        for row in compared:
            solid = row.solid(time)
            if row.kind == "model":
                forecast_meshes.append(coloured(solid.mesh, moving))
            for name, value in _measured(moving, solid, true, config).items():
                scores[row.name].setdefault(name, []).append(value)
    on = ground(moving.first_surface, told.times_ps, frames, true_meshes, lattice, config.seed)
    return Evaluation(
        times_ps=told.times_ps,
        scores=scores,
        kinds={row.name: row.kind for row in compared},
        truth=[coloured(mesh, moving) for mesh in true_meshes],
        forecast=forecast_meshes,
        notices=told.notices,
        samples=None if on is None else sample_scores(moving, on, rows, ensemble),
        remarks=_remarks(moving, ensemble),
    )


def _remarks(moving: MovingSurface, ensemble: SurfaceEnsemble | None) -> tuple[str, ...]:
    told: tuple[str, ...] = (fitted_numbers(moving.trained),)
    if ensemble is None:
        told += (f"Fewer than {FEWEST_NODES} Cα: there are no rows of an elastic network.",)
    return told


def _measured(
    moving: MovingSurface, solid: Solid, true: Solid, config: EvaluationConfig
) -> dict[str, float]:
    system = System.of(moving.structure)
    return compare_surfaces(
        solid,
        true,
        centre=system.centre,
        scale=system.scale,
        generator=torch.Generator().manual_seed(config.seed),
        samples=config.samples,
        spacing=config.spacing,
    )


def _oracle(told: _Told, lattice: Lattice) -> list[Forecaster]:
    """Return the majority of the other true frames as a row, where there are others."""
    count = len(told.truth)
    pool = sorted({*told.frames, *even(range(1, count), OTHER_FRAMES)})
    if len(pool) < 2:
        return []
    posed = told.posed(pool)
    occupied = {
        frame: occupancy(surface_of(posed.frame(place), told.moving.probe), lattice)
        for place, frame in enumerate(pool)
    }
    return [majority_oracle(occupied, dict(zip(told.times_ps, told.frames, strict=True)), lattice)]


def _ensemble(moving: MovingSurface, config: EvaluationConfig) -> SurfaceEnsemble | None:
    """Return the first frame's elastic network, if it has one."""
    if len(moving.structure.alpha_carbons) < FEWEST_NODES:
        return None
    return elastic_ensemble(
        moving.structure, moving.probe, members=config.members, seed=config.seed
    )


def true_meshes(
    moving: MovingSurface, truth: Trajectory, spacing: float
) -> tuple[tuple[float, ...], list[Mesh], tuple[Notice, ...]]:
    """Return the true meshes at a forecast's times, in its pose, coloured by displacement.

    Args:
        moving: The forecast.
        truth: Frames of the same protein (its atoms may differ, as when a forecast from a
            crystal structure meets a simulation); its first frame is time 0.
        spacing: Of the meshes, Å.

    Returns:
        The times that have a true frame (ps), their meshes, and notices.

    Raises:
        InputError: The truth is another protein, or has no frame at any of the times.
    """
    told = _told(moving, truth)
    frames = told.posed(told.frames)
    lattice = _lattice_around(moving, frames, spacing)
    meshes = [
        exact_solid(surface_of(frames.frame(index), moving.probe), lattice).mesh
        for index in range(len(frames))
    ]
    return told.times_ps, [coloured(mesh, moving) for mesh in meshes], told.notices


def _lattice_around(moving: MovingSurface, frames: Trajectory, spacing: float) -> Lattice:
    everything = torch.cat([frames.positions.reshape(-1, 3), moving.structure.positions.double()])
    return Lattice.covering(
        everything.amin(dim=0) - MARGIN, everything.amax(dim=0) + MARGIN, spacing
    )


@dataclass(frozen=True, eq=False)
class _Told:
    """What the truth tells of a forecast.

    Attributes:
        moving: The forecast.
        truth: All frames.
        times_ps: The forecast times that have a true frame.
        frames: Which frame each of them has.
        notices: Of the truth, and how many times have none.
    """

    moving: MovingSurface
    truth: Trajectory
    times_ps: tuple[float, ...]
    frames: tuple[int, ...]
    notices: tuple[Notice, ...]

    def posed(self, frames: Sequence[int]) -> Trajectory:
        """Return some frames in the forecast's pose."""
        positions = self.truth.positions[list(frames)].double()
        structure = self.moving.structure
        rotation, translation = superposition(
            positions[:, self.truth.structure.alpha_carbons],
            structure.positions.double()[structure.alpha_carbons],
        )
        posed = positions @ rotation.mT + translation.unsqueeze(-2)
        # Two forecast times may share a frame, so the frames are told apart by their place alone.
        places = torch.arange(len(frames), dtype=torch.float64)
        return replace(self.truth, positions=posed, times_ps=places)


def _told(moving: MovingSurface, truth: Trajectory) -> _Told:
    """Return the forecast times that have a true frame, and which frames those are."""
    if sequence(truth.structure) != sequence(moving.structure):
        raise InputError(
            f"the truth is another protein: {len(sequence(truth.structure))} residues, the "
            f"forecast {moving.structure.name} has {len(sequence(moving.structure))}, or another "
            "sequence"
        )
    truth = aligned(truth)
    lags = truth.times_ps.double()
    tolerance = float(lags.diff().min()) / 2 if len(lags) > 1 else 0.5
    times_ps, frames = [], []
    for time in moving.times_ps:
        frame = int((lags - time).abs().argmin())
        if abs(float(lags[frame]) - time) <= tolerance * (1 + 1e-6):
            times_ps.append(time)
            frames.append(frame)
    if not frames:
        raise InputError(
            f"the truth ends at {float(lags[-1]):g} ps and has no frame at any forecast time "
            f"({moving.times_ps[0]:g} to {moving.times_ps[-1]:g} ps)"
        )
    notices = truth.notices
    missing = len(moving.times_ps) - len(frames)
    if missing:
        notices += (
            Notice(
                code="no-true-frame",
                message=f"{missing} forecast times have no true frame and are not scored",
                count=missing,
            ),
        )
    return _Told(moving, truth, tuple(times_ps), tuple(frames), notices)
