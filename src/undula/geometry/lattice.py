"""A regular lattice of points: where fields are evaluated, stored and interpolated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, UsageError

NODE_LIMIT = 2**28
"""The most nodes `Lattice.covering` makes by default: 1 GiB for one number each in float32."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """Nodes at equal distances along x, y and z.

    Attributes:
        origin: The node with the smallest coordinates, Å; its precision and device are those
            of all points of the lattice.
        spacing: Distance between neighbouring nodes, Å.
        shape: How many nodes there are along x, y and z, at least two each.
    """

    origin: Float[Tensor, " 3"]
    spacing: float
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if not 0 < self.spacing < math.inf:
            raise UsageError(f"the spacing of a lattice should be positive, it is {self.spacing}")
        if len(self.shape) != 3 or min(self.shape) < 2:
            raise InputError(f"a lattice needs two nodes along each axis, found {self.shape}")
        if not torch.isfinite(self.origin).all():
            raise InputError("the origin of a lattice should be finite")

    @classmethod
    def covering(
        cls,
        low: Float[Tensor, " 3"],
        high: Float[Tensor, " 3"],
        spacing: float,
        *,
        limit: int = NODE_LIMIT,
    ) -> Lattice:
        """Make the smallest lattice that covers a box.

        Its nodes lie at whole multiples of the spacing, so that lattices of one spacing share
        their nodes wherever they overlap, whatever frame they were made for.

        Args:
            low: Corner of the box with the smallest coordinates, Å.
            high: The opposite corner, Å.
            spacing: Distance between neighbouring nodes, Å.
            limit: The most nodes allowed.

        Raises:
            InputError: The box is not finite, is turned inside out, or needs more than
                ``limit`` nodes; the message says which spacing fits.
            UsageError: The spacing is not positive.
        """
        if not 0 < spacing < math.inf:
            raise UsageError(f"the spacing of a lattice should be positive, it is {spacing}")
        ends = torch.stack([low, high]).double()
        if not torch.isfinite(ends).all() or (ends[0] > ends[1]).any():
            raise InputError(
                f"a lattice cannot cover the box from {low.tolist()} to {high.tolist()} Å"
            )
        nodes = math.prod(_shape(ends, spacing))
        if nodes > limit:
            fits = spacing
            while math.prod(_shape(ends, fits)) > limit:
                fits = float(f"{1.02 * fits:.3g}") if fits > 1e-3 else 2 * fits
            raise InputError(
                f"a lattice of spacing {spacing:g} Å over a box of "
                f"{' × '.join(f'{length:.0f}' for length in (ends[1] - ends[0]).tolist())} Å needs "
                f"{nodes:.3g} nodes, {4 * nodes / 2**30:.3g} GiB a field; "
                f"a spacing of {fits:g} Å fits"
            )
        origin = torch.floor(ends[0] / spacing) * spacing
        return cls(origin=origin.to(low), spacing=spacing, shape=_shape(ends, spacing))

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return math.prod(self.shape)

    def to(self, like: Tensor) -> Lattice:
        """Return the same lattice in the precision and on the device of a tensor."""
        return replace(self, origin=self.origin.to(like))

    def points_of(self, index: Int[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Return where the nodes of some indices (along x, y and z) lie, Å."""
        return self.origin + index.to(self.origin) * self.spacing

    def points(self) -> Float[Tensor, "nodes 3"]:
        """Return where all nodes lie, Å; z runs fastest, as in ``values.reshape(-1)``."""
        axes = (torch.arange(size, device=self.origin.device) for size in self.shape)
        return self.points_of(torch.cartesian_prod(*axes))

    def interpolate(
        self, values: Float[Tensor, "nx ny nz"], points: Float[Tensor, "n 3"]
    ) -> Float[Tensor, " n"]:
        r"""Interpolate trilinearly between the eight nodes around each point.

        .. math:: \sum_{c \in \{0,1\}^3} v_{i+c} \prod_a (1 - c_a + (2 c_a - 1) u_a)

        with u the place of the point in its cell. Exact for linear fields; of second order in
        the spacing otherwise, and differentiable by points and by values.

        Args:
            values: One number per node.
            points: Where, Å.

        Returns:
            One number per point. A point beyond the lattice gets the value of the closest
            place on its border.
        """
        total = points.new_zeros(len(points), dtype=torch.promote_types(points.dtype, values.dtype))
        for nodes, weight in self.corners(points):
            total = total + weight * values[tuple(nodes.unbind(dim=1))]
        return total

    def corners(
        self, points: Float[Tensor, "n 3"]
    ) -> Iterator[tuple[Int[Tensor, "n 3"], Float[Tensor, " n"]]]:
        """Yield the eight nodes around each point, one after the other, and how much each counts.

        Args:
            points: Where, Å; beyond the lattice the closest place on its border serves.
        """
        last = torch.tensor(self.shape, device=points.device) - 1
        place = (points - self.origin.to(points)) / self.spacing
        place = place.clamp(min=torch.zeros_like(place[:1])).minimum(last.to(place))
        cell = place.detach().floor().long().minimum(last - 1)
        u = place - cell
        for corner in torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3):
            yield cell + corner, torch.where(corner == 1, u, 1 - u).prod(dim=1)


def _shape(ends: Float[Tensor, "2 3"], spacing: float) -> tuple[int, int, int]:
    first, last = torch.floor(ends[0] / spacing), torch.ceil(ends[1] / spacing)
    x, y, z = (max(2, int(size) + 1) for size in (last - first).tolist())
    return x, y, z
