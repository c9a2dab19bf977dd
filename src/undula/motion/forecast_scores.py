"""A forecast of atoms against what really happened, beside what anybody could have said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from undula.data.observed import nearest_images
from undula.errors import InputError, Notice
from undula.geometry.frames import superposition
from undula.motion.forecast import MovingAtoms
from undula.motion.scores import crps_normal, crps_samples
from undula.motion.windows import AtomForecast
from undula.types import Trajectory

SAME_FRAME = 0.1
"""Å: how far the truth may be from the last observed frame at that time, for rounding in files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomEvaluation:
    """Scores of a forecast and of the trivial ones at the times that have a true frame.

    Attributes:
        lags_ps: Times after now, ps.
        rows: Their places among the times of the forecast.
        truth: What happened, unwrapped and in the forecast's pose, Å.
        scores: By forecaster and measure one number a time, Å: ``error`` (root mean square along
            an axis) and ``crps`` (continuous ranked probability score along an axis; of a
            forecast without a distribution its mean absolute error).
        kinds: By forecaster: model or trivial.
        samples_crps: The second measure of the model's samples, not of the normal distribution
            around its mean; none for fewer than two samples.
        notices: What could not be scored.
    """

    lags_ps: tuple[float, ...]
    rows: tuple[int, ...]
    truth: Float[Tensor, "scored atoms 3"]
    scores: Mapping[str, Mapping[str, list[float]]]
    kinds: Mapping[str, Literal["model", "trivial"]]
    samples_crps: list[float] | None
    notices: tuple[Notice, ...]


def evaluate_atoms(moving: MovingAtoms, truth: Trajectory) -> AtomEvaluation:
    """Score a forecast at its times against a trajectory on the clock of the observed one.

    Args:
        moving: The forecast.
        truth: The same atoms; the observed trajectory itself, longer, or what followed on it.

    Returns:
        The scores; now itself, where all is known, is not scored.

    Raises:
        InputError: Other atoms, no frame at any of the times, or a truth that is somewhere else
            at the time of the last observed frame.
    """
    rows, positions, notices = true_positions(moving, truth)
    chosen = torch.tensor(rows)
    scores: dict[str, dict[str, list[float]]] = {}
    kinds: dict[str, Literal["model", "trivial"]] = {moving.model: "model"}
    scores[moving.model] = _scores(moving.expected, chosen, positions)
    samples = None
    if len(moving.samples) > 1:
        drawn = moving.samples[:, chosen].to(positions)
        samples = crps_samples(drawn, positions).mean(dim=(-1, -2)).tolist()
    for name, forecast in moving.trivial.items():
        scores[name], kinds[name] = _scores(forecast, chosen, positions), "trivial"
    return AtomEvaluation(
        lags_ps=tuple(moving.lags_ps[row] for row in rows),
        rows=tuple(rows),
        truth=positions,
        scores=scores,
        kinds=kinds,
        samples_crps=samples,
        notices=notices,
    )


def true_positions(
    moving: MovingAtoms, truth: Trajectory
) -> tuple[list[int], Float[Tensor, "scored atoms 3"], tuple[Notice, ...]]:
    """Find the true frames of a forecast's times, unwrapped from now on and in its pose.

    Args:
        moving: The forecast.
        truth: The same atoms on the clock of the observed trajectory.

    Returns:
        Places among the forecast's times after now; positions in float64, Å; notices.

    Raises:
        InputError: See `evaluate_atoms`.
    """
    _check_atoms(moving, truth)
    later, notices = _later(moving, truth)
    positions = _unwrapped(moving, later)
    times = later.times_ps.double() - moving.now_ps
    tolerance = _tolerance(later.times_ps)
    if abs(float(times[0])) <= tolerance:
        away = float((positions[0] - moving.now.to(positions)).norm(dim=-1).max())
        if away > SAME_FRAME:
            raise InputError(
                f"{truth.structure.name}: the truth is not what was observed: at "
                f"{moving.now_ps:g} ps an atom is {away:.2g} Å from where the window left it"
            )
    else:
        gap = float(times[0])
        message = (
            f"the truth begins {gap:g} ps after the last observed frame; whether it goes on from "
            "there could not be checked"
        )
        notices.append(Notice(code="truth-begins-later", message=message))
    rows, frames = [], []
    for row, lag in enumerate(moving.lags_ps):
        frame = int((times - lag).abs().argmin())
        if lag > 0 and abs(float(times[frame]) - lag) <= tolerance:
            rows.append(row)
            frames.append(frame)
    if not rows:
        raise InputError(
            f"{truth.structure.name}: the truth has no frame at any time of the forecast, "
            f"{moving.times_ps[0]:g} to {moving.times_ps[-1]:g} ps"
        )
    missing = sum(lag > 0 for lag in moving.lags_ps) - len(rows)
    if missing:
        message = f"{missing} times of the forecast have no true frame and are not scored"
        notices.append(Notice(code="no-true-frame", message=message, count=missing))
    return rows, positions[frames], tuple(notices)


def _check_atoms(moving: MovingAtoms, truth: Trajectory) -> None:
    ours, theirs = moving.system.structure, truth.structure
    if len(ours) != len(theirs) or (ours.elements != theirs.elements).any():
        raise InputError(
            f"{theirs.name}: the truth has {len(theirs)} atoms, the forecast of {ours.name} "
            f"{len(ours)}, or they are in another order"
        )


def _later(moving: MovingAtoms, truth: Trajectory) -> tuple[Trajectory, list[Notice]]:
    """Return the frames from now on."""
    from_now = truth.times_ps >= moving.now_ps - _tolerance(truth.times_ps)
    if not from_now.any():
        raise InputError(
            f"{truth.structure.name}: the truth ends at {float(truth.times_ps[-1]):g} ps, the "
            f"last observed frame is at {moving.now_ps:g} ps; both should be on one clock"
        )
    first = int(from_now.nonzero()[0])
    return truth.frames(slice(first, None)), list(truth.notices)


def _tolerance(times_ps: Float[Tensor, " frames"]) -> float:
    """Return how far apart times may be that are meant to be the same: files round them."""
    return float(times_ps.diff().min()) / 4 if len(times_ps) > 1 else 1e-3


def _unwrapped(moving: MovingAtoms, later: Trajectory) -> Float[Tensor, "frames atoms 3"]:
    positions = later.positions.double()
    if later.box is not None and moving.box is not None:
        positions = nearest_images(
            positions, later.box.double(), moving.system, moving.now.double()
        )
    if moving.reference is None:
        return positions
    reference, masses = moving.reference.double(), moving.system.masses.double()
    turn, shift = superposition(positions, reference, masses)
    return positions @ turn.mT + shift.unsqueeze(-2)


def _scores(
    forecast: AtomForecast, rows: Tensor, truth: Float[Tensor, "scored atoms 3"]
) -> dict[str, list[float]]:
    mean = forecast.mean[rows].to(truth)
    if forecast.spread is None:
        probability = (mean - truth).abs()
    else:
        spread = forecast.spread[rows].to(truth)[..., None].expand_as(truth)
        probability = crps_normal(mean, spread, truth)
    return {"error": _root(mean - truth), "crps": probability.mean(dim=(-1, -2)).tolist()}


def _root(error: Float[Tensor, "scored atoms 3"]) -> list[float]:
    return error.square().mean(dim=(-1, -2)).sqrt().tolist()
