"""How to train: the settings of a run, its learning rate at each step, its seeds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from undula.errors import UsageError
from undula.learn.plateau import PlateauConfig


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train.

    Attributes:
        steps: Optimiser steps (AdamW) in all; in each cycle where there is a plateau.
        learning_rate: Its highest value, for groups of factor 1.
        schedule: ``constant``, ``cosine`` (to zero at the end) or ``halving``.
        halve_every: Steps between two halvings; only for ``halving``.
        warmup_steps: Steps over which the rate rises linearly from nearly zero.
        weight_decay: AdamW's decay per unit of learning rate.
        clip_norm: Longest gradient that is taken as it is; None for no limit.
        ema_decay: Decay of the moving average of the weights, which is then what is evaluated
            and kept at the end; 0 for none.
        micro_batches: Batches per step, one after the other, whose losses are averaged: bounds
            the memory, and on CPUs keeps tensors under the 32 MB beyond which they are slow.
        record_every: Steps between two entries of the training record, each a mean.
        evaluate_every: Steps between two evaluations; also before the first step, after the last.
        checkpoint_every: Steps between two checkpoints; also after the last step.
        keep: Whether the final weights are the ``last`` or those of the ``best`` evaluation.
        monitor: The measure that decides what is best; only for ``best``.
        minimise: Whether less of it is better.
        precision: ``32-true``, or ``bf16-mixed`` for faster and coarser.
        accelerator: ``auto``, ``cpu``, ``cuda`` or another that Lightning Fabric knows.
        devices: How many on each machine, or ``auto`` for all.
        nodes: How many machines.
        strategy: How they share the work, in Fabric's words; ``auto`` is DDP for several, in the
            form that allows parameters without gradient. With devices ``auto`` name it yourself.
        seed: Root of all chance.
        plateau: Goes on in cycles until the validation no longer gets better; none for a single
            one. Of the ends of cycles the best is kept, if ``keep`` is ``last``.
    """

    steps: int
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "halving"] = "cosine"
    halve_every: int | None = None
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema_decay: float = 0.0
    micro_batches: int = 1
    record_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    keep: Literal["best", "last"] = "last"
    monitor: str | None = None
    minimise: bool = True
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    strategy: str = "auto"
    seed: int = 0
    plateau: PlateauConfig | None = None

    def __post_init__(self) -> None:
        at_least = {"steps": 1, "micro_batches": 1, "record_every": 1, "evaluate_every": 1}
        at_least |= {"checkpoint_every": 1, "nodes": 1, "warmup_steps": 0, "weight_decay": 0}
        at_least |= {"seed": 0}
        for name, least in at_least.items():
            if not least <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm", "halve_every"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be positive, not {value}")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay must be at least 0 and below 1, not {self.ema_decay}")
        if (self.schedule == "halving") != (self.halve_every is not None):
            raise UsageError("halve_every belongs to the schedule halving, and only to that")
        if (self.keep == "best") != (self.monitor is not None):
            raise UsageError("monitor names the measure for keep=best, and only for that")

    def plain(self) -> dict[str, Any]:
        """Return all settings for JSON; a plateau only where there is one.

        So trainings without one are described as they were before there were plateaus.
        """
        found = asdict(self)
        if self.plateau is None:
            del found["plateau"]
        return found


def learning_rate(config: FitConfig, step: int) -> float:
    r"""Compute the learning rate of one step for groups of factor 1.

    .. math::
        \eta_k = \eta \, \min(1, (k + 1) / w) \cdot \{1, \;
        \tfrac12 (1 + \cos \pi \tfrac{k - w}{K - w}), \; 2^{-\lfloor k / h \rfloor}\}

    Args:
        config: The rate η, the steps K, the warm-up w, the halving period h, the schedule.
        step: Steps done before this one, k; with a plateau, those of the present cycle.

    Returns:
        The rate; positive for every step of the run.
    """
    rate = config.learning_rate
    if step < config.warmup_steps:
        rate *= (step + 1) / config.warmup_steps
    if config.schedule == "halving" and config.halve_every:
        return rate * 0.5 ** (step // config.halve_every)
    if config.schedule == "cosine" and step >= config.warmup_steps:
        done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
        return rate * (1 + math.cos(math.pi * done)) / 2
    return rate


def batch_seed(seed: int, step: int, process: int = 0, micro_batch: int = 0) -> int:
    """Compute the seed of one batch from the run's seed, so that chance has no memory."""
    text = f"undula batch {seed} {step} {process} {micro_batch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def timeless(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run without what decides nothing but when it ends."""
    fit = {key: value for key, value in configuration["fit"].items() if key != "plateau"}
    return {**configuration, "fit": fit}


def check_same(stored: Mapping[str, Any], present: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run under another configuration.

    Args:
        stored: The configuration of the run, as nested JSON objects.
        present: The configuration asked for now.
        folder: The folder of the run, for the message.

    Raises:
        UsageError: They differ; the message names the first key that does.
    """
    before, now = flat(stored), flat(present)
    for key in sorted(before.keys() | now.keys()):
        if key not in before or key not in now or before[key] != now[key]:
            raise UsageError(
                f"the run in {folder} has {key} = {before.get(key, 'nothing')!r}, now it is "
                f"{now.get(key, 'nothing')!r}; use the same value, or another folder"
            )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Write nested JSON objects as one, with dotted keys.

    Args:
        value: Objects within objects; anything else is a value.
        prefix: Put before every key.

    Returns:
        Dotted key → value.
    """
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    nested = [flat(inner, f"{prefix}.{key}" if prefix else key) for key, inner in value.items()]
    return {key: inner for part in nested for key, inner in part.items()}
