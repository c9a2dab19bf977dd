"""The run folders of a study: one per row and seed, trained once and read from then on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from undula import atomic
from undula.io.datasets import Dataset
from undula.learn.plateau import PlateauConfig
from undula.learn.progress import Progress
from undula.learn.recipe import FitConfig, check_same, timeless
from undula.surface.losses import MixtureLossConfig
from undula.surface.mixture import MixtureModel, MixtureModelConfig
from undula.surface.mixture_task import MixtureBatchConfig
from undula.surface.trained import WEIGHTS
from undula.surface.trained_mixture import TrainedMixture
from undula.surface.training import train_mixture

PLATEAU = PlateauConfig(measure="iou")
"""By which trainings go on until they no longer get better: what judges the tables, on proteins
kept for validation."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of a model for any protein, resolved to the last key.

    Attributes:
        model: Sizes and choices of the model.
        loss: Weights of the losses.
        batch: What a step sees.
        fit: The loop.
        start_from: The run whose weights are the first, if there is one.
    """

    model: MixtureModelConfig
    loss: MixtureLossConfig
    batch: MixtureBatchConfig
    fit: FitConfig
    start_from: Path | None = None

    def until_plateau(self) -> Training:
        """Return the same training, but until it no longer gets better.

        By its own rule or, failing that, by `PLATEAU`.
        """
        return replace(self, fit=replace(self.fit, plateau=self.fit.plateau or PLATEAU))


def run_folder(runs: Path, row: str, seed: int) -> Path:
    """Return where the run of a row and a seed lies."""
    return runs / row / f"seed-{seed}"


def trained_run(
    training: Training, datasets: Sequence[Dataset], folder: Path, progress: Progress
) -> tuple[TrainedMixture, float | None]:
    """Return a run's model: the finished one of the folder, or a newly trained one.

    A finished run is gone on with where another rule for its end is asked for, such as a plateau
    where there was none.

    Args:
        training: The configuration.
        datasets: What it may read.
        folder: The run folder; a run that was stopped goes on.
        progress: Told how training goes.

    Returns:
        The model, and for how many seconds it was trained now; none if it was finished.

    Raises:
        UsageError: The folder holds a run of another configuration or of other data.
        InputError: The data cannot serve, or the finished run is damaged.
    """
    if (folder / WEIGHTS).is_file():
        trained = TrainedMixture.load(folder)
        before, now = _described(trained), _asked(training, datasets)
        check_same(timeless(before), timeless(now), folder)
        if before["fit"].get("plateau") == now["fit"].get("plateau"):
            return trained, None
    began = time.perf_counter()
    train_mixture(
        datasets,
        folder,
        model=training.model,
        loss=training.loss,
        batch=training.batch,
        fit_config=training.fit,
        progress=progress,
        start_from=training.start_from,
    )
    # Read back, so that what is scored is what lies there.
    return TrainedMixture.load(folder), time.perf_counter() - began


def router_parameters(model: MixtureModel) -> int:
    """Count the weights that turn a cloud into a code."""
    return sum(parameter.numel() for parameter in model.router.parameters())


def parameters(model: MixtureModel) -> int:
    """Count all weights but the latent codes of training proteins."""
    codes = 0 if model.latents is None else model.latents.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - codes


def active_parameters(model: MixtureModel) -> int:
    """Count the weights that answer for one protein: `parameters` less experts not chosen."""
    gate = model.config.gate
    one = sum(parameter.numel() for parameter in model.experts[0].parameters())
    return parameters(model) - (gate.experts - gate.chosen) * one


def _asked(training: Training, datasets: Sequence[Dataset]) -> dict[str, Any]:
    start = training.start_from
    return _plain(
        {
            "model": asdict(training.model),
            "loss": asdict(training.loss),
            "batch": asdict(training.batch),
            "fit": training.fit.plain(),
            "data": {dataset.structure.name: dataset.sha256 for dataset in datasets},
            "start_from": start and atomic.sha256(start / WEIGHTS),
        }
    )


def _described(trained: TrainedMixture) -> dict[str, Any]:
    provenance = trained.provenance
    return _plain(
        {
            "model": asdict(trained.model.config),
            **{part: provenance[part] for part in ("loss", "batch", "fit")},
            "data": {one["name"]: one["sha256"] for one in provenance["data"]},
            "start_from": provenance.get("start_from"),
        }
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Return the value as it would come back from a JSON file."""
    found: dict[str, Any] = json.loads(json.dumps(value))
    return found
