"""The configuration of a training: dataclasses from a preset, YAML and flags, in that order."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from undula.errors import UsageError
from undula.learn.fit import FitConfig
from undula.surface.losses import LossConfig
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig

PRESETS = ("default", "dsr", "paper")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training of a surface model.

    Attributes:
        data: Data set folders made by ``undula prepare``, one per protein.
        out: The run folder; a run that was stopped goes on.
        preset: "default" is what we recommend, "dsr" has DSR's kind of network in its place,
            "paper" repeats the publication's choices.
        model: Sizes and choices of the model.
        loss: Weights of the losses.
        batch: What a step sees.
        fit: The loop.
    """

    data: list[str]
    out: str
    model: SurfaceModelConfig
    fit: FitConfig
    preset: str = "default"
    loss: LossConfig = field(default_factory=LossConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"there is no preset {self.preset}; there are {', '.join(PRESETS)}")
        if not self.data:
            raise UsageError("data should name at least one data set folder")


def preset_file(name: str) -> Path:
    """Return the YAML file of a preset.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name}; there are {', '.join(PRESETS)}")
    return Path(str(resources.files("undula"))) / "presets" / f"{name}.yaml"
