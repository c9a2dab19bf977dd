"""Train DoMiNO on recordings and leave a forecaster behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import undula
from undula.io.recordings import Recordings
from undula.learn.fit import FitConfig, fit
from undula.learn.progress import Progress
from undula.motion.drawing import WindowConfig
from undula.motion.losses import MotionLossConfig
from undula.motion.model import MotionModelConfig
from undula.motion.task import MotionTask
from undula.motion.trained import TrainedMotion
from undula.notices import write_report


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """A training of DoMiNO, which forecasts the atoms of one system.

    Attributes:
        model: Sizes and choices of the model.
        loss: Weights of the losses.
        batch: What a step sees.
        recordings: Names of the recordings to train on, of which the last part validates; all of
            the folder if there are none.
    """

    model: MotionModelConfig = field(default_factory=MotionModelConfig)
    loss: MotionLossConfig = field(default_factory=MotionLossConfig)
    batch: WindowConfig = field(default_factory=WindowConfig)
    recordings: list[str] = field(default_factory=list)

    @property
    def horizon(self) -> int:
        """How far it forecasts, frames."""
        return self.model.levels.horizon

    def first_levels(self, count: int) -> MotionConfig:
        """Return the same with only some of the coarsest levels."""
        levels = self.model.levels
        kept = replace(levels, strides=levels.strides[:count])
        return replace(self, model=replace(self.model, levels=kept))

    def with_features(self, features: int) -> MotionConfig:
        """Return the same with another width of the network."""
        encoder = replace(self.model.encoder, features=features)
        return replace(self, model=replace(self.model, encoder=encoder))


def train_domino(
    recordings: Recordings,
    out: Path,
    *,
    settings: MotionConfig,
    fit_config: FitConfig,
    progress: Progress,
) -> TrainedMotion:
    """Train DoMiNO by its settings: `train_motion`."""
    return train_motion(
        recordings,
        out,
        names=settings.recordings,
        model=settings.model,
        loss=settings.loss,
        batch=settings.batch,
        fit_config=fit_config,
        progress=progress,
    )


def train_motion(
    recordings: Recordings,
    out: Path,
    *,
    names: Sequence[str],
    model: MotionModelConfig,
    loss: MotionLossConfig,
    batch: WindowConfig,
    fit_config: FitConfig,
    progress: Progress,
) -> TrainedMotion:
    """Train DoMiNO and write it, with the linear forecast it builds on, into its run folder.

    Args:
        recordings: Of one system.
        out: The run folder; a run that was stopped goes on.
        names: Recordings to train on, of which the last part validates; all if there are none.
        model: Sizes and choices.
        loss: Weights of the losses.
        batch: What a step sees.
        fit_config: The loop.
        progress: Told how it goes.

    Raises:
        InputError: A recording does not exist or is too short.
        UsageError: A recording is named twice.
    """
    chosen = list(names) or [one.name for one in recordings.recordings]
    task = MotionTask(recordings, chosen, model, loss, batch, seed=fit_config.seed)
    described = {
        "model": asdict(model),
        "loss": asdict(loss),
        "batch": asdict(batch),
        "data": recordings.sha256,
        "recordings": chosen,
    }
    result = fit(task, fit_config, out, progress=progress, configuration=described)
    recalibration = task.recalibration()
    trained = TrainedMotion(
        model=task.model.cpu().eval().requires_grad_(False),
        climatology=task.climatology,
        usual=task.usual,
        reference=recordings.reference,
        dressing=task.dressing(recalibration),
        recalibration=recalibration,
        provenance={
            "undula": undula.__version__,
            "system": recordings.system.structure.name,
            "steps": result.step,
            "recordings": chosen,
            "data": {"sha256": recordings.sha256, "origin": dict(recordings.provenance)},
            "parameters": sum(one.numel() for one in task.model.parameters()),
            "loss": asdict(loss),
            "batch": asdict(batch),
            "fit": fit_config.plain(),
            "measures": dict(result.metrics),
            **result.told(),
        },
    )
    trained.save(out)
    write_report(out, recordings.notices, steps=result.step, recordings=chosen)
    return trained
