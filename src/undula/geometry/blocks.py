"""Numbers on the nodes of a large lattice of which only parts are needed: blocks of nodes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undula.geometry.lattice import Lattice

EDGE = 10
"""Nodes of a block along each axis: few, so that little is kept that nobody asks for."""


class LatticeBlocks:
    """Several numbers per node, kept in blocks; added plane by plane along x.

    Args:
        lattice: The nodes.
        count: Numbers per node.
    """

    def __init__(self, lattice: Lattice, count: int) -> None:
        self.lattice = lattice
        self.count = count
        blocks = tuple(-(-size // EDGE) for size in lattice.shape)
        self._place = torch.full(blocks, -1, dtype=torch.long)
        self._slab = torch.zeros(blocks[0], dtype=torch.long)
        self._values: list[Float[Tensor, "blocks nodes count"]] = []

    def begin(self, start: int, needed: Bool[Tensor, "bx by bz"]) -> None:
        """Make room for some planes.

        Args:
            start: The first plane, a multiple of `EDGE`.
            needed: Which blocks are kept.
        """
        first = start // EDGE
        place = torch.where(needed, needed.flatten().cumsum(dim=0).reshape(needed.shape) - 1, -1)
        self._place[first : first + len(needed)] = place
        self._slab[first : first + len(needed)] = len(self._values)
        self._values.append(torch.zeros(int(needed.sum()), EDGE**3, self.count))

    def put(self, number: int, values: Float[Tensor, "nx ny nz"]) -> None:
        """Fill one number of the planes that were begun last.

        Args:
            number: Which of the numbers.
            values: On all nodes of the planes.
        """
        first = int((self._slab == len(self._values) - 1).nonzero()[0])
        place = self._place[first:][: -(-len(values) // EDGE)]
        kept = self._values[-1][:, :, number].unflatten(1, (EDGE, EDGE, EDGE))
        for block in (place >= 0).nonzero().tolist():
            cut = values[tuple(slice(EDGE * b, EDGE * (b + 1)) for b in block)]
            x, y, z = cut.shape
            kept[int(place[tuple(block)]), :x, :y, :z] = cut

    def interpolate(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "count n"]:
        """Interpolate trilinearly as `Lattice.interpolate` does; 0 where no block was needed."""
        total = points.new_zeros(self.count, len(points), dtype=torch.float64)
        for nodes, weight in self.lattice.corners(points):
            total += weight * self._at(nodes).T
        return total

    def _at(self, nodes: Int[Tensor, "n 3"]) -> Float[Tensor, "n count"]:
        block, within = nodes // EDGE, nodes % EDGE
        place = self._place[tuple(block.unbind(dim=1))]
        row = (within[:, 0] * EDGE + within[:, 1]) * EDGE + within[:, 2]
        slab = self._slab[block[:, 0]]
        found = torch.zeros(len(nodes), self.count)
        for number in torch.unique(slab).tolist():
            here = (slab == number) & (place >= 0)
            found[here] = self._values[number][place[here], row[here]]
        return found


def needed_blocks(
    near: Bool[Tensor, "nx ny nz"], before: int, planes: int
) -> Bool[Tensor, "bx by bz"]:
    """Tell which blocks hold marked nodes or adjoin blocks that do.

    Args:
        near: Marks on some planes of a lattice.
        before: So many of them come before the planes that are asked about, at least `EDGE` or
            none.
        planes: How many are asked about.
    """
    lead = (-before) % EDGE
    sides = [lead, *[0] * 2]
    shape = [-(-(size + side) // EDGE) for size, side in zip(near.shape, sides, strict=True)]
    padded = torch.zeros([EDGE * size for size in shape], dtype=torch.bool)
    padded[lead : lead + near.shape[0], : near.shape[1], : near.shape[2]] = near
    x, y, z = shape
    found = padded.reshape(x, EDGE, y, EDGE, z, EDGE).any(dim=5).any(dim=3).any(dim=1)
    wide = torch.nn.functional.max_pool3d(found[None, None].float(), 3, stride=1, padding=1)
    first = (before + lead) // EDGE
    return wide[0, 0, first : first - (-planes // EDGE)] > 0
