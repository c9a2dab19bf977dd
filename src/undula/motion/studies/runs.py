"""The run folders of a study of moving atoms: one per system, row and seed, trained once."""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from undula.learn.progress import Progress
from undula.learn.recipe import FitConfig, check_same, timeless
from undula.motion.catalog import FittedKind, Kind, TrainedForecaster, stored_kind
from undula.motion.model import DoMiNO, MotionModelConfig
from undula.motion.studies.protocol import Opened


@dataclass(frozen=True, kw_only=True)
class MotionTraining:
    """One training of a model of moving atoms, resolved to the last key.

    Attributes:
        kind: Of the model.
        settings: Of the kind's own class.
        fit: The loop.
    """

    kind: Kind
    settings: Any
    fit: FitConfig

    def until_plateau(self) -> MotionTraining:
        """Return the same training, but until it no longer gets better.

        By its own rule or, failing that, by that of its kind.
        """
        return replace(self, fit=replace(self.fit, plateau=self.fit.plateau or self.kind.plateau))

    def first_levels(self, count: int) -> MotionTraining:
        """Return the same training of DoMiNO with only some of the coarsest levels; all for 0."""
        return self if count == 0 else replace(self, settings=self.settings.first_levels(count))

    def as_large_as(self, other: MotionTraining, kinds: int) -> MotionTraining:
        """Return the same training of DoMiNO with about as many weights as another, by its width.

        Args:
            other: The other training of DoMiNO.
            kinds: How many chemical kinds the system has.
        """
        wanted, heads = _weights(other.settings.model, kinds), self.settings.model.encoder.heads

        def weights(width: int) -> int:
            return _weights(self.settings.with_features(width * heads).model, kinds)

        high = 1
        while weights(high) < wanted:
            high *= 2
        low = bisect_left(range(high), wanted, lo=1, key=weights)
        widths = [max(low - 1, 1), low]
        best = min(widths, key=lambda width: abs(weights(width) - wanted))
        return replace(self, settings=self.settings.with_features(best * heads))


@dataclass(frozen=True, kw_only=True)
class MotionFitting:
    """A forecaster that is fitted in each window, resolved to the last key.

    Attributes:
        kind: Of the forecaster.
        settings: Of the kind's own class.
    """

    kind: FittedKind
    settings: Any

    def described(self) -> dict[str, Any]:
        """Return what its scores depend on, as plain values: not by how many processes."""
        return {name: one for name, one in asdict(self.settings).items() if name != "workers"}


def _weights(config: MotionModelConfig, kinds: int) -> int:
    return sum(one.numel() for one in DoMiNO(config, kinds).parameters())


def run_folder(runs: Path, system: str, row: str, seed: int) -> Path:
    """Return where the run of a system, a row and a seed lies."""
    return runs / system / row / f"seed-{seed}"


def trained_run(
    training: MotionTraining, system: Opened, folder: Path, progress: Progress
) -> tuple[TrainedForecaster, float | None]:
    """Return a run's model: the finished one of the folder, or a newly trained one.

    A finished run is gone on with where another rule for its end is asked for, such as a plateau
    where there was none.

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
    kind = training.kind
    if stored_kind(folder) is not None:
        trained = kind.load(folder)
        before, now = _described(trained, training), _asked(training, system)
        check_same(timeless(before), timeless(now), folder)
        if before["fit"].get("plateau") == now["fit"].get("plateau"):
            return trained, None
    began = time.perf_counter()
    kind.trained(
        system.source,
        folder,
        settings=replace(training.settings, recordings=list(system.train)),
        fit_config=training.fit,
        progress=progress,
    )
    # Read back, so that what is scored is what lies there.
    return kind.load(folder), time.perf_counter() - began


def parameters(trained: TrainedForecaster) -> int:
    """Count all weights of a model."""
    return sum(parameter.numel() for parameter in trained.model.parameters())


def _parts(training: MotionTraining) -> list[str]:
    """List what settings have beside the model and the recordings."""
    names = [one.name for one in fields(training.settings)]
    return [name for name in names if name not in ("model", "recordings")]


def _asked(training: MotionTraining, system: Opened) -> dict[str, Any]:
    settings = training.settings
    return _plain(
        {
            "model": asdict(settings.model),
            **{part: asdict(getattr(settings, part)) for part in _parts(training)},
            "fit": training.fit.plain(),
            "data": system.source.sha256,
            "recordings": list(system.train),
        }
    )


def _described(trained: TrainedForecaster, training: MotionTraining) -> dict[str, Any]:
    provenance: dict[str, Any] = trained.provenance
    config: Any = trained.model.config
    return _plain(
        {
            "model": asdict(config),
            **{part: provenance[part] for part in (*_parts(training), "fit", "recordings")},
            "data": provenance["data"]["sha256"],
        }
    )


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value as it would come back from a JSON file."""
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
