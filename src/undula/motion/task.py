"""What the training loop sees of DoMiNO: windows drawn from recordings, the loss, the measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from undula.io.recordings import Recording, Recordings
from undula.learn.task import ParameterGroup, moved
from undula.motion.climatology import knot_frames
from undula.motion.climatology_fit import fit_climatology
from undula.motion.drawing import Drawing, Drawn, WindowConfig, skills
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
from undula.motion.predictors import ClimatologyConfig
from undula.motion.recalibration import Recalibration, fitted_recalibration
from undula.motion.surroundings import bond_table

RECALIBRATED, RECALIBRATED_ATOMS = 8, 2000
"""A trained forecast is recalibrated on so many validation windows of each recording, more of small
systems: as many as have so many atoms together."""
RECALIBRATED_TOGETHER = 512
"""Atoms of the windows that are forecast together for it."""
BLOCKS = 4
"""Of fewer than three recordings, parts of each are the groups by whose scatter a recalibration is
judged."""


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
        self.drawing = Drawing(recordings, names, batch, hierarchy)
        self.ages = model.encoder.ages(batch.observed)
        knots = knot_frames(hierarchy.horizon)
        self.climatology = fit_climatology(self.drawing.fitting(knots), knots, ClimatologyConfig())
        self.kinds = self.climatology.kind_of_atoms(recordings.system)
        windows = (example.window for example in self.drawing.fitting(knots))
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
        for part in self.drawing.parts:
            starts = dressing_starts(
                part.training[0],
                len(part.recording),
                self.climatology.knots,
                self.batch_config.dressing,
            )
            errors.append(
                fitted_dressing(
                    partial(self.drawing.window, part.recording),
                    partial(_frame, part.recording),
                    starts,
                    self.climatology,
                    lambda mean: recalibration.pulled(mean, reference, self.climatology.knots),
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
        return self._prepared(self.drawing.drawn(generator))

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
            self._checks = [self._prepared(drawn) for drawn in self.drawing.validated()]
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
        return measures | dict(skills(lags, sums["error"], sums["linear"]))

    def recalibration(self) -> Recalibration:
        """Fit on validation windows how much of the deviation to believe, and the spread."""
        device = next(self.model.parameters()).device
        knots = sorted({*self.climatology.knots, *self.model.hierarchy.seams})
        lags = torch.tensor(knots, dtype=torch.float32)
        count = max(RECALIBRATED, -(-RECALIBRATED_ATOMS // len(self.source.system)))
        blocks = 1 if len(self.drawing.parts) > 2 else BLOCKS
        together = max(1, RECALIBRATED_TOGETHER // len(self.source.system))

        def cases() -> Iterator[tuple[int, Sequence[Prediction], Base, Truth]]:
            for number, part in enumerate(self.drawing.parts):
                first, last = part.validation
                starts = torch.linspace(first, last, count).round().long()
                for block, some in enumerate(starts.chunk(blocks)):
                    for few in some.split(together):
                        places = [(part, now) for now in few.tolist()]
                        drawn = self.drawing.cut(places, lags, hidden=False, barred=False)
                        batch = moved(self._prepared(drawn), device)
                        with torch.no_grad():
                            outcome = self.model(
                                batch.seen, batch.plan, batch.base, self.bonds, drawn=False
                            )
                        base = batch.base.part(len(batch.base.mean) - len(knots), len(knots))
                        yield number * blocks + block, outcome.predictions, base, batch.truth

        return fitted_recalibration(cases(), knots, self.source.reference)

    def _prepared(self, drawn: Drawn) -> MotionBatch:
        """Add what the network takes, and the linear forecast."""
        plan = planned(self.model.hierarchy, drawn.lags)
        return MotionBatch(
            seen=observation(drawn.windows, self.kinds, self.usual, self.ages),
            plan=plan,
            base=linear_base(
                drawn.windows, plan.all_lags, self.climatology, self.usual, self.kinds
            ),
            truth=drawn.truth,
        )


def _frame(recording: Recording, frame: int) -> Float[Tensor, "atoms 3"]:
    """Read the positions of one frame, Å."""
    return torch.from_numpy(np.array(recording.positions[frame]))


def _mean_square(
    truth: Truth, mean: Float[Tensor, "times windows atoms 3"]
) -> Float[Tensor, "times windows"]:
    return (truth.positions - mean).square().mean(dim=(-1, -2))
