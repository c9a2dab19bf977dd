"""Trivial forecasts: what a model must beat before anyone should believe it.

Each is a surface that does not move, given as values on a lattice whose zero level is the
surface (negative inside). None sees anything later than what its name says.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.geometry.comparison import intersection_over_union
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface

BLUR_WIDTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
BLUR_CUTS = (0.30, 0.35, 0.40, 0.45, 0.50)
SHIFTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
"""Offsets δ of the first frame's field that are tried, Å, outwards and inwards."""
DISTANCE_BAND = 2.0
"""Distances on a lattice are exact up to here, Å: farther than the largest of `SHIFTS`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrivialCase:
    """What the trivial rows with numbers are fitted on: a training trajectory.

    Attributes:
        first: Signed distance to the first frame's surface, Å, exact within `DISTANCE_BAND`.
        later: Which nodes later frames occupy.
        lattice: Of both.
    """

    first: Float[Tensor, "nx ny nz"]
    later: Sequence[Bool[Tensor, "nx ny nz"]]
    lattice: Lattice


@dataclass(frozen=True, kw_only=True)
class Blur:
    """The two numbers of a blurred first frame.

    Attributes:
        width: σ of the Gaussian, Å.
        cut: Fraction of blurred occupancy above which a place counts as inside.
    """

    width: float = 1.25
    cut: float = 0.40


@dataclass(frozen=True, kw_only=True)
class Shifts:
    """How far the surfaces of the dilated and of the eroded first frame are moved.

    Attributes:
        dilated: Outwards, Å.
        eroded: Inwards, Å.
    """

    dilated: float = 0.3
    eroded: float = 0.3

    def __post_init__(self) -> None:
        if not (self.dilated > 0 and self.eroded > 0):
            raise UsageError(f"both shifts should be positive, not {self.dilated}, {self.eroded}")


@dataclass(frozen=True, eq=False)
class StaticSurface:
    """A surface that does not move: values on a lattice, negative inside."""

    lattice: Lattice
    values: Float[Tensor, "nx ny nz"]

    def field(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Return the interpolated values at points; outside the lattice its nearest border's."""
        return self.lattice.interpolate(self.values, points)


def distances(
    surface: MolecularSurface, lattice: Lattice, band: float = DISTANCE_BAND
) -> Float[Tensor, "nx ny nz"]:
    """Return the signed distance to a surface on a lattice, exact within a band, Å."""
    return surface.lattice_distance(
        lattice.origin, lattice.spacing, lattice.shape, band=max(band, 2 * lattice.spacing)
    )


def occupancy(surface: MolecularSurface, lattice: Lattice) -> Bool[Tensor, "nx ny nz"]:
    """Return which nodes of a lattice lie inside a surface."""
    return distances(surface, lattice, 0.0) < 0


def blurred(
    occupied: Bool[Tensor, "nx ny nz"], lattice: Lattice, blur: Blur
) -> Float[Tensor, "nx ny nz"]:
    r"""Blur an occupancy by a Gaussian and cut it.

    .. math:: c - (G_\sigma * 1_{inside})

    Atoms that stick out are likelier to be elsewhere later; blurring rounds them off. This is
    the trivial row to beat on proteins never seen.

    Args:
        occupied: Inside of the first frame.
        lattice: Its lattice; its margin should exceed 3σ.
        blur: σ in Å and the cut c.

    Returns:
        Negative inside.
    """
    smooth = gaussian_filter(
        occupied.cpu().numpy().astype(np.float32), blur.width / lattice.spacing, mode="constant"
    )
    return blur.cut - torch.from_numpy(smooth).to(occupied.device)


def fitted_blur(cases: Sequence[TrivialCase]) -> Blur:
    """Choose σ and cut with the best mean IoU over training frames.

    Args:
        cases: One for each training trajectory.

    Returns:
        The best pair on the grid `BLUR_WIDTHS` × `BLUR_CUTS`; the first one in a tie.

    Raises:
        InputError: There is no later frame to fit on.
    """
    total = np.zeros((len(BLUR_WIDTHS), len(BLUR_CUTS)))
    count = 0
    for case in cases:
        occupied = case.first < 0
        for (i, width), (j, cut) in itertools.product(enumerate(BLUR_WIDTHS), enumerate(BLUR_CUTS)):
            inside = blurred(occupied, case.lattice, Blur(width=width, cut=cut)) < 0
            total[i, j] += sum(intersection_over_union(inside, frame) for frame in case.later)
        count += len(case.later)
    if not count:
        raise InputError("the blurred first frame needs at least one later training frame")
    best = int(total.argmax())
    width, cut = divmod(best, len(BLUR_CUTS))
    return Blur(width=BLUR_WIDTHS[width], cut=BLUR_CUTS[cut])


def fitted_shifts(cases: Sequence[TrivialCase]) -> Shifts:
    r"""Choose the offsets with the best mean IoU over training frames, each sign by itself.

    .. math:: \{ x : d_0(x) < \delta \}, \qquad \delta > 0 \text{ (dilated) or } < 0

    Args:
        cases: One for each training trajectory.

    Returns:
        The best of `SHIFTS` outwards and inwards; the smaller one in a tie. One of the two
        is the smallest where shapes neither grow nor shrink.

    Raises:
        InputError: There is no later frame to fit on.
    """
    if not any(case.later for case in cases):
        raise InputError("dilated and eroded frames need at least one later training frame")

    def mean(shift: float) -> float:
        return sum(
            intersection_over_union(case.first < shift, frame)
            for case in cases
            for frame in case.later
        )

    return Shifts(
        dilated=max(SHIFTS, key=mean),
        eroded=max(SHIFTS, key=lambda shift: mean(-shift)),
    )


def best_ellipsoid(
    occupied: Bool[Tensor, "nx ny nz"], lattice: Lattice
) -> Float[Tensor, "nx ny nz"]:
    r"""Fit the ellipsoid of inertia of a solid, scaled to the best IoU with it.

    .. math:: \sqrt{(x-c)^T \Sigma^{-1} (x-c)} - s

    with centre c and covariance Σ of the inside; a solid ellipsoid has s = √5.

    Args:
        occupied: Inside of the first frame.
        lattice: Its lattice.

    Returns:
        Negative inside. Not a distance in Å: only its zero level means something.

    Raises:
        InputError: Fewer than four nodes lie inside.
    """
    points = lattice.points().reshape(*lattice.shape, 3).double()
    inside = points[occupied]
    if len(inside) < 4:
        raise InputError("the solid holds fewer than four lattice nodes; use a finer spacing")
    centre = inside.mean(dim=0)
    spread = torch.cov((inside - centre).T) + 1e-6 * torch.eye(3, dtype=torch.float64)
    whitened = torch.linalg.solve_triangular(
        torch.linalg.cholesky(spread), (points - centre).reshape(-1, 3).T, upper=False
    )
    radius = whitened.norm(dim=0).reshape(lattice.shape)
    sizes = torch.linspace(1.4, 3.2, 73, dtype=torch.float64).tolist()
    best = max(sizes, key=lambda s: float(intersection_over_union(radius < s, occupied)))
    return radius - best


def averaged(frames: Sequence[Bool[Tensor, "nx ny nz"]]) -> Float[Tensor, "nx ny nz"]:
    """Return one half minus the fraction of frames that occupy each node: the majority shape.

    Over the frames of training it is a trivial row for a protein that was trained on.

    Args:
        frames: Occupancies on one lattice, at least one.
    """
    return 0.5 - torch.stack([frame.float() for frame in frames]).mean(dim=0)


def majority_of_others(
    occupied: Mapping[int, Bool[Tensor, "nx ny nz"]], frame: int
) -> Float[Tensor, "nx ny nz"]:
    """Return the majority shape of all frames but one: an oracle, told the truth but for that one.

    Args:
        occupied: Frame → occupancy, all on one lattice; at least one other than ``frame``.
        frame: The one left out.
    """
    return averaged([inside for other, inside in occupied.items() if other != frame])
