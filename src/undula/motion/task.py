"""What the training loop sees of DoMiNO: windows drawn from recordings, the loss, the measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undula.errors import InputError, UsageError
from undula.io.recordings import Recording, Recordings
from undula.learn.task import ParameterGroup, moved
from undula.motion.climatology import (
    Climatology,
    ClimatologyConfig,
    Example,
    fit_climatology,
    knot_frames,
)
from undula.motion.dressing import Dressing, dressing_starts, fitted_dressing
from undula.motion.encoder import Observation
from undula.motion.hierarchy import Hierarchy
from undula.motion.linear import linear_base
from undula.motion.losses import MotionLossConfig, Truth, motion_loss, surprise
from undula.motion.model import (
    Base,
    DoMiNO,
    MotionModelConfig,
    Plan,
    Prediction,
    planned,
)
from undula.motion.observation import fitted_usual, observation
from undula.motion.recalibration import Recalibration, fitted_recalibration
from undula.motion.surroundings import bond_table
from undula.motion.windows import Window

FARTHEST_APART = 20
"""Frames: starts of training and validation lie a finest segment apart, but no farther than this,
so that a model with fewer levels is trained on the same windows."""


RECALIBRATED, RECALIBRATED_ATOMS = 8, 2000
"""A trained forecast is recalibrated on so many validation windows of each recording, more of small
systems: as many as have so many atoms together."""
RECALIBRATED_TOGETHER = 512
"""Atoms of the windows that are forecast together for it."""
BLOCKS = 4
"""Of fewer than three recordings, parts of each are the groups by whose scatter a recalibration is
judged."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which windows of the recordings are used, and what a step sees.

    Attributes:
        observed: Frames in a window; the last of them is now.
        windows: Windows in a step.
        near: Times in a step within the first segment of the finest level, where most can be
            known; closer ones are likelier.
        segments: Further segments of the finest level in a step, anywhere in the horizon, closer
            ones likelier (selective sampling).
        times: Times in each of those.
        hidden: Share of windows whose velocities are hidden, so that the model serves windows
            that have none.
        validation: Last part of the starts of each training recording that is kept for
            validation.
        validation_windows: Windows of each recording that are scored in validation.
        fitted_windows: Windows of each recording on which the linear forecast is fitted.
        dressing: Windows of each recording whose errors dress samples of an aligned molecule.
    """

    observed: int = 1025
    windows: int = 1
    near: int = 8
    segments: int = 2
    times: int = 3
    hidden: float = 0.25
    validation: float = 0.2
    validation_windows: int = 2
    fitted_windows: int = 40
    dressing: int = 128

    def __post_init__(self) -> None:
        at_least = {"observed": 1, "windows": 1, "near": 1, "segments": 0, "times": 1}
        at_least |= {"validation_windows": 1, "fitted_windows": 1, "dressing": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UsageError(
                    f"batch.{name} must be at least {least}, not {getattr(self, name)}"
                )
        if not 0 <= self.hidden <= 1:
            raise UsageError(f"batch.hidden must be from 0 to 1, not {self.hidden}")
        if not 0 < self.validation < 1:
            raise UsageError(f"batch.validation must be between 0 and 1, not {self.validation}")


@dataclass(frozen=True, eq=False)
class Starts:
    """Where windows of one recording may end.

    Attributes:
        recording: The recording.
        training: First and last frame that may be "now" in training.
        validation: The same in validation.
        barred: First frame, and frame after the last, that no training target may lie in.
    """

    recording: Recording
    training: tuple[int, int]
    validation: tuple[int, int]
    barred: tuple[int, int]


def divided(recording: Recording, config: WindowConfig, hierarchy: Hierarchy) -> Starts:
    """Divide the starts of a recording into training and, later, validation.

    Windows start where they have all their frames, velocities if the recording has any, and at
    least one segment of the finest level ahead, or `FARTHEST_APART` frames of a longer one. As
    many frames lie between the two parts, and no training target lies in the frames that the
    validation is about.

    Raises:
        InputError: The recording is too short.
    """
    first = config.observed - 1
    segment = min(hierarchy.lengths[-1], FARTHEST_APART)
    last = len(recording) - 1 - segment
    if recording.velocity_frames:
        last = min(last, recording.velocity_frames - 1)
    cut = last - int((last - first + 1) * config.validation)
    if cut - segment < first or cut >= last:
        raise InputError(
            f"{recording.name}: {len(recording)} frames, {recording.velocity_frames} with "
            f"velocities, are too few for windows of {config.observed} frames and segments of "
            f"{segment}; lower batch.observed"
        )
    return Starts(recording, (first, cut - segment), (cut + 1, last), (cut + 1, last + segment + 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class MotionBatch:
    """Windows and what came after them.

    Attributes:
        seen: For the encoder.
        plan: Times and segments.
        base: The linear forecast at the lags of the plan.
        truth: At the times of the plan.
    """

    seen: Observation
    plan: Plan
    base: Base
    truth: Truth


class MotionTask:
    """Train DoMiNO on recordings of one system.

    Args:
        recordings: Training recordings, all of one folder; the last part of each validates.
        model: Sizes and choices.
        loss: Weights.
        batch: Windows.
        seed: Of the weights.
    """

    def __init__(
        self,
        recordings: Recordings,
        names: Sequence[str],
        model: MotionModelConfig,
        loss: MotionLossConfig,
        batch: WindowConfig,
        *,
        seed: int = 0,
    ) -> None:
        self.source, self.loss_config, self.batch_config = recordings, loss, batch
        hierarchy = Hierarchy(horizon=model.levels.horizon, strides=model.levels.strides)
        self.parts = [divided(recordings.named(name), batch, hierarchy) for name in names]
        if not self.parts:
            raise UsageError("a training needs at least one recording")
        self.ages = model.encoder.ages(batch.observed)
        self.climatology = self._fitted(hierarchy)
        self.kinds = self.climatology.kind_of_atoms(recordings.system)
        windows = (window for window, _ in self._fitting_windows(hierarchy))
        self.usual = fitted_usual(windows, self.kinds, len(self.climatology.kinds), self.ages[1:])
        self.bonds = bond_table(recordings.system) if model.encoder.bonds else None
        self.model = DoMiNO(model, len(self.climatology.kinds), seed)
        self._checks: list[MotionBatch] | None = None

    def dressing(self, recalibration: Recalibration) -> Dressing | None:
        """Collect errors for samples of an aligned molecule; none for anything else.

        Args:
            recalibration: Draws the linear forecast to the mean structure, as it does the model's.
        """
        reference = self.source.reference
        if reference is None or not self.batch_config.dressing:
            return None
        errors = []
        for part in self.parts:
            starts = dressing_starts(
                part.training[0],
                len(part.recording),
                self.climatology.knots,
                self.batch_config.dressing,
            )
            errors.append(
                fitted_dressing(
                    partial(self._window, part.recording),
                    partial(_frame, part.recording),
                    starts,
                    self.climatology,
                    lambda mean: recalibration.pulled(mean, reference),
                )
            )
        return Dressing(knots=self.climatology.knots, errors=torch.cat(errors, dim=1).float())

    @property
    def module(self) -> nn.Module:
        """Return the network."""
        return self.model

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters as one group."""
        return [ParameterGroup(name="network", parameters=list(self.model.parameters()))]

    def batch(self, step: int, generator: torch.Generator) -> MotionBatch:
        """Draw windows, and times after them."""
        del step
        config = self.batch_config
        pairs = []
        for _ in range(config.windows):
            part = self.parts[_drawn(len(self.parts), generator)]
            first, last = part.training
            pairs.append((part, first + _drawn(last - first + 1, generator)))
        hidden = float(torch.rand((), generator=generator)) < config.hidden
        reach = min(len(part.recording) - 1 - now for part, now in pairs)
        lags = self._drawn_lags(min(reach, self.model.hierarchy.horizon), generator)
        return self._gathered(pairs, lags, hidden=hidden, barred=True)

    def loss(self, batch: MotionBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a step."""
        outcome = self.model(batch.seen, batch.plan, batch.base, self.bonds, drawn=True)
        times = len(batch.plan.lags)
        base = batch.base.part(len(batch.base.mean) - times, times)
        return motion_loss(outcome, base, batch.truth, self.loss_config, step)

    def evaluate(self) -> dict[str, float]:
        """Score validation windows: surprise, and skill over the linear forecast by lag."""
        device = next(self.model.parameters()).device
        if self._checks is None:
            self._checks = list(self._validation_batches())
        totals: dict[str, list[Tensor]] = {}
        for batch in self._checks:
            batch = moved(batch, device)
            outcome = self.model(batch.seen, batch.plan, batch.base, self.bonds, drawn=False)
            times = len(batch.plan.lags)
            base = batch.base.part(len(batch.base.mean) - times, times)
            for level, prediction in enumerate(outcome.predictions):
                improbable = surprise(prediction, base, batch.truth)
                totals.setdefault(f"surprise_{level}", []).append(improbable)
            final = outcome.predictions[-1]
            totals.setdefault("error", []).append(_mean_square(batch.truth, final.mean))
            totals.setdefault("linear", []).append(_mean_square(batch.truth, base.mean))
        lags = self._checks[0].plan.lags.to(device)
        sums = {name: torch.cat(some, dim=1).mean(dim=1) for name, some in totals.items()}
        levels = self.model.hierarchy.levels
        measures = {
            f"surprise_{n}": float(sums[f"surprise_{n}"].detach().mean()) for n in range(levels)
        }
        measures["surprise"] = measures[f"surprise_{levels - 1}"]
        for name, low, high in (("near", 2, 10), ("middle", 11, 100), ("far", 101, 10**9)):
            chosen = (lags >= low) & (lags <= high)
            if chosen.any():
                part = sums["error"][chosen] / sums["linear"][chosen]
                measures[f"skill_{name}"] = 1 - float(part.detach().mean())
        return measures

    def recalibration(self) -> Recalibration:
        """Fit on validation windows how much of the deviation to believe, and the spread."""
        device = next(self.model.parameters()).device
        knots = self.climatology.knots
        lags = torch.tensor(knots, dtype=torch.float32)

        count = max(RECALIBRATED, -(-RECALIBRATED_ATOMS // len(self.source.system)))
        blocks = 1 if len(self.parts) > 2 else BLOCKS

        together = max(1, RECALIBRATED_TOGETHER // len(self.source.system))

        def cases() -> Iterator[tuple[int, Sequence[Prediction], Base, Truth]]:
            for number, part in enumerate(self.parts):
                first, last = part.validation
                starts = torch.linspace(first, last, count).round().long()
                for block, some in enumerate(starts.chunk(blocks)):
                    for few in some.split(together):
                        pairs = [(part, now) for now in few.tolist()]
                        batch = self._gathered(pairs, lags, hidden=False, barred=False)
                        batch = moved(batch, device)
                        with torch.no_grad():
                            outcome = self.model(
                                batch.seen, batch.plan, batch.base, self.bonds, drawn=False
                            )
                        base = batch.base.part(len(batch.base.mean) - len(knots), len(knots))
                        yield number * blocks + block, outcome.predictions, base, batch.truth

        return fitted_recalibration(cases(), knots, self.source.reference)

    def _drawn_lags(self, reach: int, generator: torch.Generator) -> Float[Tensor, " times"]:
        """Draw whole frames: some in the first finest segment, some in a few others."""
        config, length = self.batch_config, self.model.hierarchy.lengths[-1]
        # The frame at which a segment ends belongs to the next one, which would cost a solve.
        near = min(length - 1, reach)
        lags = {_early(near, generator) for _ in range(config.near)}
        if reach > length:
            for _ in range(config.segments):
                start = _early(reach, generator) // length * length
                room = min(length, reach + 1 - start)
                lags |= {max(1, start + _drawn(room, generator)) for _ in range(config.times)}
        return torch.tensor(sorted(lags), dtype=torch.float32)

    def _gathered(
        self,
        pairs: Sequence[tuple[Starts, int]],
        lags: Float[Tensor, " times"],
        *,
        hidden: bool,
        barred: bool,
    ) -> MotionBatch:
        """Read windows and their futures, and compute the linear forecast."""
        windows = [self._window(part.recording, now, hidden=hidden) for part, now in pairs]
        plan = planned(self.model.hierarchy, lags)
        return MotionBatch(
            seen=observation(windows, self.kinds, self.usual, self.ages),
            plan=plan,
            base=linear_base(windows, plan.all_lags, self.climatology, self.usual, self.kinds),
            truth=_truth(pairs, lags.long(), barred=barred),
        )

    def _window(self, recording: Recording, now: int, *, hidden: bool = False) -> Window:
        observed = self.batch_config.observed
        positions, velocities, box = recording.slice(now + 1 - observed, now + 1)
        return Window(
            system=self.source.system,
            positions=positions,
            velocities=None if hidden else velocities,
            box=box,
            frame_ps=self.source.frame_ps,
        )

    def _validation_batches(self) -> Iterator[MotionBatch]:
        """Return the same few windows each time, at lags spread evenly on a logarithmic axis."""
        horizon = self.model.hierarchy.horizon
        for part in self.parts:
            first, last = part.validation
            count = self.batch_config.validation_windows
            reach = min(horizon, min(len(p.recording) - 1 - p.validation[1] for p in self.parts))
            lags = torch.tensor(_scored_lags(reach, self.model.hierarchy), dtype=torch.float32)
            for now in torch.linspace(first, last, count).round().long().tolist():
                yield self._gathered([(part, now)], lags, hidden=False, barred=False)

    def _fitting_windows(self, hierarchy: Hierarchy) -> Iterator[tuple[Window, Tensor]]:
        """Return training windows evenly spread, with their futures at the knots."""
        knots = torch.tensor(knot_frames(hierarchy.horizon))
        for part in self.parts:
            first, last = part.training
            last = min(last, len(part.recording) - 1 - hierarchy.horizon)
            if last < first:
                raise InputError(
                    f"{part.recording.name}: {len(part.recording)} frames are too few for windows "
                    f"of {self.batch_config.observed} and a horizon of {hierarchy.horizon}; lower "
                    "levels.horizon"
                )
            count = min(self.batch_config.fitted_windows, last - first + 1)
            for now in torch.linspace(first, last, count).round().long().tolist():
                future = torch.from_numpy(part.recording.positions[(now + knots).numpy()])
                yield self._window(part.recording, now), future

    def _fitted(self, hierarchy: Hierarchy) -> Climatology:
        examples = (
            Example(window=window, future=future)
            for window, future in self._fitting_windows(hierarchy)
        )
        return fit_climatology(examples, knot_frames(hierarchy.horizon), ClimatologyConfig())


def _truth(
    pairs: Sequence[tuple[Starts, int]], lags: Int[Tensor, " times"], *, barred: bool
) -> Truth:
    """Read what came after windows; targets in a barred block are marked as not known."""
    positions, velocities, known, moving = [], [], [], []
    for part, now in pairs:
        frames = now + lags
        there = frames < len(part.recording)
        with_velocities = frames < part.recording.velocity_frames
        if barred:
            free = (frames < part.barred[0]) | (frames >= part.barred[1])
            there, with_velocities = there & free, with_velocities & free
        rows = frames.clamp(max=len(part.recording) - 1).numpy()
        positions.append(torch.from_numpy(part.recording.positions[rows]))
        speeds = torch.zeros_like(positions[-1])
        if part.recording.velocities is not None and with_velocities.any():
            chosen = frames[with_velocities].numpy()
            speeds[with_velocities] = torch.from_numpy(part.recording.velocities[chosen])
        velocities.append(speeds)
        known.append(there)
        moving.append(with_velocities)
    return Truth(
        positions=torch.stack(positions, dim=1),
        known=torch.stack(known, dim=1),
        velocities=torch.stack(velocities, dim=1),
        velocities_known=torch.stack(moving, dim=1),
    )


def _frame(recording: Recording, frame: int) -> Float[Tensor, "atoms 3"]:
    """Read the positions of one frame, Å."""
    return torch.from_numpy(np.array(recording.positions[frame]))


def _mean_square(
    truth: Truth, mean: Float[Tensor, "times windows atoms 3"]
) -> Float[Tensor, "times windows"]:
    return (truth.positions - mean).square().mean(dim=(-1, -2))


def _scored_lags(reach: int, hierarchy: Hierarchy) -> list[int]:
    """Choose lags to validate at: many within the first finest segment, few beyond it."""
    near = min(hierarchy.lengths[-1], reach)
    return sorted({*knot_frames(near), *(lag for lag in knot_frames(reach, 2) if lag > near)})


def _drawn(count: int, generator: torch.Generator) -> int:
    """Draw a whole number below a count."""
    return int(torch.randint(count, (), generator=generator))


def _early(reach: int, generator: torch.Generator) -> int:
    """Draw a whole number from 1 to a reach, evenly in the logarithm."""
    place = float(torch.rand((), generator=generator))
    return min(reach, max(1, round(exp(place * log(reach + 0.5)))))
