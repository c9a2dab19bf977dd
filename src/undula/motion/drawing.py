"""Windows drawn from recordings with what came after them: the same for every model trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.io.recordings import Recording, Recordings
from undula.motion.climatology import knot_frames
from undula.motion.climatology_fit import Example
from undula.motion.hierarchy import Hierarchy
from undula.motion.losses import Truth
from undula.motion.windows import Window

FARTHEST_APART = 20
"""Frames: starts of training and validation lie a finest segment apart, but no farther than this,
so that a model with fewer levels is trained on the same windows."""

DrawLags = Callable[[int, torch.Generator], Tensor]
"""Draws whole frames, ascending, up to the last one that recordings and horizon reach."""

BANDS = (("near", 2, 10), ("middle", 11, 100), ("far", 101, 10**9))
"""Names of ranges of lags, and their first and last frames."""


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Which windows of the recordings are used, and what a step sees.

    Attributes:
        observed: Frames in a window; the last of them is now.
        windows: Windows in a step.
        near: Times in a step within the first segment of the finest level, where most can be
            known; closer ones are likelier.
        segments: Further segments of the finest level in a step, anywhere in the horizon, closer
            ones likelier, and those soon after a coarser segment starts (selective sampling).
        times: Times in each of those, one of them likelier soon after its start.
        hidden: Share of windows whose velocities are hidden, so that the model serves windows
            that have none.
        validation: Last part of the starts of each training recording that is kept for
            validation.
        validation_windows: Windows of each recording that are scored in validation.
        fitted_windows: Windows of each recording on which the linear forecast is fitted.
        dressing: Windows of each recording whose errors dress samples of an aligned molecule.
    """

    observed: int = 1025
    windows: int = 1
    near: int = 8
    segments: int = 2
    times: int = 3
    hidden: float = 0.25
    validation: float = 0.2
    validation_windows: int = 2
    fitted_windows: int = 40
    dressing: int = 128

    def __post_init__(self) -> None:
        at_least = {"observed": 1, "windows": 1, "near": 1, "segments": 0, "times": 1}
        at_least |= {"validation_windows": 1, "fitted_windows": 1, "dressing": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UsageError(
                    f"batch.{name} must be at least {least}, not {getattr(self, name)}"
                )
        if not 0 <= self.hidden <= 1:
            raise UsageError(f"batch.hidden must be from 0 to 1, not {self.hidden}")
        if not 0 < self.validation < 1:
            raise UsageError(f"batch.validation must be between 0 and 1, not {self.validation}")


@dataclass(frozen=True, eq=False)
class Starts:
    """Where windows of one recording may end.

    Attributes:
        recording: The recording.
        training: First and last frame that may be "now" in training.
        validation: The same in validation.
        barred: First frame, and frame after the last, that no training target may lie in.
    """

    recording: Recording
    training: tuple[int, int]
    validation: tuple[int, int]
    barred: tuple[int, int]


def divided(recording: Recording, config: WindowConfig, hierarchy: Hierarchy) -> Starts:
    """Divide the starts of a recording into training and, later, validation.

    Windows start where they have all their frames, velocities if the recording has any, and at
    least one segment of the finest level ahead, or `FARTHEST_APART` frames of a longer one. As
    many frames lie between the two parts, and no training target lies in the frames that the
    validation is about.

    Raises:
        InputError: The recording is too short.
    """
    first = config.observed - 1
    segment = min(hierarchy.lengths[-1], FARTHEST_APART)
    last = len(recording) - 1 - segment
    if recording.velocity_frames:
        last = min(last, recording.velocity_frames - 1)
    cut = last - int((last - first + 1) * config.validation)
    if cut - segment < first or cut >= last:
        raise InputError(
            f"{recording.name}: {len(recording)} frames, {recording.velocity_frames} with "
            f"velocities, are too few for windows of {config.observed} frames and segments of "
            f"{segment}; lower batch.observed"
        )
    return Starts(recording, (first, cut - segment), (cut + 1, last), (cut + 1, last + segment + 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Windows and what came after them.

    Attributes:
        windows: All of one system and length.
        lags: Times after now, whole frames, ascending.
        truth: At these times.
    """

    windows: tuple[Window, ...]
    lags: Float[Tensor, " times"]
    truth: Truth


class Drawing:
    """Divide recordings of one system into training and validation, and draw from them.

    Args:
        recordings: All of one folder.
        names: Those to train on; the last part of each validates.
        config: What a step sees.
        hierarchy: Of the DoMiNO whose times are drawn; also of models that have no levels.

    Raises:
        InputError: A recording does not exist or is too short.
        UsageError: There is none, or one is named twice.
    """

    def __init__(
        self,
        recordings: Recordings,
        names: Sequence[str],
        config: WindowConfig,
        hierarchy: Hierarchy,
    ) -> None:
        if len(set(names)) < len(names):
            raise UsageError(f"a recording is named twice: {', '.join(names)}")
        self.source, self.config, self.hierarchy = recordings, config, hierarchy
        self.parts = [divided(recordings.named(name), config, hierarchy) for name in names]
        if not self.parts:
            raise UsageError("a training needs at least one recording")

    def drawn(self, generator: torch.Generator, lags: DrawLags | None = None) -> Drawn:
        """Draw the windows of a step, and times after them.

        Args:
            generator: Of all chance.
            lags: Draws the times; by default some in the first segment of the finest level and
                some in a few others. Targets that the validation is about are not known.
        """
        places = []
        for _ in range(self.config.windows):
            part = self.parts[_drawn(len(self.parts), generator)]
            first, last = part.training
            places.append((part, first + _drawn(last - first + 1, generator)))
        hidden = float(torch.rand((), generator=generator)) < self.config.hidden
        reach = min(len(part.recording) - 1 - now for part, now in places)
        reach = min(reach, self.hierarchy.horizon)
        times = (lags or self._lags)(reach, generator)
        return self.cut(places, times, hidden=hidden, barred=True)

    def validated(self) -> Iterator[Drawn]:
        """Return the same few windows each time, at lags spread evenly on a logarithmic axis."""
        reach = min(len(part.recording) - 1 - part.validation[1] for part in self.parts)
        lags = _scored_lags(min(reach, self.hierarchy.horizon), self.hierarchy)
        for part in self.parts:
            first, last = part.validation
            ends = torch.linspace(first, last, self.config.validation_windows)
            for now in ends.round().long().tolist():
                times = torch.tensor(lags, dtype=torch.float32)
                yield self.cut([(part, now)], times, hidden=False, barred=False)

    def fitting(self, knots: Sequence[int]) -> Iterator[Example]:
        """Return training windows evenly spread, with their futures at some frames after now.

        Raises:
            InputError: A recording does not reach that far.
        """
        after = torch.tensor(knots)
        for part in self.parts:
            first, last = part.training
            last = min(last, len(part.recording) - 1 - int(after[-1]))
            if last < first:
                raise InputError(
                    f"{part.recording.name}: {len(part.recording)} frames are too few for windows "
                    f"of {self.config.observed} and a horizon of {int(after[-1])}; lower "
                    "levels.horizon"
                )
            count = min(self.config.fitted_windows, last - first + 1)
            for now in torch.linspace(first, last, count).round().long().tolist():
                future = torch.from_numpy(part.recording.positions[(now + after).numpy()])
                yield Example(window=self.window(part.recording, now), future=future)

    def _lags(self, reach: int, generator: torch.Generator) -> Float[Tensor, " times"]:
        """Draw whole frames: some in the first finest segment, some in a few others."""
        config, length = self.config, self.hierarchy.lengths[-1]
        # The frame at which a segment ends belongs to the next one, which would cost a solve.
        near = min(length - 1, reach)
        lags = {_early(near, generator) for _ in range(config.near)}
        if reach > length:
            for _ in range(config.segments):
                start = self._segment(reach, generator) // length * length
                room = min(length, reach + 1 - start)
                lags.add(max(1, start + _early(room, generator) - 1))
                lags |= {max(1, start + _drawn(room, generator)) for _ in range(config.times - 1)}
        return torch.tensor(sorted(lags), dtype=torch.float32)

    def _segment(self, reach: int, generator: torch.Generator) -> int:
        """Draw a frame whose finest segment is solved: half of them soon after a coarser start.

        A coarser segment starts from states that few other times ask for, so evenly drawn times
        would leave its first frames almost unknown.
        """
        coarser = [one for one in self.hierarchy.lengths[1:-1] if one <= reach]
        if not coarser or _drawn(2, generator):
            return _early(reach, generator)
        longer = coarser[_drawn(len(coarser), generator)]
        start = longer * _early(reach // longer, generator)
        return start + _early(min(longer, reach + 1 - start), generator) - 1

    def cut(
        self,
        places: Sequence[tuple[Starts, int]],
        lags: Float[Tensor, " times"],
        *,
        hidden: bool,
        barred: bool,
    ) -> Drawn:
        """Read windows that end at some frames, and their futures.

        Args:
            places: Recordings, and the frame that is now in each window.
            lags: Whole frames after now.
            hidden: Whether velocities are hidden.
            barred: Whether targets that the validation is about are marked as not known.
        """
        return Drawn(
            windows=tuple(self.window(part.recording, now, hidden=hidden) for part, now in places),
            lags=lags,
            truth=_truth(places, lags.long(), barred=barred),
        )

    def window(self, recording: Recording, now: int, *, hidden: bool = False) -> Window:
        """Read the window that ends in a frame, with or without its velocities."""
        positions, velocities, box = recording.slice(now + 1 - self.config.observed, now + 1)
        return Window(
            system=self.source.system,
            positions=positions,
            velocities=None if hidden else velocities,
            box=box,
            frame_ps=self.source.frame_ps,
        )


def skills(
    lags: Float[Tensor, " times"],
    errors: Float[Tensor, " times"],
    reference: Float[Tensor, " times"],
) -> Mapping[str, float]:
    r"""Average :math:`1 - e / e_\text{ref}` over the lags of each of the `BANDS` that has any.

    Args:
        lags: Frames.
        errors: Mean square errors e, Å².
        reference: Those of what is to be beaten.
    """
    found = {}
    for name, low, high in BANDS:
        chosen = (lags >= low) & (lags <= high)
        if chosen.any():
            ratio = errors[chosen] / reference[chosen]
            found[f"skill_{name}"] = 1 - float(ratio.detach().mean())
    return found


def _truth(
    places: Sequence[tuple[Starts, int]], lags: Int[Tensor, " times"], *, barred: bool
) -> Truth:
    """Read what came after windows; targets in a barred block are marked as not known."""
    positions, velocities, known, moving = [], [], [], []
    for part, now in places:
        frames = now + lags
        there = frames < len(part.recording)
        with_velocities = frames < part.recording.velocity_frames
        if barred:
            free = (frames < part.barred[0]) | (frames >= part.barred[1])
            there, with_velocities = there & free, with_velocities & free
        rows = frames.clamp(max=len(part.recording) - 1).numpy()
        positions.append(torch.from_numpy(part.recording.positions[rows]))
        speeds = torch.zeros_like(positions[-1])
        if part.recording.velocities is not None and with_velocities.any():
            chosen = frames[with_velocities].numpy()
            speeds[with_velocities] = torch.from_numpy(part.recording.velocities[chosen])
        velocities.append(speeds)
        known.append(there)
        moving.append(with_velocities)
    return Truth(
        positions=torch.stack(positions, dim=1),
        known=torch.stack(known, dim=1),
        velocities=torch.stack(velocities, dim=1),
        velocities_known=torch.stack(moving, dim=1),
    )


def _scored_lags(reach: int, hierarchy: Hierarchy) -> list[int]:
    """Choose lags to validate at: many within the first finest segment, few beyond it."""
    near = min(hierarchy.lengths[-1], reach)
    return sorted({*knot_frames(near), *(lag for lag in knot_frames(reach, 2) if lag > near)})


def _drawn(count: int, generator: torch.Generator) -> int:
    """Draw a whole number below a count."""
    return int(torch.randint(count, (), generator=generator))


def _early(reach: int, generator: torch.Generator) -> int:
    """Draw a whole number from 1 to a reach, evenly in the logarithm."""
    place = float(torch.rand((), generator=generator))
    return min(reach, max(1, round(exp(place * log(reach + 0.5)))))
