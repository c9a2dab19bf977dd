"""Which segment of which level a time falls into."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import UsageError

_TOLERANCE = 1e-3
"""Frames: what rounding a time in ps to float32 may cost. A time this close before the start of a
segment is at its start, one this far beyond the horizon at the horizon."""


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    r"""Levels of segments, each level cutting the segments of the one above.

    A segment of level 0 is the whole horizon; one of level l > 0 is as long as the stride of
    level l − 1, and starts at a knot of that level. With the default, level 0 has one segment of
    8,000 frames, level 1 twenty of 400, level 2 four hundred of 20.

    Attributes:
        horizon: How far a forecast reaches, frames.
        strides: Frames between the knots of each level, coarse to fine; each divides the one
            before, and the first the horizon.
    """

    horizon: int = 8000
    strides: tuple[int, ...] = (400, 20, 1)

    def __post_init__(self) -> None:
        if not self.strides:
            raise UsageError("levels.strides should name at least one stride")
        longer = self.horizon
        for stride in self.strides:
            if not 0 < stride < longer or longer % stride:
                raise UsageError(
                    f"levels.strides: {stride} frames should divide {longer} and be less; each "
                    "stride divides the one before it, and the first the horizon"
                )
            longer = stride

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return len(self.strides)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames in a segment of each level."""
        return (self.horizon, *self.strides[:-1])

    @property
    def seams(self) -> tuple[int, ...]:
        """Frames around which a forecast may change at once: where coarser segments meet.

        With the first frame of such a segment come the last one before it and the first one after
        its first finest segment; of many segments the 1st, 2nd, 4th, … after now.
        """
        found: set[int] = set()
        for length in self.lengths[1:-1]:
            start = length
            while start < self.horizon:
                found |= {start - 1, start, start + self.lengths[-1]}
                start *= 2
        return tuple(sorted(found))

    def checked(self, lags: Float[Tensor, " times"]) -> Float[Tensor, " times"]:
        """Return lags in frames if all lie between now and the horizon.

        Raises:
            UsageError: One is negative, not finite, or beyond the horizon.
        """
        bad = ~((lags >= 0) & (lags <= self.horizon + _TOLERANCE))
        if bad.any():
            raise UsageError(
                f"a forecast reaches from 0 to {self.horizon} frames after the window; "
                f"{float(lags[bad][0]):g} frames were asked for"
            )
        return lags.clamp(max=self.horizon)

    def places(
        self, lags: Float[Tensor, " times"], level: int
    ) -> tuple[Int[Tensor, " times"], Float[Tensor, " times"]]:
        """Locate times in the segments of a level.

        Args:
            lags: Times after now, frames, within the horizon.
            level: From 0.

        Returns:
            The number of the segment that holds each time, and the part of it that has passed,
            from 0 to 1. A time at which two segments meet belongs to the later one, the horizon
            itself to the last.
        """
        length = self.lengths[level]
        last = self.horizon // length - 1
        segment = ((lags + _TOLERANCE) / length).floor().clamp(max=last)
        return segment.long(), (lags / length - segment).clamp(min=0)
