r"""What validation says of a trained forecast: how much of it to believe, and how wide it is.

.. math::
    a_k = \frac{\langle d, e \rangle}{\langle d, d \rangle} - 2 s_k \text{ from 0 to 1}, \qquad
    c_k^2 = \Big\langle \Big( \frac{e - a_k d}{\hat\sigma} \Big)^2 \Big\rangle

with d what the network adds to the linear forecast and e what that forecast misses, over all atoms
and axes of validation windows, at lags k. Where nothing can be known the best network adds nothing,
but a trained one adds a little noise. So only what validation proves is believed: s is the standard
error of the ratio, by leaving out one group of windows (a recording) at a time. And a spread that
was learned on training windows is a little too narrow on others.

An aligned molecule is in the end drawn to its mean structure: the forecast, now :math:`\hat r`,
becomes :math:`\hat r + p \, (y - \hat r)` with y the mean of the training frames and p found in
the same way.

Source: least squares recalibration as in model output statistics, Glahn and Lowry, J. Appl. Meteor.
11, 1203 (1972).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.motion.losses import Truth
from undula.motion.model import Base, Prediction


@dataclass(frozen=True, kw_only=True, eq=False)
class Recalibration:
    """Factors of deviation and spread by lag, for each level that is decoded.

    Attributes:
        knots: Frames after now, ascending; between them factors are linear in the logarithm, and
            before the first and after the last constant.
        amplitude: a, from 0 to 1.
        spread: c, positive.
        pull: p, from 0 to 1; 0 without a mean structure.
    """

    knots: tuple[int, ...]
    amplitude: Float[Tensor, "levels knots"]
    spread: Float[Tensor, "levels knots"]
    pull: Float[Tensor, "levels knots"]

    def __post_init__(self) -> None:
        shapes = {one.shape for one in (self.amplitude, self.spread, self.pull)}
        if len(shapes) > 1 or self.amplitude.shape[1:] != (len(self.knots),):
            raise InputError("a recalibration needs factors for each level at each of its knots")

    def applied(
        self,
        prediction: Prediction,
        base: Base,
        lags: Float[Tensor, " times"],
        level: int,
        reference: Float[Tensor, "atoms 3"] | None = None,
    ) -> Prediction:
        """Return a forecast with less of its deviation and another spread.

        Args:
            prediction: Decoded at ``level``.
            base: The linear forecast at the same times.
            lags: The times, frames.
            level: From 0, or from the last, −1.
            reference: The mean structure y, Å, that an aligned molecule is drawn to.
        """
        amplitude, spread, pull = (
            self._at(factors[level].to(lags), lags)
            for factors in (self.amplitude, self.spread, self.pull)
        )
        part = amplitude[:, None, None, None]
        mean = base.mean + part * (prediction.mean - base.mean)
        velocities = base.velocities + part * (prediction.velocities - base.velocities)
        if reference is not None:
            drawn = pull[:, None, None, None]
            mean = mean + drawn * (reference.to(mean) - mean)
            velocities = velocities * (1 - drawn)
        return replace(
            prediction,
            mean=mean,
            spread=prediction.spread * spread[:, None, None],
            velocities=velocities,
            parts=prediction.parts * part,
        )

    def pulled(
        self,
        mean: Float[Tensor, "knots *windows atoms 3"],
        reference: Float[Tensor, "atoms 3"],
        frames: Sequence[int],
    ) -> Float[Tensor, "knots *windows atoms 3"]:
        """Draw forecasts to the mean structure as at the finest level.

        Args:
            mean: Forecasts, Å.
            reference: The mean structure, Å.
            frames: After now, one for each forecast.
        """
        pull = self._at(self.pull[-1].to(mean), torch.tensor(frames).to(mean))
        drawn = pull.reshape(-1, *[1] * (mean.ndim - 1))
        return mean + drawn * (reference.to(mean) - mean)

    def _at(
        self, factors: Float[Tensor, " knots"], lags: Float[Tensor, " times"]
    ) -> Float[Tensor, " times"]:
        if len(self.knots) == 1:
            return factors.expand(len(lags))
        places = torch.tensor(self.knots, dtype=lags.dtype, device=lags.device).log()
        asked = lags.clamp(self.knots[0], self.knots[-1]).log()
        left = (torch.searchsorted(places, asked, right=True) - 1).clamp(0, len(places) - 2)
        share = (asked - places[left]) / (places[left + 1] - places[left])
        return torch.lerp(factors[left], factors[left + 1], share)


def fitted_recalibration(
    cases: Iterable[tuple[int, Sequence[Prediction], Base, Truth]],
    knots: Sequence[int],
    reference: Float[Tensor, "atoms 3"] | None = None,
) -> Recalibration:
    """Fit the factors on forecasts of validation windows.

    Args:
        cases: A number for the group of each case, such as its recording; forecasts decoded at
            each level, the linear forecast and what came, all at the knots; read once.
        knots: Frames after now, ascending.
        reference: The mean structure of an aligned molecule, Å.

    Raises:
        UsageError: There is no case.
    """
    groups: list[int] = []
    kept: list[tuple[list[tuple[Tensor, Tensor]], Base, Truth]] = []
    for group, predictions, base, truth in cases:
        groups.append(group)
        kept.append(([(p.mean - base.mean, p.spread) for p in predictions], base, truth))
    if not kept:
        raise UsageError("a recalibration needs at least one validation window")
    amplitudes, spreads, pulls = [], [], []
    for level in range(len(kept[0][0])):
        left, number = (torch.zeros(len(knots), dtype=torch.float64) for _ in range(2))
        means = [base.mean for _, base, _ in kept]
        ways = [some[level][0] for some, _, _ in kept]
        truths = [truth for _, _, truth in kept]
        amplitude = _believed(means, ways, truths, groups)
        means = _gone(means, ways, amplitude)
        pull = torch.zeros_like(amplitude)
        if reference is not None:
            ways = [reference.to(mean) - mean for mean in means]
            pull = _believed(means, ways, truths, groups)
            # Farther ahead than most validation windows reach, what held last still holds.
            known = torch.cat([truth.known.cpu() for truth in truths], dim=1)
            reached = (known.double().mean(dim=1) >= 0.5).nonzero()
            last = int(reached.max()) if len(reached) else 0
            pull = pull[torch.arange(len(knots)).clamp(max=last)]
            means = _gone(means, ways, pull)
        for (some, _, truth), mean in zip(kept, means, strict=True):
            miss = (truth.positions - mean) / some[level][1][..., None]
            left += _sums(miss.square(), truth)
            number += _sums(torch.ones_like(miss), truth)
        amplitudes.append(amplitude)
        pulls.append(pull)
        spreads.append(torch.where(number > 0, left / number.clamp(min=1), 1.0).sqrt())
    return Recalibration(
        knots=tuple(knots),
        amplitude=torch.stack(amplitudes).float(),
        spread=torch.stack(spreads).float().clamp(min=0.1, max=10.0),
        pull=torch.stack(pulls).float(),
    )


def _gone(
    means: Sequence[Tensor], ways: Sequence[Tensor], parts: Float[Tensor, " knots"]
) -> list[Tensor]:
    """Go a part of the way from each mean, another part at each knot."""
    return [
        mean + parts.to(mean)[:, None, None, None] * way
        for mean, way in zip(means, ways, strict=True)
    ]


def _believed(
    means: Sequence[Tensor], ways: Sequence[Tensor], truths: Sequence[Truth], groups: Sequence[int]
) -> Float[Tensor, " knots"]:
    """Return which part of each way leads to the truth, less twice its standard error, 0 to 1."""
    each = list(zip(means, ways, truths, strict=True))
    products = torch.stack([_sums((t.positions - m) * way, t) for m, way, t in each])
    squares = torch.stack([_sums(way * way, t) for _, way, t in each])

    def ratio(rows: Tensor) -> Tensor:
        below = squares[rows].sum(dim=0)
        return torch.where(below > 0, products[rows].sum(dim=0) / below.clamp(min=1e-30), 0.0)

    owner = torch.tensor(groups)
    names = owner.unique()
    whole = ratio(torch.ones_like(owner, dtype=torch.bool))
    if len(names) < 2:
        return whole.clamp(0, 1)
    without = torch.stack([ratio(owner != name) for name in names])
    count = len(names)
    error = ((count - 1) / count * (without - without.mean(dim=0)).square().sum(dim=0)).sqrt()
    return (whole - 2 * error).clamp(0, 1)


def _sums(values: Float[Tensor, "times windows atoms 3"], truth: Truth) -> Float[Tensor, " times"]:
    """Sum over atoms, axes and those windows that reach so far, in double precision."""
    each = values.double().sum(dim=(-1, -2))
    return (each * truth.known.to(each)).sum(dim=1).cpu()
