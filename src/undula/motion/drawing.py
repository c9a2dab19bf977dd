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
from undula.motion.climatology import Example, knot_frames
from undula.motion.hierarchy import Hierarchy
from undula.motion.losses import Truth
from undula.motion.task import Starts, WindowConfig, divided
from undula.motion.windows import Window

DrawLags = Callable[[int, torch.Generator], Tensor]
"""Draws whole frames, ascending, up to the last one that recordings and horizon reach."""

BANDS = (("near", 2, 10), ("middle", 11, 100), ("far", 101, 10**9))
"""Names of ranges of lags, and their first and last frames."""


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

    With the same settings it draws what `undula.motion.task.MotionTask` draws.

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
        return self._cut(places, times, hidden=hidden, barred=True)

    def validated(self) -> Iterator[Drawn]:
        """Return the same few windows each time, at lags spread evenly on a logarithmic axis."""
        reach = min(len(part.recording) - 1 - part.validation[1] for part in self.parts)
        lags = _scored_lags(min(reach, self.hierarchy.horizon), self.hierarchy)
        for part in self.parts:
            first, last = part.validation
            ends = torch.linspace(first, last, self.config.validation_windows)
            for now in ends.round().long().tolist():
                times = torch.tensor(lags, dtype=torch.float32)
                yield self._cut([(part, now)], times, hidden=False, barred=False)

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
                    f"of {self.config.observed} and a horizon of {int(after[-1])}; lower the "
                    "horizon"
                )
            count = min(self.config.fitted_windows, last - first + 1)
            for now in torch.linspace(first, last, count).round().long().tolist():
                future = torch.from_numpy(part.recording.positions[(now + after).numpy()])
                yield Example(window=self._window(part.recording, now, False), future=future)

    def _lags(self, reach: int, generator: torch.Generator) -> Float[Tensor, " times"]:
        """Draw whole frames: some in the first finest segment, some in a few others."""
        config, length = self.config, self.hierarchy.lengths[-1]
        # The frame at which a segment ends belongs to the next one, which would cost a solve.
        near = min(length - 1, reach)
        lags = {_early(near, generator) for _ in range(config.near)}
        if reach > length:
            for _ in range(config.segments):
                start = _early(reach, generator) // length * length
                room = min(length, reach + 1 - start)
                lags |= {max(1, start + _drawn(room, generator)) for _ in range(config.times)}
        return torch.tensor(sorted(lags), dtype=torch.float32)

    def _cut(
        self,
        places: Sequence[tuple[Starts, int]],
        lags: Float[Tensor, " times"],
        *,
        hidden: bool,
        barred: bool,
    ) -> Drawn:
        """Read windows that end at some frames, and their futures."""
        return Drawn(
            windows=tuple(self._window(part.recording, now, hidden) for part, now in places),
            lags=lags,
            truth=_truth(places, lags.long(), barred=barred),
        )

    def _window(self, recording: Recording, now: int, hidden: bool) -> Window:
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
