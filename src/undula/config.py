"""The configuration of a training: dataclasses from a preset, YAML and flags, in that order."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from undula.errors import UsageError
from undula.learn.fit import FitConfig
from undula.motion.baselines.ito_training import ItoTraining
from undula.motion.baselines.lg_ode_forecast import LGODETraining
from undula.motion.baselines.roller import RollerTraining
from undula.motion.baselines.scinet import SCINetTraining
from undula.motion.catalog import KINDS, Kind
from undula.motion.training import MotionConfig
from undula.surface.losses import LossConfig, MixtureLossConfig
from undula.surface.mixture import MixtureModelConfig
from undula.surface.mixture_task import MixtureBatchConfig
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig

SURFACE_PRESETS = (
    *("default", "deterministic", "contraction", "paper", "paper-small"),
    *("grid", "dsr", "dsr-paper"),
)
MOTION_PRESETS = ("argon", "water", "alanine", "domino-paper")
BASELINE_PRESETS = tuple(
    f"{kind}/{preset}" for kind in KINDS if kind != "domino" for preset in MOTION_PRESETS[:3]
)
PRESETS = (*SURFACE_PRESETS, *MOTION_PRESETS, *BASELINE_PRESETS)


LARGEST_NUMBER = 2**31
"""No setting is meant to be that large."""


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
    """A training of a model of moving surfaces or of moving atoms.

    Attributes:
        data: For surfaces, data set folders made by ``undula prepare``, one per protein; for
            atoms, one folder made by ``undula prepare atoms`` or ``undula simulate``.
        out: The run folder; a run that was stopped goes on.
        preset: For any protein: "default" is what we recommend, "deterministic" the same without
            samples, "contraction" has experts on the protein's irreps, "paper" repeats MoE-DSR's
            choices and wants a GPU, "paper-small" does so with narrower experts and fewer points.
            For the proteins of the training alone: "grid" is what we recommend, "dsr" has DSR's
            kind of network in its place, "dsr-paper" repeats DSR's choices. For atoms: "argon",
            "water" and "alanine" are what we recommend for systems like these, "domino-paper"
            has DoMiNO's published sizes and wants a GPU; the baselines have theirs, such as
            "lg-ode/argon".
        mixture: The model for any protein, or none.
        protein: The model for its training proteins, or none.
        motion: DoMiNO, a model of moving atoms, or none.
        lg_ode: LG-ODE, a baseline of moving atoms, or none.
        roller: The step-by-step roller, another.
        ito: ITO, another.
        scinet: SCINet, another.
        fit: The loop.
    """

    data: list[str]
    out: str
    fit: FitConfig
    preset: str = "default"
    mixture: MixtureConfig | None = None
    protein: ProteinConfig | None = None
    motion: MotionConfig | None = None
    lg_ode: LGODETraining | None = None
    roller: RollerTraining | None = None
    ito: ItoTraining | None = None
    scinet: SCINetTraining | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"there is no preset {self.preset}; there are {', '.join(PRESETS)}")
        if not self.data:
            raise UsageError("data should name at least one data set folder")
        sections = ["mixture", "protein", *(kind.section for kind in KINDS.values())]
        if sum(getattr(self, name) is not None for name in sections) != 1:
            raise UsageError(f"a training has one of {', '.join(sections)}; set the others to null")
        _check_numbers("", self)
        if self.of_atoms is not None and len(self.data) > 1:
            raise UsageError("a model of moving atoms is trained on one folder of recordings")

    @property
    def of_atoms(self) -> tuple[Kind, Any] | None:
        """The kind of the model of moving atoms and its settings; none for one of surfaces."""
        for kind in KINDS.values():
            settings = getattr(self, kind.section)
            if settings is not None:
                return kind, settings
        return None


def _check_numbers(place: str, value: Any) -> None:
    """Raise where a number of a configuration is not finite or absurdly large."""
    if is_dataclass(value):
        for one in fields(value):
            _check_numbers(f"{place}.{one.name}".lstrip("."), getattr(value, one.name))
    elif isinstance(value, list | tuple):
        for one in value:
            _check_numbers(place, one)
    elif isinstance(value, int | float) and not abs(value) < LARGEST_NUMBER:
        raise UsageError(f"{place} should be below {LARGEST_NUMBER:,}, not {value:g}")


def preset_file(name: str) -> Path:
    """Return the YAML file of a preset.

    Raises:
        UsageError: There is no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name}; there are {', '.join(PRESETS)}")
    return Path(str(resources.files("undula"))) / "presets" / f"{name}.yaml"
