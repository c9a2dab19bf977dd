"""How far the samples of a forecast lie apart, and whether the truth lies among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from scipy.stats import rankdata
from torch import Tensor

from undula.errors import UsageError
from undula.geometry.comparison import wasserstein
from undula.surface.forecast import MovingSurface
from undula.types import Mesh

LEVELS = (0.5, 0.9)
"""Of the central intervals whose coverage is counted."""
BINS = 10
"""Of the occupancies, for their calibration."""
SAMPLES = "samples"
"""Name of the row of the samples."""
TYPICAL = "typical surface"
"""Name of the row of the model's typical surface, which has no spread."""


def with_spread(mesh: Mesh, moving: MovingSurface, time_ps: float) -> Mesh:
    r"""Add the scalar ``spread`` to a mesh: the standard deviation of the samples' fields, Å.

    .. math:: s(x) = \sqrt{\tfrac{1}{N - 1} \sum_i (f_i(x, t) - \bar f(x, t))^2}

    Where the field changes by 1 Å per Å, as a signed distance does, this is how far the surface
    itself moves to and fro along its normal. With N samples it is uncertain by the part
    1 / √(2N): 12 % for 32.

    Args:
        mesh: Of the forecast, its first frame or a sample, in the structure's pose.
        moving: A forecast with at least two samples.
        time_ps: The time at which they are compared, ps.

    Raises:
        UsageError: There are fewer than two samples.
    """
    if moving.samples < 2:
        raise UsageError(f"a spread needs at least two samples, not {moving.samples}")
    spread = mesh.vertices.new_zeros(len(mesh.vertices))
    if not mesh.is_empty:
        spread = moving.sample_sdf(mesh.vertices.double(), time_ps).std(dim=0)
    return replace(mesh, scalars=dict(mesh.scalars) | {"spread": spread.to(mesh.vertices.dtype)})


def crps(samples: Float[Tensor, "samples n"], truth: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""Compute the continuous ranked probability score of some samples, for each number.

    .. math:: \frac1N \sum_i |x_i - y| - \frac1{2 N (N - 1)} \sum_{i, j} |x_i - x_j|

    The smaller the better, in the unit of the samples; the expected score is least for samples
    of the true distribution, whatever N is. A forecast without a spread has the score |x − y|,
    so both compare. A single number may score below 0.

    Args:
        samples: x, at least two of each number.
        truth: y.

    Raises:
        UsageError: There are fewer than two samples.

    Source: Ferro (2014), "fair" scores for ensemble forecasts, with the sum over pairs taken from
    the sorted samples.
    """
    count = len(samples)
    if count < 2:
        raise UsageError(f"the score of a distribution needs at least two samples, not {count}")
    weight = 2 * torch.arange(count, dtype=samples.dtype, device=samples.device) - (count - 1)
    apart = (weight[:, None] * samples.sort(dim=0).values).sum(dim=0) / (count * (count - 1))
    return (samples - truth).abs().mean(dim=0) - apart


def normal_crps(error: Float[Tensor, "*many"], deviation: float) -> Float[Tensor, "*many"]:
    r"""Compute the score of a normal distribution whose centre is off by some error.

    .. math:: \sigma \left( z \, (2 \Phi(z) - 1) + 2 \varphi(z) - \pi^{-1/2} \right), \quad
        z = |y - \mu| / \sigma

    Args:
        error: y − μ.
        deviation: σ, positive.

    Source: Gneiting et al. (2005), eq. 5.
    """
    z = error / deviation
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return deviation * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def best_deviation(error: Float[Tensor, "*many"]) -> float:
    """Choose in hindsight the one σ with the best mean `normal_crps`, Å, to 7 %.

    Args:
        error: Of the centres; not all zero.
    """
    rough = float(error.abs().mean())
    candidates = [rough * 1.07**step for step in range(-14, 19)]
    return min(candidates, key=lambda deviation: float(normal_crps(error, deviation).mean()))


def ranks(
    samples: Float[Tensor, "samples n"], truth: Float[Tensor, " n"]
) -> Int[Tensor, " samples+1"]:
    """Count at how many places 0, 1, … all samples lie below the truth.

    Even counts are those of samples that the truth could be one of. High ends: the samples lie
    too close together; a high middle: too far apart; one high end: all to one side.
    """
    return torch.bincount((samples < truth).sum(dim=0), minlength=len(samples) + 1)


def covered(
    samples: Float[Tensor, "samples n"], truth: Float[Tensor, " n"], level: float
) -> Float[Tensor, ""]:
    """Return at which part of the places the truth lies in the samples' central interval.

    The ends are the quantiles k / (N + 1) of the sorted samples, between which a truth that is one
    of them lies exactly as often as it should. Beyond the outermost samples there are
    none: `reachable`.

    Args:
        samples: At least two.
        truth: In the same unit.
        level: Of the interval, such as 0.9.
    """
    ends = np.quantile(
        samples.cpu().double().numpy(), [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull"
    )
    low, high = torch.from_numpy(ends).to(truth)
    return ((low <= truth) & (truth <= high)).double().mean()


def reachable(level: float, samples: int) -> float:
    """Return the coverage that N perfect samples have: at most that of all, (N − 1) / (N + 1)."""
    return min(level, (samples - 1) / (samples + 1))


def rank_correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Return Spearman's ρ of two lists of numbers; NaN where one of them is constant."""
    first, second = (rankdata(x.detach().cpu().numpy()) for x in (a, b))
    if len(first) < 2 or not np.ptp(first) or not np.ptp(second):
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Forecast probabilities beside how often it happened.

    Attributes:
        forecast: Mean probability of the places of each bin.
        happened: Mean frequency at the same places.
        places: How many there are in each bin; empty bins are left out.
    """

    forecast: list[float]
    happened: list[float]
    places: list[int]

    @classmethod
    def of(cls, forecast: Float[Tensor, " n"], happened: Float[Tensor, " n"]) -> Reliability:
        """Sort places into `BINS` equal bins by what was forecast."""
        bins = (forecast * BINS).long().clamp(0, BINS - 1)
        places = torch.bincount(bins, minlength=BINS)
        told, found = (
            torch.bincount(bins, weights=values.double(), minlength=BINS) / places.clamp(min=1)
            for values in (forecast, happened)
        )
        full = places > 0
        return cls(
            forecast=told[full].tolist(),
            happened=found[full].tolist(),
            places=places[full].tolist(),
        )

    @property
    def error(self) -> float:
        """The mean difference of both, weighted by places; 0 is perfect."""
        gaps = np.abs(np.subtract(self.forecast, self.happened))
        return float(np.average(gaps, weights=self.places))


@dataclass(frozen=True, kw_only=True, eq=False)
class SpreadRow:
    """What a forecast, with or without a spread, is worth as a distribution.

    Attributes:
        name: `SAMPLES`, or that of another forecast.
        kind: Whether it is the model's, something a model must beat, or an oracle that was told
            something of the truth.
        crps: Of the signed distance at points around the first frame, one per frame, Å; none
            if the row says nothing about distances.
        occupancy: Part of the time that each point is inside; none if it says nothing of it.
        mobility: Surface-RMSF: standard deviation over the frames at each surface point, Å, of
            samples the root mean square (each sample is a course of its own, as the truth is
            one), of an ensemble that is the same at all times that over its members; none
            likewise.
        relative: Whether only the order of ``mobility`` means something.
        members: How many samples or members it has; 1 for a forecast without a spread.
        coverage: By level, how often the truth lay in the central interval; none without members.
        volumes: Å³, of all members and frames; one number for a surface that does not move;
            none if the row has no surface.
        areas: The same of areas, Å².
    """

    name: str
    kind: Literal["model", "trivial", "oracle"]
    crps: list[float] | None = None
    occupancy: Float[Tensor, " n"] | None = None
    mobility: Float[Tensor, " m"] | None = None
    relative: bool = False
    members: int = 1
    coverage: Mapping[float, float] | None = None
    volumes: Sequence[float] | None = None
    areas: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class SizeGap:
    """A distribution of volumes or areas beside the true one.

    Attributes:
        mean: Å³ or Å².
        deviation: Standard deviation.
        distance: `wasserstein` from the true distribution, in the same unit.
        relative: The same as a part of the true mean.
    """

    mean: float
    deviation: float
    distance: float
    relative: float

    @classmethod
    def of(cls, found: Sequence[float], true: Sequence[float]) -> SizeGap:
        """Compare two sets of sizes."""
        distance = wasserstein(found, true)
        return cls(
            mean=float(np.mean(found)),
            deviation=float(np.std(found)),
            distance=distance,
            relative=distance / float(np.mean(true)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleScores:
    """A forecast, its samples if it has any, as a distribution beside other forecasts.

    Attributes:
        times_ps: Of the frames that were compared; none is the first frame itself.
        samples: How many there are; 0 for a model without any.
        rows: The model's first: that of the samples, if there are any, then the typical surface.
        ranks: Rank of the truth among the samples, counted over points and frames; none without.
        occupancy: Part of the frames in which each point is truly inside.
        mobility: True surface-RMSF: standard deviation over the frames at each surface point, Å.
        volumes: True volume of each frame, Å³.
        areas: True area of each frame, Å².
    """

    times_ps: tuple[float, ...]
    samples: int
    rows: tuple[SpreadRow, ...]
    ranks: list[int]
    occupancy: Float[Tensor, " n"]
    mobility: Float[Tensor, " m"]
    volumes: list[float]
    areas: list[float]

    def volume_gap(self, row: SpreadRow) -> SizeGap | None:
        """Return a row's volumes beside the true ones, Å³."""
        return None if row.volumes is None else SizeGap.of(row.volumes, self.volumes)

    def area_gap(self, row: SpreadRow) -> SizeGap | None:
        """Return a row's areas beside the true ones, Å²."""
        return None if row.areas is None else SizeGap.of(row.areas, self.areas)

    def measures(self, row: SpreadRow) -> dict[str, float]:
        """Return every measure of a row that it has.

        Returns:
            =================================  ===================================================
            ``crps_angstrom``                  `crps`, mean over frames and points, Å
            ``coverage_50``, ``coverage_90``   `covered`, and with ``_error`` how far from right
            ``rmsf_rank_correlation``          surface-RMSF: Spearman's ρ with the truth's
            ``rmsf_error_angstrom``            its mean absolute error, Å
            ``rmsf_angstrom``                  its mean, Å
            ``occupancy_brier``                mean square error of the occupancy over time
            ``occupancy_error``                `Reliability.error`
            ``volume_angstrom3``               mean volume, Å³; with ``_deviation`` its deviation,
                                               with ``_wasserstein`` the distance of the
                                               distributions, with ``_wasserstein_relative`` as a
                                               part of the true mean
            ``area_angstrom2``                 the same of areas, Å²
            =================================  ===================================================
        """
        found: dict[str, float | None] = {
            "crps_angstrom": None if row.crps is None else float(np.mean(row.crps)),
            "rmsf_rank_correlation": self.mobility_order(row),
            "rmsf_error_angstrom": self.mobility_error(row),
            "occupancy_brier": self.brier(row),
        }
        for level, held in (row.coverage or {}).items():
            found[f"coverage_{level:.0%}".rstrip("%")] = held
            off = abs(held - reachable(level, row.members))
            found[f"coverage_{level:.0%}".rstrip("%") + "_error"] = off
        if row.mobility is not None and not row.relative:
            found["rmsf_angstrom"] = float(row.mobility.mean())
        if (reliability := self.reliability(row)) is not None:
            found["occupancy_error"] = reliability.error
        for name, gap in (
            ("volume_angstrom3", self.volume_gap(row)),
            ("area_angstrom2", self.area_gap(row)),
        ):
            if gap is not None:
                found[name] = gap.mean
                found[f"{name}_deviation"] = gap.deviation
                found[f"{name}_wasserstein"] = gap.distance
                found[f"{name}_wasserstein_relative"] = gap.relative
        return {name: value for name, value in found.items() if value is not None}

    def brier(self, row: SpreadRow) -> float | None:
        r"""Return the mean square error of a row's occupancy against the frames' insides.

        .. math:: \overline{(\hat p - o_t)^2} = \overline{(\hat p - p)^2} + \overline{p (1 - p)}

        over points and frames t, with o either 0 or 1 and p its mean over the frames.
        """
        if row.occupancy is None:
            return None
        return float((row.occupancy - self.occupancy).square().mean()) + self.brier_floor

    @property
    def brier_floor(self) -> float:
        """The score of the true occupancy itself: no forecast that does not move is better."""
        return float((self.occupancy * (1 - self.occupancy)).mean())

    def reliability(self, row: SpreadRow) -> Reliability | None:
        """Return a row's occupancies beside the true ones."""
        if row.occupancy is None:
            return None
        return Reliability.of(row.occupancy, self.occupancy)

    def mobility_order(self, row: SpreadRow) -> float | None:
        """Return Spearman's ρ of a row's mobility with the truth; none where either is constant."""
        if row.mobility is None:
            return None
        found = rank_correlation(row.mobility, self.mobility)
        return None if np.isnan(found) else found

    def mobility_error(self, row: SpreadRow) -> float | None:
        """Return the mean error of a row's mobility, Å."""
        if row.mobility is None or row.relative:
            return None
        return float((row.mobility - self.mobility).abs().mean())


class Moments:
    """Running mean and deviation of fields over frames, of one forecast or of several samples."""

    def __init__(self) -> None:
        self._frames = 0
        self._sum = torch.zeros(1, 1, dtype=torch.float64)
        self._squares = torch.zeros(1, 1, dtype=torch.float64)

    def add(self, fields: Shaped[Tensor, "samples n"]) -> None:
        """Count in a frame: the fields of all samples, or the one of a forecast without."""
        values = fields.double()
        self._frames += 1
        self._sum = self._sum + values
        self._squares = self._squares + values.square()

    @property
    def mean(self) -> Float[Tensor, " n"]:
        """The mean over frames and samples."""
        return self._sum.mean(dim=0) / self._frames

    @property
    def deviation(self) -> Float[Tensor, " n"]:
        """The standard deviation over the frames of each sample, root mean square over samples."""
        variance = self._squares / self._frames - (self._sum / self._frames).square()
        return variance.mean(dim=0).clamp(min=0).sqrt()

    @property
    def pooled(self) -> Float[Tensor, " n"]:
        """The standard deviation over all frames and samples together."""
        variance = self._squares.mean(dim=0) / self._frames - self.mean.square()
        return variance.clamp(min=0).sqrt()
