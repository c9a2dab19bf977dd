"""Points far from each other, the points around them, and sums over the points of a protein.

Nothing here depends on the order of the points: where the networks' papers draw points or take
the first ones found, these take the farthest or the nearest. Only exact ties are left to chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.geometry.neighbours import nearest
from undula.geometry.sampling import farthest_points
from undula.surface.clouds import RouterCloud

ANGSTROM_PER_UNIT = 20.0
"""What the networks see as 1. Their papers scale each cloud into the unit sphere; a fixed length,
about the radius of a protein of 150 residues, leaves it visible how large a protein is."""


@dataclass(frozen=True, eq=False)
class Level:
    """Some points of each protein.

    Attributes:
        points: From the centroid of the protein, in units of `ANGSTROM_PER_UNIT`.
        sizes: How many each protein has; they come one protein after the other.
        within: Where each stands among the points of the level before.
    """

    points: Float[Tensor, "m 3"]
    sizes: tuple[int, ...]
    within: Int[Tensor, " m"]

    @property
    def owner(self) -> Int[Tensor, " m"]:
        """Which protein each point belongs to."""
        return owners(self.sizes, self.points)


@torch.no_grad()
def levels(cloud: RouterCloud, sizes: Sequence[Sequence[int]]) -> list[Level]:
    """Thin a cloud level by level, keeping points that are far from each other.

    The first point of a protein is the one farthest from the mean of its points. The choice for
    fewer points is the beginning of the choice for more, so that one search serves all levels.
    On a GPU the points visit the CPU for it, as they do for their neighbours.

    Args:
        cloud: Of one or more proteins.
        sizes: For each level how many points of each protein to keep, never more than on the
            level before.

    Returns:
        The whole cloud, then one level per entry of ``sizes``, its points in order of choice.
    """
    whole = torch.bincount(cloud.owner, minlength=cloud.proteins).tolist()
    points = cloud.points / ANGSTROM_PER_UNIT
    rows = torch.arange(len(points), device=points.device)
    made = [Level(points, tuple(whole), rows)]
    if not sizes:
        return made
    on_cpu = points.cpu()
    chosen, start = [], 0
    for size, count in zip(whole, sizes[0], strict=True):
        own = on_cpu[start : start + size]
        first = int((own - own.mean(dim=0)).norm(dim=1).argmax())
        chosen.append(start + farthest_points(own, count, start=first))
        start += size
    made.append(_kept(made[-1], torch.cat(chosen).to(points.device), sizes[0]))
    for wanted in sizes[1:]:
        starts = torch.tensor([0, *made[-1].sizes]).cumsum(0)[:-1].tolist()
        within = [torch.arange(a, a + count) for a, count in zip(starts, wanted, strict=True)]
        made.append(_kept(made[-1], torch.cat(within).to(points.device), wanted))
    return made


def _kept(before: Level, within: Int[Tensor, " m"], sizes: Sequence[int]) -> Level:
    return Level(before.points[within], tuple(sizes), within)


@torch.no_grad()
def nearest_members(centres: Level, level: Level, count: int) -> Int[Tensor, "m count"]:
    """Find the points of a level that are nearest to each point of another.

    Args:
        centres: Around which points.
        level: Among which points; a centre that is one of them comes first.
        count: How many.

    Returns:
        Where they stand in ``level``, nearest first. A protein with fewer points repeats them,
        again from the nearest.
    """
    found, start = [], 0
    for around, among in zip(
        centres.points.split(centres.sizes), level.points.split(level.sizes), strict=True
    ):
        order = nearest(around, among, count)
        repeated = torch.arange(count, device=order.device) % max(order.shape[1], 1)
        found.append(start + order[:, repeated])
        start += len(among)
    return torch.cat(found)


@torch.no_grad()
def ball_members(centres: Level, level: Level, radius: float, count: int) -> Int[Tensor, "m count"]:
    """Find the points of a level in a ball around each of its points that are centres.

    Args:
        centres: Around which points; they are points of ``level``.
        level: Among which points.
        radius: Of the ball, Å.
        count: How many at most, the nearest; what is missing repeats the centre.

    Returns:
        Where they stand in ``level``.
    """
    index = nearest_members(centres, level, count)
    apart = (level.points[index] - centres.points[:, None]).norm(dim=2)
    return torch.where(apart * ANGSTROM_PER_UNIT <= radius, index, index[:, :1])


def owners(sizes: Sequence[int], like: Tensor) -> Int[Tensor, " m"]:
    """Return which protein each of so many points belongs to."""
    numbers = torch.arange(len(sizes), device=like.device)
    repeats = torch.tensor(sizes, device=like.device)
    return numbers.repeat_interleave(repeats, output_size=sum(sizes))


def protein_sum(
    values: Float[Tensor, "m channels"], owner: Int[Tensor, " m"], proteins: int
) -> Float[Tensor, "proteins channels"]:
    """Add up the rows of each protein."""
    return values.new_zeros(proteins, values.shape[1]).index_add(0, owner, values)


def protein_mean(
    values: Float[Tensor, "m channels"], owner: Int[Tensor, " m"], proteins: int
) -> Float[Tensor, "proteins channels"]:
    """Average the rows of each protein; every protein has some."""
    count = torch.bincount(owner, minlength=proteins)
    return protein_sum(values, owner, proteins) / count[:, None]


def protein_maximum(
    values: Float[Tensor, "m channels"], owner: Int[Tensor, " m"], proteins: int
) -> Float[Tensor, "proteins channels"]:
    """Take the largest of each column over the rows of each protein; every protein has some."""
    index = owner[:, None].expand_as(values)
    largest = values.new_zeros(proteins, values.shape[1])
    return largest.scatter_reduce(0, index, values, "amax", include_self=False)
