"""The configuration of a training: dataclasses from a preset, YAML and flags, in that order."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from undula.errors import UsageError
from undula.learn.fit import FitConfig
from undula.surface.losses import LossConfig, MixtureLossConfig
from undula.surface.mixture import MixtureModelConfig
from undula.surface.mixture_task import MixtureBatchConfig
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig

PRESETS = ("default", "deterministic", "contraction", "paper", "grid", "dsr", "dsr-paper")


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """A training of MoE-DSR, which serves proteins it has never seen.

    Attributes:
        model: Sizes and choices of the model.
        loss: Weights of the losses.
        batch: What a step sees.
        start_from: The folder of a finished run whose weights this one starts from, such as one
            on the pseudo-dynamics of static structures; by default they are drawn. Its model
            must be the same but for the times of its training data.
    """

    model: MixtureModelConfig = field(default_factory=MixtureModelConfig)
    loss: MixtureLossConfig = field(default_factory=MixtureLossConfig)
    batch: MixtureBatchConfig = field(default_factory=MixtureBatchConfig)
    start_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProteinConfig:
    """A training of DSR, which knows the proteins it was trained on and no others.

    Attributes:
        model: Sizes and choices of the model.
        loss: Weights of the losses.
        batch: What a step sees.
    """

    model: SurfaceModelConfig
    loss: LossConfig = field(default_factory=LossConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training of a surface model.

    Attributes:
        data: Data set folders made by ``undula prepare``, one per protein.
        out: The run folder; a run that was stopped goes on.
        preset: For any protein: "default" is what we recommend, "deterministic" the same without
            samples, "contraction" has experts on the protein's irreps, "paper" repeats MoE-DSR's
            choices. For the proteins of the training alone: "grid" is what we recommend, "dsr"
            has DSR's kind of network in its place, "dsr-paper" repeats DSR's choices.
        mixture: The model for any protein, or none.
        protein: The model for its training proteins, or none.
        fit: The loop.
    """

    data: list[str]
    out: str
    fit: FitConfig
    preset: str = "default"
    mixture: MixtureConfig | None = None
    protein: ProteinConfig | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"there is no preset {self.preset}; there are {', '.join(PRESETS)}")
        if not self.data:
            raise UsageError("data should name at least one data set folder")
        if (self.mixture is None) == (self.protein is None):
            raise UsageError("a training has either mixture or protein; set the other to null")


def preset_file(name: str) -> Path:
    """Return the YAML file of a preset.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name}; there are {', '.join(PRESETS)}")
    return Path(str(resources.files("undula"))) / "presets" / f"{name}.yaml"
