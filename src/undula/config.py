"""The configuration of a training: dataclasses from a preset, YAML and flags, in that order."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from undula.errors import UsageError
from undula.learn.fit import FitConfig
from undula.motion.drawing import WindowConfig
from undula.motion.losses import MotionLossConfig
from undula.motion.model import MotionModelConfig
from undula.surface.losses import LossConfig, MixtureLossConfig
from undula.surface.mixture import MixtureModelConfig
from undula.surface.mixture_task import MixtureBatchConfig
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig

SURFACE_PRESETS = ("default", "deterministic", "contraction", "paper", "grid", "dsr", "dsr-paper")
MOTION_PRESETS = ("argon", "water", "alanine", "domino-paper")
PRESETS = (*SURFACE_PRESETS, *MOTION_PRESETS)


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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training of a model of moving surfaces or of moving atoms.

    Attributes:
        data: For surfaces, data set folders made by ``undula prepare``, one per protein; for
            atoms, one folder made by ``undula prepare atoms`` or ``undula simulate``.
        out: The run folder; a run that was stopped goes on.
        preset: For any protein: "default" is what we recommend, "deterministic" the same without
            samples, "contraction" has experts on the protein's irreps, "paper" repeats MoE-DSR's
            choices. For the proteins of the training alone: "grid" is what we recommend, "dsr"
            has DSR's kind of network in its place, "dsr-paper" repeats DSR's choices. For atoms:
            "argon", "water" and "alanine" are what we recommend for systems like these,
            "domino-paper" has DoMiNO's published sizes and wants a GPU.
        mixture: The model for any protein, or none.
        protein: The model for its training proteins, or none.
        motion: The model of moving atoms, or none.
        fit: The loop.
    """

    data: list[str]
    out: str
    fit: FitConfig
    preset: str = "default"
    mixture: MixtureConfig | None = None
    protein: ProteinConfig | None = None
    motion: MotionConfig | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"there is no preset {self.preset}; there are {', '.join(PRESETS)}")
        if not self.data:
            raise UsageError("data should name at least one data set folder")
        if sum(one is not None for one in (self.mixture, self.protein, self.motion)) != 1:
            raise UsageError(
                "a training has one of mixture, protein and motion; set the others to null"
            )
        if self.motion is not None and len(self.data) > 1:
            raise UsageError("a model of moving atoms is trained on one folder of recordings")


def preset_file(name: str) -> Path:
    """Return the YAML file of a preset.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name}; there are {', '.join(PRESETS)}")
    return Path(str(resources.files("undula"))) / "presets" / f"{name}.yaml"
