"""Train DoMiNO on recordings and leave a forecaster behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
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
            "fit": asdict(fit_config),
            "measures": dict(result.metrics),
        },
    )
    trained.save(out)
    return trained
