r"""How good a forecast of atoms is: its error in two conventions, skill, and its distribution.

Two errors stand side by side. `physical_error` compares unwrapped positions in Å². `paper_error`
is the published one: positions wrapped into the box and velocities, each stretched to [−1, 1] by
the range that training recordings span, averaged over six features. Wrapping punishes a right
forecast next to a wall, and a constant gets 1/3 for the positions whatever the dynamics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.geometry.comparison import skill as error_removed
from undula.geometry.distances import minimum_image
from undula.types import MolecularSystem

TARGET_ENDS = (100, 200, 1000, 2000, 3000, 5000, 8000)
"""Last frames of the published target windows."""

TARGET_FRAMES = 20
"""How many frames a target window has."""

Images = Literal["wrapped", "nearest"]
"""Whether positions on both sides of a wall are far apart, as published, or near."""


def physical_error(
    forecast: Float[Tensor, "times atoms 3"],
    truth: Float[Tensor, "times atoms 3"],
    box: Float[Tensor, "3 3"] | None = None,
) -> Float[Tensor, " times"]:
    """Compute the mean square error along an axis, Å².

    Args:
        forecast: Expected positions, unwrapped, Å.
        truth: What happened, unwrapped, Å.
        box: Where given, the shortest image of each error counts: it cannot grow beyond that of
            a random place in the box.
    """
    error = forecast - truth
    if box is not None:
        error = _nearest_image(error, box)
    return error.square().mean(dim=(-1, -2))


def _nearest_image(
    error: Float[Tensor, "times atoms 3"], box: Float[Tensor, "3 3"]
) -> Float[Tensor, "times atoms 3"]:
    return minimum_image(error.reshape(-1, 3), box.to(error)).reshape(error.shape)


def wrapped(
    positions: Float[Tensor, "*frames atoms 3"],
    system: MolecularSystem,
    box: Float[Tensor, "3 3"],
) -> Float[Tensor, "*frames atoms 3"]:
    """Shift every molecule as a whole so that the mean of its atoms lies in the box, Å."""
    cell = box.to(positions)
    centres = _molecule_means(positions, system)
    shift = (centres @ torch.linalg.inv(cell)).floor() @ cell
    return positions - shift[..., system.molecules, :]


def expected_wrapped(
    forecast: Float[Tensor, "times atoms 3"],
    spread: Float[Tensor, "times atoms"],
    system: MolecularSystem,
    box: Float[Tensor, "3 3"],
) -> Float[Tensor, "times atoms 3"]:
    r"""Compute where a normally distributed molecule is expected once it is wrapped into the box.

    .. math:: \langle x \bmod L \rangle = \frac L2 - \frac L\pi \sum_{n \ge 1}
        \frac{e^{-2 \pi^2 n^2 \sigma^2 / L^2}}{n} \sin \frac{2 \pi n \mu}{L}

    The best forecast under the wrapped error: next to a wall it lies between both sides, and
    when σ reaches L/2 it is the centre of the box. Where σ is below 0.3 L the same comes from
    the normal distribution's tails beyond the walls; the two differ by less than 1e-7 L.

    Args:
        forecast: Mean μ, unwrapped, Å.
        spread: σ along each axis, Å; of a molecule the mean of its atoms counts.
        system: Which atoms make molecules.
        box: Rectangular, edges along the axes, Å.

    Raises:
        InputError: The box is not rectangular.
    """
    lengths = box.to(forecast).diagonal()
    if not torch.equal(torch.diag(lengths), box.to(forecast)):
        raise InputError("expected wrapped positions are known for rectangular boxes only")
    centres = _molecule_means(forecast, system)
    widths = _molecule_means(spread.unsqueeze(-1), system)
    place, width = (centres / lengths).remainder(1), widths / lengths
    series = torch.full_like(place, 0.5)
    for n in range(1, 5):
        decay = torch.exp(-2 * (math.pi * n * width).square())
        series = series - decay * torch.sin(2 * math.pi * n * place) / (math.pi * n)
    tails = place.clone()
    narrow = width.clamp(min=1e-9)
    for wall in (1, 2):
        tails = tails - torch.special.ndtr((place - wall) / narrow)
        tails = tails + torch.special.ndtr((1 - wall - place) / narrow)
    expected = torch.where(width > 0.3, series, tails) * lengths
    return forecast + (expected - centres)[..., system.molecules, :]


def _molecule_means(
    values: Float[Tensor, "*frames atoms n"], system: MolecularSystem
) -> Float[Tensor, "*frames molecules n"]:
    count, molecules = system.molecule_count, system.molecules
    size = torch.bincount(molecules, minlength=count).to(values)
    total = values.new_zeros(*values.shape[:-2], count, values.shape[-1])
    return total.index_add_(-2, molecules, values) / size[:, None]


@dataclass(frozen=True, kw_only=True)
class PaperRanges:
    """The lowest and highest numbers in the observed parts of all training recordings.

    Attributes:
        position: Of wrapped coordinates on all axes, Å.
        velocity: Of velocities on all axes, Å/ps; none where they are not known.
    """

    position: tuple[float, float]
    velocity: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for low, high in (self.position, self.velocity or (0.0, 1.0)):
            if not low < high:
                raise UsageError(f"a range of training data should not be empty: {low} to {high}")


def paper_ranges(
    observed: Iterable[
        tuple[
            Float[Tensor, "frames atoms 3"],
            Float[Tensor, "frames atoms 3"] | None,
            Float[Tensor, "3 3"] | None,
        ]
    ],
    system: MolecularSystem,
) -> PaperRanges:
    """Find the ranges by which the published error is normalised.

    Args:
        observed: Positions (Å, unwrapped), velocities and box of the observed part of each
            training recording.
        system: Which atoms make molecules.

    Raises:
        UsageError: There are no recordings, or only some have velocities.
    """
    positions: list[Tensor] = []
    velocities: list[Tensor] = []
    for place, speed, box in observed:
        inside = place if box is None else wrapped(place, system, box)
        positions.append(torch.stack(inside.aminmax()))
        if speed is not None:
            velocities.append(torch.stack(speed.aminmax()))
    if not positions or (velocities and len(velocities) < len(positions)):
        raise UsageError(
            f"ranges need recordings, with velocities in all or in none: there are "
            f"{len(positions)}, {len(velocities)} with velocities"
        )
    velocity = _range(velocities) if velocities else None
    return PaperRanges(position=_range(positions), velocity=velocity)


def _range(ends: list[Tensor]) -> tuple[float, float]:
    low, high = torch.stack(ends).T
    return float(low.min()), float(high.max())


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """Positions and velocities at some times, forecast or true.

    Attributes:
        positions: Å, unwrapped.
        velocities: Å/ps; none where they are not known.
    """

    positions: Float[Tensor, "times atoms 3"]
    velocities: Float[Tensor, "times atoms 3"] | None = None


def paper_error(
    forecast: Motion,
    truth: Motion,
    system: MolecularSystem,
    box: Float[Tensor, "3 3"] | None,
    ranges: PaperRanges,
    images: Images = "wrapped",
    atoms: Int[Tensor, " chosen"] | None = None,
) -> Float[Tensor, " times"]:
    r"""Compute the published error: the mean square over three or six normalised features.

    .. math:: \Big\langle \Big( \frac{2 (x - \hat x)}{\max - \min} \Big)^2 \Big\rangle, \quad
        x \text{ wrapped coordinates and velocities, each with its range}

    Args:
        forecast: Expected positions and velocities. Positions that are wrapped already
            (`expected_wrapped`) stay where they are, but for rounding.
        truth: What happened.
        system: Molecules are wrapped whole.
        box: Of the target frames; none for an isolated molecule, which is not wrapped.
        ranges: Of the training recordings; velocities count where they have a range.
        images: "nearest" takes the shortest image of each positional error instead.
        atoms: Those that count; all if there are none. Molecules are wrapped whole before.

    Returns:
        Mean over atoms and features at each time.

    Raises:
        UsageError: Velocities count, but the forecast or the truth has none.

    Source: the slides' Tables 1 and 3 as the public code computes them; the slides say that
    positions alone count.
    """
    error = forecast.positions - truth.positions
    if box is not None and images == "nearest":
        error = _nearest_image(error, box)
    elif box is not None:
        error = wrapped(forecast.positions, system, box) - wrapped(truth.positions, system, box)
    features = [error * 2 / (ranges.position[1] - ranges.position[0])]
    if ranges.velocity is not None:
        if forecast.velocities is None or truth.velocities is None:
            raise UsageError("the published error counts velocities, but some are not known")
        scale = 2 / (ranges.velocity[1] - ranges.velocity[0])
        features.append((forecast.velocities - truth.velocities) * scale)
    found = torch.cat(features, dim=-1)
    counted = found if atoms is None else found[:, atoms]
    return counted.square().mean(dim=(-1, -2))


@dataclass(frozen=True, kw_only=True)
class HorizonBin:
    """Some frames after now.

    Attributes:
        first: The first frame, from 1.
        last: The last one.
    """

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise UsageError(
                f"frames {self.first} to {self.last} after now are no part of a future"
            )

    def __str__(self) -> str:
        return str(self.last) if self.first == self.last else f"{self.first}–{self.last}"

    def mask(self, frames: Int[Tensor, " times"]) -> Tensor:
        """Return which frames belong to it."""
        return (frames >= self.first) & (frames <= self.last)


def target_windows(horizon: int) -> list[HorizonBin]:
    """Return the published target windows up to a horizon, each of 20 frames.

    Where the horizon is not the end of one, a last window ends there.

    Raises:
        UsageError: The horizon is shorter than a window.
    """
    if horizon < TARGET_FRAMES:
        raise UsageError(f"a target window has {TARGET_FRAMES} frames, the horizon only {horizon}")
    ends = [end for end in TARGET_ENDS if end < horizon] + [horizon]
    return [HorizonBin(first=end - TARGET_FRAMES + 1, last=end) for end in ends]


def horizon_bins(horizon: int) -> list[HorizonBin]:
    """Divide a horizon into 1, 2, 3–5, 6–10, 11–20, 21–50, … frames; the last bin ends with it."""
    edges, scale = [0], 1
    while edges[-1] < horizon:
        edges += [scale, 2 * scale, 5 * scale]
        scale *= 10
    kept = [edge for edge in edges if edge < horizon] + [horizon]
    return [HorizonBin(first=a + 1, last=b) for a, b in pairwise(kept)]


@dataclass(frozen=True, kw_only=True)
class Skill:
    """What part of the best trivial error a forecast removes.

    Attributes:
        value: 1 − error / best trivial error.
        low: Lower end of the 95 % interval.
        high: Upper end.
        best: Name of the trivial row with the least error.
        trajectories: n, how many independent trajectories there are.
        blocks: How many time blocks were redrawn in each.
    """

    value: float
    low: float
    high: float
    best: str
    trajectories: int
    blocks: int


def skill(
    errors: Float[Tensor, "trajectories units"],
    trivial: Mapping[str, Float[Tensor, "trajectories units"]],
    generator: torch.Generator,
    blocks: int = 10,
    draws: int = 2000,
) -> Skill:
    """Compute the skill over the best trivial row, with an interval from redrawn time blocks.

    Inside every trajectory consecutive units make blocks, and whole blocks are redrawn with
    replacement, the same for all rows; trajectories themselves are not redrawn, so the interval
    says how far other times of these trajectories may lie, not other trajectories. Blocks should
    be longer than the memory of the system.

    Args:
        errors: Mean square errors in one part of the horizon, in order of time: a unit is a
            window, or, where there is one window, a target frame.
        trivial: The same for each trivial row. Which is best is decided once, on all units.
        generator: On the CPU.
        blocks: Of each trajectory; as many as there are units, if those are fewer.
        draws: How often.

    Raises:
        UsageError: There are no trivial rows or no units.
    """
    if not trivial or errors.numel() == 0:
        raise UsageError("a skill needs errors and at least one trivial row")
    best = min(trivial, key=lambda name: float(trivial[name].mean()))
    trajectories, units = errors.shape
    count = min(blocks, units)
    own, other = (
        torch.stack(
            [block.sum(dim=1) for block in rows.detach().cpu().double().tensor_split(count, dim=1)],
            dim=1,
        )
        for rows in (errors, trivial[best])
    )
    drawn = torch.randint(count, (draws, trajectories, count), generator=generator)
    each = torch.arange(trajectories)[:, None]
    redrawn = 1 - own[each, drawn].sum(dim=(1, 2)) / other[each, drawn].sum(dim=(1, 2))
    low, high = torch.quantile(redrawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Skill(
        value=error_removed(float(own.sum()), float(other.sum())),
        low=low,
        high=high,
        best=best,
        trajectories=trajectories,
        blocks=count,
    )


def crps_normal(
    forecast: Float[Tensor, "*many"], spread: Float[Tensor, "*many"], truth: Float[Tensor, "*many"]
) -> Float[Tensor, "*many"]:
    r"""Compute the continuous ranked probability score of normal distributions.

    .. math:: \sigma \left( z \, (2 \Phi(z) - 1) + 2 \varphi(z) - \pi^{-1/2} \right), \quad
        z = (y - \mu) / \sigma

    Where σ is 0 it is the distance \|y − μ\|. The right σ scores :math:`\sigma / \sqrt \pi` on
    average.

    Args:
        forecast: μ.
        spread: σ, not negative, in the same shape.
        truth: y.

    Source: Gneiting et al. (2005), Mon. Weather Rev. 133, eq. 5.
    """
    width = spread.clamp(min=torch.finfo(spread.dtype).tiny ** 0.5)
    z = (truth - forecast) / width
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return width * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


def crps_samples(
    samples: Float[Tensor, " samples *many"], truth: Float[Tensor, "*many"]
) -> Float[Tensor, "*many"]:
    r"""Compute the continuous ranked probability score of samples, whatever their number.

    .. math:: \frac1N \sum_i |x_i - y| - \frac1{2 N (N - 1)} \sum_{i, j} |x_i - x_j|

    Args:
        samples: x, at least two.
        truth: y.

    Returns:
        The smaller the better; single numbers may lie below 0.

    Raises:
        UsageError: There are fewer than two samples.

    Source: Ferro (2014), Q. J. R. Meteorol. Soc. 140, the "fair" score; the sum over pairs comes
    from the sorted samples.
    """
    count = _enough(len(samples))
    weight = 2 * torch.arange(count, dtype=samples.dtype, device=samples.device) - (count - 1)
    apart = torch.tensordot(weight, samples.sort(dim=0).values, dims=1) / (count * (count - 1))
    return (samples - truth).abs().mean(dim=0) - apart


def energy_score(
    samples: Float[Tensor, "samples *many d"], truth: Float[Tensor, "*many d"]
) -> Float[Tensor, "*many"]:
    r"""Compute the energy score: `crps_samples` for vectors, such as places of atoms.

    .. math:: \frac1N \sum_i \lVert x_i - y \rVert
        - \frac1{2 N (N - 1)} \sum_{i, j} \lVert x_i - x_j \rVert

    Args:
        samples: x, at least two. With d = 3 each atom is judged alone; flattened molecules
            (d = 3 atoms) are judged as a whole, with how their atoms move together.
        truth: y.

    Raises:
        UsageError: There are fewer than two samples.

    Source: Gneiting, Raftery (2007), JASA 102, eq. 22, made fair as in Ferro (2014).
    """
    count = _enough(len(samples))
    apart = torch.zeros_like(truth[..., 0])
    for number in range(1, count):
        apart = apart + (samples[:number] - samples[number]).norm(dim=-1).sum(dim=0)
    return (samples - truth).norm(dim=-1).mean(dim=0) - apart / (count * (count - 1))


def _enough(samples: int) -> int:
    if samples < 2:
        raise UsageError(f"the score of a distribution needs at least two samples, not {samples}")
    return samples


def normal_pit(
    forecast: Float[Tensor, "*many"],
    spread: Float[Tensor, "*many"],
    truth: Float[Tensor, "*many"],
    bins: int = 200,
) -> Int[Tensor, " bins"]:
    r"""Count the probabilities that normal distributions gave to lower values than the true ones.

    Args:
        forecast: μ.
        spread: σ, positive.
        truth: y.
        bins: Equal parts of [0, 1]; an even number keeps the median between two.

    Returns:
        Counts of :math:`\Phi((y - \mu) / \sigma)`; even if σ is right, high ends if it is too
        small. Counts of several windows may be added.
    """
    value = torch.special.ndtr((truth - forecast) / spread)
    places = (value * bins).long().clamp(0, bins - 1)
    return torch.bincount(places.flatten(), minlength=bins)


def sample_pit(
    samples: Float[Tensor, " samples *many"], truth: Float[Tensor, "*many"]
) -> Int[Tensor, " samples+1"]:
    """Count below how many samples the truth lies: even if it could be one of them."""
    return torch.bincount((samples < truth).sum(dim=0).flatten(), minlength=len(samples) + 1)


def coverage(counts: Int[Tensor, " bins"], level: float) -> float:
    """Return how often the truth lay in the central interval of some probability.

    A count in a bin that the end of the interval cuts is shared out by length, so that samples
    of the true distribution, however few, have the coverage ``level`` on average.

    Args:
        counts: Of `normal_pit` or `sample_pit`.
        level: Such as 0.5 or 0.9.
    """
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = _cumulative(counts, ends).tolist()
    return high - low


def pit_histogram(counts: Int[Tensor, " bins"], bars: int = 10) -> Float[Tensor, " bars"]:
    """Return the counts in equal bars as a density: 1 everywhere for a calibrated forecast."""
    edges = torch.linspace(0, 1, bars + 1, dtype=torch.float64)
    return _cumulative(counts, edges).diff() * bars


def _cumulative(
    counts: Int[Tensor, " bins"], at: Float[Tensor, " places"]
) -> Float[Tensor, " places"]:
    """Return the part of the counts below some places of [0, 1], even inside a bin."""
    known = torch.cat([counts.new_zeros(1), counts.cumsum(dim=0)]).cpu().double()
    place = at * len(counts)
    left = place.floor().long().clamp(max=len(counts) - 1)
    return torch.lerp(known[left], known[left + 1], place - left) / known[-1]
