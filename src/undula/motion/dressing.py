r"""Samples of a single molecule: forecasts dressed with errors that really happened.

A molecule that crosses from one basin of its torsions to another is not normally distributed, and
a normal cloud around its mean structure has broken bonds. What the linear forecast missed in
training windows has the right shape: far ahead, where it forecasts the mean structure, mean plus
miss *is* a structure of the training data.

.. math::
    r^{(s)}(t) = \hat r(t) + \frac{\hat\sigma(t)}{\sigma(t)} \, e_{m_s(t)}(t), \qquad
    P\big(m_s(t') = m_s(t)\big) = e^{-|c(t') - c(t)|} + \ldots

where m picks a training window. A sample keeps its window for as long as errors last by the
climatology's clock c and then goes over to another, so that at each time it is one that happened,
and over time errors are forgotten as fast as they were in training.

Source: ensemble dressing, Roulston and Smith, Tellus A 55, 16 (2003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError
from undula.motion.climatology import Climatology
from undula.motion.windows import Window

TOGETHER = 1000
"""Frames: up to this lag the errors of a window stay together; farther ones are of any window."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dressing:
    """Errors of the linear forecast in training windows of one aligned molecule.

    Attributes:
        knots: Frames after now, ascending.
        errors: True minus forecast positions, Å.
    """

    knots: tuple[int, ...]
    errors: Float[Tensor, "knots members atoms 3"]

    def __post_init__(self) -> None:
        if self.errors.ndim != 4 or len(self.errors) != len(self.knots) or not len(self.knots):
            raise InputError("a dressing needs errors at each of its knots")

    def nearest(self, lags: Float[Tensor, " times"]) -> Int[Tensor, " times"]:
        """Return the knot that is nearest to each lag, in the logarithm."""
        places = torch.tensor(self.knots, dtype=lags.dtype, device=lags.device).log()
        asked = lags.clamp(min=self.knots[0]).log()
        return (asked[:, None] - places).abs().argmin(dim=1)

    def size(self, lags: Float[Tensor, " times"]) -> Float[Tensor, " times"]:
        """Compute the root mean square of the errors at each lag, along an axis, Å."""
        each = self.errors.square().mean(dim=(1, 2, 3)).sqrt()
        return each.to(lags)[self.nearest(lags)]

    def drawn(
        self,
        lags: Float[Tensor, " times"],
        clock: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"]:
        """Draw courses of errors.

        Args:
            lags: Times after now, frames, in any order.
            clock: c, growing with time; as long as it stands still a course keeps its window.
            count: How many courses.
            generator: On any device.
        """
        order = torch.argsort(lags, stable=True)
        members = self.errors.shape[1]
        fresh = torch.randint(
            members, (count, len(lags)), generator=generator, device=generator.device
        ).to(lags.device)
        chance = torch.rand((count, len(lags)), generator=generator, device=generator.device)
        kept = torch.exp(-clock[order].diff(prepend=clock[order][:1]).abs()).to(lags.device)
        chosen = torch.empty_like(fresh)
        chosen[:, order[0]] = fresh[:, 0]
        for place in range(1, len(order)):
            stays = chance[:, place].to(kept) < kept[place]
            before = chosen[:, order[place - 1]]
            chosen[:, order[place]] = torch.where(stays, before, fresh[:, place])
        return self.errors.to(lags.device)[self.nearest(lags), chosen]


def dressing_starts(first: int, frames: int, knots: Sequence[int], members: int) -> list[list[int]]:
    """Choose for each knot in which frames the windows end whose errors are kept.

    Args:
        first: The earliest frame that can be now.
        frames: In the recording.
        knots: Frames after now.
        members: How many windows a knot has; where there are fewer frames some occur again.

    Raises:
        InputError: A recording is too short for the farthest knot.
    """
    chosen = []
    for knot in knots:
        last = frames - 1 - max(knot, min(TOGETHER, knots[-1]))
        if last < first:
            raise InputError(f"{frames} frames are too few for an error {knot} frames ahead")
        chosen.append(torch.linspace(first, last, members).round().long().tolist())
    return chosen


def fitted_dressing(
    window_at: Callable[[int], Window],
    future_at: Callable[[int], Float[Tensor, "atoms 3"]],
    starts: Sequence[Sequence[int]],
    climatology: Climatology,
    drawn: Callable[[Float[Tensor, "knots atoms 3"]], Float[Tensor, "knots atoms 3"]],
) -> Float[Tensor, "knots members atoms 3"]:
    """Collect what the linear forecast missed.

    Args:
        window_at: The training window that ends in a frame.
        future_at: The positions in a frame, Å.
        starts: Of each knot of the climatology, as many for each.
        climatology: The linear forecast.
        drawn: What becomes of it at all knots; see `undula.motion.recalibration`.
    """
    lags_ps = torch.tensor(climatology.knots) * climatology.frame_ps
    errors: list[list[Tensor]] = [[] for _ in climatology.knots]
    wanted: dict[int, list[int]] = {}
    for number, some in enumerate(starts):
        for now in some:
            wanted.setdefault(now, []).append(number)
    for now in sorted(wanted):
        forecast = drawn(climatology.expected(window_at(now), lags_ps).mean)
        for number in wanted[now]:
            truth = future_at(now + climatology.knots[number])
            errors[number].append(truth - forecast[number])
    return torch.stack([torch.stack(some) for some in errors])
