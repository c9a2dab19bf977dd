"""What a trained baseline knows beside its weights: usual sizes, the pose, where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import undula
from undula.errors import InputError, UsageError
from undula.io.recordings import Recordings
from undula.learn.checkpoint import load_weights, save_weights
from undula.learn.fit import FitConfig, fit
from undula.learn.progress import Progress
from undula.learn.task import Task
from undula.motion.climatology_fit import Example
from undula.motion.drawing import Drawing, WindowConfig
from undula.motion.hierarchy import Hierarchy
from undula.motion.observation import velocities_of
from undula.motion.posing import Pose, posed
from undula.motion.trained import WEIGHTS
from undula.motion.windows import Window
from undula.notices import write_report
from undula.types import MolecularSystem

_LEAST = 1e-6
"""Å or Å/ps: what is smaller than this is taken to be this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scales:
    """How far atoms of each chemical kind usually go: the units that make numbers of order one.

    Attributes:
        kinds: Names, in the order of the rows.
        frame_ps: Time between frames, ps.
        knots: Frames after now, ascending.
        displacement: Root mean square of the way from now to each knot, per axis, Å.
        speed: Root mean square velocity per axis, Å/ps.
        reach: Root mean square way from now to the frames of the window, per axis, Å.
    """

    kinds: tuple[str, ...]
    frame_ps: float
    knots: tuple[int, ...]
    displacement: Float[Tensor, "kinds knots"]
    speed: Float[Tensor, " kinds"]
    reach: Float[Tensor, " kinds"]

    @property
    def horizon(self) -> int:
        """How far the knots reach, frames."""
        return self.knots[-1]

    def rows(self, system: MolecularSystem) -> Int[Tensor, " atoms"]:
        """Return the row of each atom's kind.

        Raises:
            InputError: An atom is of a kind that the training data did not have.
        """
        return _rows(system, self.kinds)

    def units(
        self, lags: Float[Tensor, " times"], rows: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "times atoms"]:
        """Return the usual displacement of atoms at some lags (frames), Å; linear between knots."""
        lower, part = self.places(lags)
        table = self.displacement.to(lags)[rows].T
        table = torch.cat([torch.zeros_like(table[:1]), table])
        return torch.lerp(table[lower], table[lower + 1], part[:, None])

    def places(
        self, lags: Float[Tensor, " times"]
    ) -> tuple[Int[Tensor, " times"], Float[Tensor, " times"]]:
        """Locate lags (frames) between now, which is place 0, and the knots, from place 1 on.

        Returns:
            The place below each lag and the part of the way to the next one.
        """
        at = torch.tensor([0, *self.knots], dtype=lags.dtype, device=lags.device)
        lower = (torch.searchsorted(at, lags, right=True) - 1).clamp(0, len(at) - 2)
        return lower, (lags - at[lower]) / (at[lower + 1] - at[lower])

    def checked(self, window: Window, lags_ps: Float[Tensor, " times"]) -> Float[Tensor, " times"]:
        """Return lags in frames, in the precision and on the device of the window.

        Raises:
            InputError: The frames of the window are farther apart than in training, or closer.
            UsageError: There is no lag; one is negative or beyond the horizon.
        """
        if abs(window.frame_ps - self.frame_ps) > 1e-3 * self.frame_ps:
            raise InputError(
                f"{window.system.structure.name}: frames are {window.frame_ps:g} ps apart, in "
                f"training they were {self.frame_ps:g} ps"
            )
        lags = lags_ps.to(window.positions) / window.frame_ps
        if len(lags) == 0:
            raise UsageError("a forecast needs at least one time")
        bad = ~((lags >= 0) & (lags <= self.horizon + 1e-3))
        if bad.any():
            raise UsageError(
                f"a forecast reaches from 0 to {self.horizon} frames after the window; "
                f"{float(lags[bad][0]):g} frames were asked for"
            )
        return lags.clamp(max=self.horizon)


def fitted_scales(examples: Iterable[Example], knots: Sequence[int]) -> Scales:
    """Measure the usual sizes on training windows of one system.

    Args:
        examples: At least one, with futures at the knots.
        knots: Frames after now, ascending.
    """
    kinds: tuple[str, ...] = ()
    frame_ps, sums = 0.0, torch.zeros(0)
    for example in examples:
        window = example.window
        if not kinds:
            kinds = tuple(sorted(set(window.system.kinds.tolist())))
            frame_ps = window.frame_ps
            rows = _rows(window.system, kinds)
            sums = torch.zeros(len(kinds), len(knots) + 3, dtype=torch.float64)
        ahead = (example.future - window.now).double().square().sum(dim=-1)
        velocity = velocities_of(window, [0])[0].double().square().sum(dim=-1)
        back = (window.positions - window.now).double().square().sum(dim=-1).mean(dim=0)
        one = torch.full_like(back, 3)
        sums.index_add_(0, rows, torch.stack([*ahead, velocity, back, one], dim=1))
    if not kinds:
        raise InputError("usual sizes need at least one training window")
    usual = (sums[:, :-1] / sums[:, -1:]).sqrt().clamp(min=_LEAST).float()
    return Scales(
        kinds=kinds,
        frame_ps=frame_ps,
        knots=tuple(knots),
        displacement=_own(usual[:, :-2]),
        speed=_own(usual[:, -2]),
        reach=_own(usual[:, -1]),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Background:
    """What a trained baseline knows beside its weights.

    Attributes:
        scales: Usual sizes.
        reference: What frames were superposed on in training, Å; none if they were not.
        provenance: What it was trained on and how.
    """

    scales: Scales
    reference: Float[Tensor, "atoms 3"] | None
    provenance: dict[str, Any]

    @property
    def observed(self) -> int:
        """How many frames the windows had that it was trained on.

        Raises:
            InputError: The provenance does not say.
        """
        batch = self.provenance.get("batch")
        frames = batch.get("observed") if isinstance(batch, dict) else None
        if not isinstance(frames, int) or frames < 1:
            raise InputError("the provenance of the weights does not say batch.observed")
        return frames

    def posed(self, window: Window, dtype: torch.dtype) -> tuple[Window, Pose]:
        """Take a window in a precision, superposed as in training; and the way back.

        Raises:
            InputError: Training superposed a molecule of another size.
        """
        return posed(window, self.reference, dtype)

    def save(self, folder: Path, kind: str, model: nn.Module, config: Mapping[str, Any]) -> None:
        """Write the weights with what it takes to build the model again."""
        scales = self.scales
        tensors = {f"model.{name}": one for name, one in model.state_dict().items()}
        tensors |= {
            f"scales.{name}": getattr(scales, name) for name in ("displacement", "speed", "reach")
        }
        if self.reference is not None:
            tensors["reference"] = self.reference
        metadata = {
            "kind": kind,
            "model": dict(config),
            "kinds": list(scales.kinds),
            "knots": list(scales.knots),
            "frame_ps": scales.frame_ps,
            "provenance": self.provenance,
        }
        save_weights(folder / WEIGHTS, tensors, metadata)

    @classmethod
    def load(
        cls, folder: Path, kind: str
    ) -> tuple[Background, dict[str, Any], dict[str, Tensor], Path]:
        """Read what `save` wrote.

        Returns:
            The background, the configuration and the weights of the model, and their file.

        Raises:
            InputError: There is no such model, or a damaged one.
        """
        path = folder / WEIGHTS
        tensors, metadata = load_weights(path)
        if metadata.get("kind") != kind:
            raise InputError(f"{path} is not a model of the kind {kind}")
        try:
            scales = Scales(
                kinds=tuple(metadata["kinds"]),
                frame_ps=metadata["frame_ps"],
                knots=tuple(metadata["knots"]),
                displacement=tensors["scales.displacement"],
                speed=tensors["scales.speed"],
                reach=tensors["scales.reach"],
            )
            background = cls(
                scales=scales,
                reference=tensors.get("reference"),
                provenance=metadata["provenance"],
            )
            config = dict(metadata["model"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {error}") from error
        model = {n[6:]: one for n, one in tensors.items() if n.startswith("model.")}
        return background, config, model, path


@runtime_checkable
class Settings(Protocol):
    """What the settings of every trained baseline have; they are dataclasses."""

    @property
    def batch(self) -> WindowConfig:
        """What a step sees."""
        ...

    @property
    def hierarchy(self) -> Hierarchy:
        """Of the DoMiNO on whose windows and times it is trained."""
        ...

    @property
    def recordings(self) -> list[str]:
        """Names of the recordings to train on; all if there are none."""
        ...


def drawing_of(recordings: Recordings, settings: Settings) -> Drawing:
    """Return where the windows of a training come from.

    Raises:
        InputError: A recording does not exist or is too short.
        UsageError: A recording is named twice.
    """
    chosen = settings.recordings or [one.name for one in recordings.recordings]
    return Drawing(recordings, chosen, settings.batch, settings.hierarchy)


def trained(
    task: Task,
    drawing: Drawing,
    out: Path,
    *,
    kind: str,
    settings: Any,
    fit_config: FitConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Train a baseline in its run folder; a run that was stopped goes on.

    Args:
        task: The baseline.
        drawing: Its windows.
        out: The run folder.
        kind: Of `undula.motion.catalog`.
        settings: A dataclass with ``recordings`` and parts that are dataclasses.
        fit_config: The loop.
        progress: Told how it goes.

    Returns:
        What it was trained on and how, and how it ended: the provenance of its weights.
    """
    recordings, chosen = drawing.source, [part.recording.name for part in drawing.parts]
    described = {name: part for name, part in asdict(settings).items() if name != "recordings"}
    result = fit(
        task,
        fit_config,
        out,
        progress=progress,
        configuration={
            "baseline": kind,
            **described,
            "data": recordings.sha256,
            "recordings": chosen,
        },
    )
    write_report(out, recordings.notices, steps=result.step, recordings=chosen)
    return {
        "undula": undula.__version__,
        "system": recordings.system.structure.name,
        "steps": result.step,
        "recordings": chosen,
        "data": {"sha256": recordings.sha256, "origin": dict(recordings.provenance)},
        "parameters": sum(one.numel() for one in task.module.parameters()),
        "measures": dict(result.metrics),
        **described,
        "fit": fit_config.plain(),
        **result.told(),
    }


def _own(numbers: Tensor) -> Tensor:
    """Copy numbers so that they adjoin, also where there is only one of them."""
    return numbers.clone(memory_format=torch.contiguous_format)


def _rows(system: MolecularSystem, kinds: Sequence[str]) -> Int[Tensor, " atoms"]:
    unknown = sorted(set(system.kinds.tolist()) - set(kinds))
    if unknown:
        raise InputError(
            f"{system.structure.name}: the model was not fitted on atoms of the kind "
            f"{', '.join(unknown)}"
        )
    return torch.tensor([kinds.index(kind) for kind in system.kinds.tolist()])
