"""Scoring a moving surface against what happened, beside the trivial forecasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from undula.data.prepare import aligned, surface_of
from undula.errors import InputError, Notice, UsageError
from undula.geometry.comparison import Solid, compare_surfaces
from undula.geometry.frames import superposition
from undula.geometry.lattice import Lattice
from undula.geometry.solids import exact_solid, lattice_solid
from undula.surface.baselines import best_ellipsoid, blurred, occupancy
from undula.surface.forecast import MovingSurface, coloured
from undula.surface.model import System, sequence
from undula.surface.sample_scores import sample_scores
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
        seed: Of those points.
    """

    spacing: float = 0.7
    samples: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.spacing > 0 or self.samples < 1:
            raise UsageError("spacing should be positive and samples at least 1")


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecaster:
    """One row of the table: a model or a trivial forecast.

    Attributes:
        name: Of the row.
        kind: Whether it is a model or something a model must beat.
        solid: What it forecasts for a time in ps.
    """

    name: str
    kind: Literal["model", "trivial"]
    solid: Callable[[float], Solid]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Scores of a forecast and of the trivial forecasts, frame by frame.

    Attributes:
        times_ps: Of the frames that were compared.
        scores: Row name → measure → one number per frame (`compare_surfaces` names them).
        kinds: Row name → model or trivial.
        truth: True meshes in the forecast's pose, coloured by displacement.
        forecast: Forecast meshes at the same times.
        notices: Times without a true frame, and what the truth's reader said.
        samples: The samples as a distribution, if the forecast has any and a later frame.
    """

    times_ps: tuple[float, ...]
    scores: Mapping[str, Mapping[str, list[float]]]
    kinds: Mapping[str, Literal["model", "trivial"]]
    truth: list[Mesh]
    forecast: list[Mesh]
    notices: tuple[Notice, ...]
    samples: SampleScores | None = None


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
    times_ps, frames, notices = _true_frames(moving, truth)
    lattice = _lattice_around(moving, frames, config.spacing)
    rows = forecasters(moving, lattice)
    system = System.of(moving.structure)
    scores: dict[str, dict[str, list[float]]] = {row.name: {} for row in rows}
    true_meshes, forecast_meshes = [], []
    for index, time in enumerate(times_ps):
        true = exact_solid(surface_of(frames.frame(index), moving.probe), lattice)
        true_meshes.append(coloured(true.mesh, moving))
        for row in rows:
            solid = row.solid(time)
            if row.kind == "model":
                forecast_meshes.append(coloured(solid.mesh, moving))
            measured = compare_surfaces(
                solid,
                true,
                centre=system.centre,
                scale=system.scale,
                generator=torch.Generator().manual_seed(config.seed),
                samples=config.samples,
                spacing=config.spacing,
            )
            for name, value in measured.items():
                scores[row.name].setdefault(name, []).append(value)
    return Evaluation(
        times_ps=times_ps,
        scores=scores,
        kinds={row.name: row.kind for row in rows},
        truth=true_meshes,
        forecast=forecast_meshes,
        notices=notices,
        samples=sample_scores(moving, times_ps, frames, lattice, config.seed),
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
    times_ps, frames, notices = _true_frames(moving, truth)
    lattice = _lattice_around(moving, frames, spacing)
    meshes = [
        exact_solid(surface_of(frames.frame(index), moving.probe), lattice).mesh
        for index in range(len(frames))
    ]
    return times_ps, [coloured(mesh, moving) for mesh in meshes], notices


def forecasters(moving: MovingSurface, lattice: Lattice) -> list[Forecaster]:
    """Return the model and the trivial forecasts that stand beside it.

    *copied first frame*: the exact surface the forecast starts from. *blurred first frame*:
    with σ and cut fitted on the model's training frames. *best ellipsoid*: fitted on the first
    frame. *averaged training frames*: the majority shape of the frames that trained the
    model, which is trivial for a protein that was trained on.

    Args:
        moving: The forecast.
        lattice: Where the trivial surfaces are laid down.
    """
    first = moving.first_surface
    inside = occupancy(first, lattice)
    trained = moving.trained
    still = {
        "blurred first frame": blurred(inside, lattice, trained.blur),
        "best ellipsoid": best_ellipsoid(inside, lattice),
        **moving.posed.still(lattice),
    }
    model = Forecaster(
        name="model", kind="model", solid=lambda time: _forecast_solid(moving, lattice, time)
    )
    return [
        model,
        _still("copied first frame", exact_solid(first, lattice)),
        *(
            _still(name, lattice_solid(values.to(lattice.origin), lattice, lipschitz=None))
            for name, values in still.items()
        ),
    ]


def _still(name: str, solid: Solid) -> Forecaster:
    return Forecaster(name=name, kind="trivial", solid=lambda _: solid)


def _forecast_solid(moving: MovingSurface, lattice: Lattice, time: float) -> Solid:
    found = moving.level_set(time, lattice=lattice)
    return lattice_solid(found.values, lattice, lipschitz=None, mesh=found.mesh)


def _lattice_around(moving: MovingSurface, frames: Trajectory, spacing: float) -> Lattice:
    everything = torch.cat([frames.positions.reshape(-1, 3), moving.structure.positions.double()])
    return Lattice.covering(
        everything.amin(dim=0) - MARGIN, everything.amax(dim=0) + MARGIN, spacing
    )


def _true_frames(
    moving: MovingSurface, truth: Trajectory
) -> tuple[tuple[float, ...], Trajectory, tuple[Notice, ...]]:
    """Return the forecast times that have a true frame, and those frames in the forecast's pose."""
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
    positions = truth.positions[frames].double()
    rotation, translation = superposition(
        positions[:, truth.structure.alpha_carbons],
        moving.structure.positions.double()[moving.structure.alpha_carbons],
    )
    posed = positions @ rotation.mT + translation.unsqueeze(-2)
    # Two forecast times may share a frame, so the frames are told apart by their place alone.
    places = torch.arange(len(frames), dtype=torch.float64)
    return tuple(times_ps), replace(truth, positions=posed, times_ps=places), notices
