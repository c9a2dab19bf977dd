"""From a configuration to a trained surface model in its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

import undula
from undula import atomic
from undula.errors import InputError, UsageError
from undula.io.datasets import Dataset
from undula.learn.checkpoint import load_into
from undula.learn.fit import FitConfig, FitResult, fit
from undula.learn.progress import Progress
from undula.learn.recipe import flat
from undula.notices import write_report
from undula.surface.baselines import fitted_blur, fitted_shifts
from undula.surface.losses import LossConfig, MixtureLossConfig
from undula.surface.mixture import MixtureModel, MixtureModelConfig
from undula.surface.mixture_task import MixtureBatchConfig, MixtureTask
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig, SurfaceTask
from undula.surface.trained import (
    WEIGHTS,
    TrainedSurface,
    memory,
    starts,
    trivial_case,
    trivial_rows,
)
from undula.surface.trained_mixture import TrainedMixture


def train(
    datasets: Sequence[Dataset],
    out: Path,
    *,
    model: SurfaceModelConfig,
    loss: LossConfig,
    batch: BatchConfig,
    fit_config: FitConfig,
    progress: Progress,
) -> TrainedSurface:
    """Train a surface model and write it, with its trivial rows, into its run folder.

    Args:
        datasets: One per protein.
        out: The run folder; a run that was stopped goes on.
        model: Sizes and choices.
        loss: Weights of the losses.
        batch: What a step sees.
        fit_config: The loop.
        progress: Told how it goes.

    Raises:
        InputError: The data sets differ in probe, or hold no training frame.
        UsageError: A plateau is asked for, but no frames are kept for validation.
    """
    probe = _common_probe(datasets)
    task = SurfaceTask(datasets, model, loss, batch, seed=fit_config.seed)
    _check_judged(fit_config, task, "the last frames of each trajectory")
    described = _configuration(task, datasets)
    result = fit(task, fit_config, out, progress=progress, configuration=described)
    blur, shifts, statics = trivial_rows(task, datasets, probe)
    trained = TrainedSurface(
        model=task.module.cpu().eval().requires_grad_(False),
        blur=blur,
        averaged=statics,
        starts=starts(task, datasets),
        memory_ps=tuple(
            memory(task, dataset, system, probe) for system, dataset in enumerate(datasets)
        ),
        provenance=_provenance(task, datasets, probe, fit_config, result),
        shifts=shifts,
    )
    trained.save(out)
    _report(out, datasets, result.step)
    return trained


def train_mixture(
    datasets: Sequence[Dataset],
    out: Path,
    *,
    model: MixtureModelConfig,
    loss: MixtureLossConfig,
    batch: MixtureBatchConfig,
    fit_config: FitConfig,
    progress: Progress,
    start_from: Path | None = None,
) -> TrainedMixture:
    """Train a MoE-DSR model and write it, with its trivial row, into its run folder.

    Args:
        datasets: One per protein.
        out: The run folder; a run that was stopped goes on.
        model: Sizes and choices.
        loss: Weights of the losses.
        batch: What a step sees.
        fit_config: The loop.
        progress: Told how it goes.
        start_from: A run whose weights are the first (`start_weights`); the SHA-256 of their
            file is a part of this run's configuration.

    Raises:
        InputError: The data sets differ in probe, or hold no training frame; there are no
            weights to start from.
        UsageError: The losses do not suit the experts; the other run's model is another; a
            plateau is asked for, but no protein is kept for validation.
    """
    probe = _common_probe(datasets)
    task = MixtureTask(datasets, model, loss, batch, seed=fit_config.seed)
    _check_judged(fit_config, task, "whole proteins")
    started = {} if start_from is None else {"start_from": start_weights(task.module, start_from)}
    described = _configuration(task, datasets) | started
    result = fit(task, fit_config, out, progress=progress, configuration=described)
    kept = {task.owners[trajectory] for trajectory in task.validation}
    readable = [
        (datasets[task.owners[t]], task.trajectories[t], task.frames[t]) for t in task.training
    ]
    cases = [trivial_case(dataset, read, frames, probe) for dataset, read, frames in readable]
    names = [dataset.structure.name for dataset in datasets]
    module = task.module.cpu().eval()
    memory_ps, lasting = module.horizon_ps, 0.0
    if module.config.samples:
        found = fitted_persistence([task.residuals(t) for t in task.training])
        memory_ps, lasting = found or (memory_ps, lasting)
    trained = TrainedMixture(
        model=module.requires_grad_(False),
        blur=fitted_blur(cases),
        memory_ps=memory_ps,
        lasting=lasting,
        provenance={
            "undula": undula.__version__,
            "probe": probe,
            "steps": result.step,
            "proteins": len({task.owners[t] for t in task.training}),
            "training_frames": sum(len(task.frames[t]) for t in task.training),
            "validation": [names[i] for i in sorted(kept)],
            "data": [_described(dataset) for dataset in datasets],
            **started,
            "loss": asdict(loss),
            "batch": asdict(batch),
            "fit": fit_config.plain(),
            "measures": dict(result.metrics),
            **result.told(),
        },
        shifts=fitted_shifts(cases),
    )
    trained.save(out)
    _report(out, datasets, result.step)
    return trained


def _check_judged(fit_config: FitConfig, task: SurfaceTask | MixtureTask, kept: str) -> None:
    """Raise where a plateau would be judged by what was trained on.

    Raises:
        UsageError: Nothing is kept for validation.
    """
    if fit_config.plateau is not None and not task.validation:
        raise UsageError(
            f"a plateau is judged on {kept} that no step reads, and batch.validation = "
            f"{task.batch_config.validation} keeps none of this data; keep some, or train for a "
            "number of steps"
        )


def start_weights(module: MixtureModel, folder: Path) -> str:
    """Give a model the weights of a finished run, and the mean and spread of its features.

    The times of the training data may differ: the new model's features of time are scaled by
    its own. Latent codes that are fitted belong to the other run's proteins and stay as drawn.

    Args:
        module: Receives the numbers.
        folder: The run.

    Returns:
        The SHA-256 of the file of weights.

    Raises:
        InputError: There is no finished run of a MoE-DSR model, or it is damaged.
        UsageError: Its configuration of the model is another.
    """
    other = TrainedMixture.load(folder).model
    theirs, ours = flat(asdict(other.config)), flat(asdict(module.config))
    for key in sorted((theirs.keys() | ours.keys()) - {"time.longest"}):
        if theirs.get(key) != ours.get(key):
            raise UsageError(
                f"mixture.start_from: the model in {folder} has {key} = {theirs.get(key)!r}, "
                f"this one {ours.get(key)!r}; use the same value"
            )
    weights = other.state_dict()
    if module.latents is not None:
        weights["latents"] = module.latents.detach()
    load_into(module, weights, folder / WEIGHTS)
    return atomic.sha256(folder / WEIGHTS)


def _report(out: Path, datasets: Sequence[Dataset], step: int) -> None:
    """Count what was dropped, assumed or guessed in the data of a training."""
    names = [dataset.structure.name for dataset in datasets]
    told = [notice for dataset in datasets for notice in dataset.notices]
    write_report(out, told, steps=step, data=names)


def _described(dataset: Dataset) -> dict[str, Any]:
    origin = {"origin": dataset.manifest["origin"]} if "origin" in dataset.manifest else {}
    return {"name": dataset.structure.name, "sha256": dataset.sha256, **origin}


def fitted_persistence(
    cases: Sequence[tuple[np.ndarray, Float[Tensor, "frames points"]]],
) -> tuple[float, float] | None:
    r"""Fit how long errors of the typical surface last, and which part of them stays.

    .. math:: \min_{\tau, p} \sum_{i<j} \big(\rho_{ij} - p - (1 - p) e^{-(t_j - t_i)/\tau}\big)^2

    where ρ is the cosine between the errors of two frames of one trajectory, over points.

    Args:
        cases: Times in ps and errors of each training trajectory.

    Returns:
        τ in ps and p; None where no trajectory has two frames.
    """
    cosines, gaps = [], []
    for times_ps, errors in cases:
        i, j = torch.triu_indices(len(errors), len(errors), offset=1)
        way = torch.nn.functional.normalize(errors.double(), dim=1)
        times = torch.from_numpy(np.array(times_ps))
        cosines.append((way @ way.T)[i, j])
        gaps.append(times[j] - times[i])
    found, gap = torch.cat(cosines), torch.cat(gaps)
    if not len(gap):
        return None
    taus = torch.logspace(-1, 1.5, 51, dtype=torch.float64) * float(gap.median())
    shares = torch.linspace(0, 0.95, 39, dtype=torch.float64)
    decay = torch.exp(-gap / taus[:, None])[:, None]
    errors = (found - shares[:, None] - (1 - shares[:, None]) * decay).square().mean(dim=2)
    tau, share = divmod(int(errors.argmin()), len(shares))
    return float(taus[tau]), float(shares[share])


def _configuration(task: SurfaceTask | MixtureTask, datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return what a run is stored under: another one may not go on in its folder."""
    return {
        "model": task.module.describe(),
        "loss": asdict(task.loss_config),
        "batch": asdict(task.batch_config),
        "data": [dataset.sha256 for dataset in datasets],
    }


def _common_probe(datasets: Sequence[Dataset]) -> float:
    probes = {float(d.manifest["request"]["rules"]["probe"]) for d in datasets}
    if len(probes) != 1:
        raise InputError(f"the data sets were made with different probes: {sorted(probes)} Å")
    return probes.pop()


def _provenance(
    task: SurfaceTask,
    datasets: Sequence[Dataset],
    probe: float,
    fit_config: FitConfig,
    result: FitResult,
) -> dict[str, Any]:
    return {
        "undula": undula.__version__,
        "probe": probe,
        "steps": result.step,
        "training_frames": len(task.training),
        "validation_frames": len(task.validation),
        "data": [
            {"name": dataset.structure.name, "sha256": dataset.sha256} for dataset in datasets
        ],
        "loss": asdict(task.loss_config),
        "batch": asdict(task.batch_config),
        "fit": fit_config.plain(),
        **result.told(),
    }
