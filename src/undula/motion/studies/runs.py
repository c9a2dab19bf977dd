"""The run folders of a study of moving atoms: one per system, row and seed, trained once."""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from undula.learn.progress import Progress
from undula.learn.recipe import FitConfig, check_same
from undula.motion.drawing import WindowConfig
from undula.motion.losses import MotionLossConfig
from undula.motion.model import DoMiNO, MotionModelConfig
from undula.motion.studies.protocol import Opened
from undula.motion.trained import WEIGHTS, TrainedMotion
from undula.motion.training import train_motion


@dataclass(frozen=True, kw_only=True)
class MotionTraining:
    """One training of a model of moving atoms, resolved to the last key.

    Attributes:
        model: Sizes and choices of the model.
        loss: Weights of the losses.
        batch: What a step sees.
        fit: The loop.
    """

    model: MotionModelConfig
    loss: MotionLossConfig
    batch: WindowConfig
    fit: FitConfig

    def first_levels(self, count: int) -> MotionTraining:
        """Return the same training with only some of the coarsest levels; all for 0."""
        if count == 0:
            return self
        levels = self.model.levels
        kept = replace(levels, strides=levels.strides[:count])
        return replace(self, model=replace(self.model, levels=kept))

    def as_large_as(self, other: MotionTraining, kinds: int) -> MotionTraining:
        """Return the same training with the width that gives about as many weights as another.

        Args:
            other: The other training.
            kinds: How many chemical kinds the system has.
        """
        wanted, heads = _weights(other.model, kinds), self.model.encoder.heads

        def weights(width: int) -> int:
            return _weights(self.with_features(width * heads).model, kinds)

        high = 1
        while weights(high) < wanted:
            high *= 2
        low = bisect_left(range(high), wanted, lo=1, key=weights)
        widths = [max(low - 1, 1), low]
        best = min(widths, key=lambda width: abs(weights(width) - wanted))
        return self.with_features(best * heads)

    def with_features(self, features: int) -> MotionTraining:
        """Return the same training with another width of the network."""
        encoder = replace(self.model.encoder, features=features)
        return replace(self, model=replace(self.model, encoder=encoder))


def _weights(config: MotionModelConfig, kinds: int) -> int:
    return sum(one.numel() for one in DoMiNO(config, kinds).parameters())


def run_folder(runs: Path, system: str, row: str, seed: int) -> Path:
    """Return where the run of a system, a row and a seed lies."""
    return runs / system / row / f"seed-{seed}"


def trained_run(
    training: MotionTraining, system: Opened, folder: Path, progress: Progress
) -> tuple[TrainedMotion, float | None]:
    """Return a run's model: the finished one of the folder, or a newly trained one.

    Args:
        training: The configuration.
        system: Only its training recordings are read.
        folder: The run folder; a run that was stopped goes on.
        progress: Told how training goes.

    Returns:
        The model, and for how many seconds it was trained now; none if it was finished.

    Raises:
        UsageError: The folder holds a run of another configuration or of other data.
        InputError: The data cannot serve, or the finished run is damaged.
    """
    if (folder / WEIGHTS).is_file():
        trained = TrainedMotion.load(folder)
        check_same(_described(trained), _asked(training, system), folder)
        return trained, None
    began = time.perf_counter()
    train_motion(
        system.source,
        folder,
        names=system.train,
        model=training.model,
        loss=training.loss,
        batch=training.batch,
        fit_config=training.fit,
        progress=progress,
    )
    # Read back, so that what is scored is what lies there.
    return TrainedMotion.load(folder), time.perf_counter() - began


def parameters(trained: TrainedMotion) -> int:
    """Count all weights of a model."""
    return sum(parameter.numel() for parameter in trained.model.parameters())


def _asked(training: MotionTraining, system: Opened) -> dict[str, object]:
    return _plain(
        {
            **{part: asdict(getattr(training, part)) for part in ("model", "loss", "batch", "fit")},
            "data": system.source.sha256,
            "recordings": list(system.train),
        }
    )


def _described(trained: TrainedMotion) -> dict[str, object]:
    provenance = trained.provenance
    return _plain(
        {
            "model": asdict(trained.model.config),
            **{part: provenance[part] for part in ("loss", "batch", "fit", "recordings")},
            "data": provenance["data"]["sha256"],
        }
    )


def _plain(value: Mapping[str, object]) -> dict[str, object]:
    """Return the value as it would come back from a JSON file."""
    found: dict[str, object] = json.loads(json.dumps(value))
    return found
