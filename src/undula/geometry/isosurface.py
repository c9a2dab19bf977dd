"""Level sets of fields, from coarse to fine: only the nodes near the surface are evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from skimage.measure import marching_cubes
from torch import Tensor

from undula.errors import InputError
from undula.geometry.lattice import Lattice
from undula.types import Mesh

Field: TypeAlias = Callable[[Float[Tensor, "n 3"]], Float[Tensor, " n"]]
"""A number per point; for a signed distance in Å, negative inside."""

COARSEST = 12
"""The coarsest pass has at least so many cells along the longest axis."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatticeValues:
    """A field on a lattice: exact near a level, of the right sign elsewhere.

    Attributes:
        lattice: The nodes.
        values: One number per node. Nodes that were not evaluated hold what lies between the
            evaluated ones around them.
        level: The level that was looked for.
        evaluations: How many points the field was asked for.
    """

    lattice: Lattice
    values: Float[Tensor, "nx ny nz"]
    level: float
    evaluations: int

    @property
    def inside(self) -> Bool[Tensor, "nx ny nz"]:
        """Which nodes lie inside, below the level."""
        return self.values < self.level

    @property
    def touches_border(self) -> bool:
        """Whether the inside reaches the border of the lattice, which cuts it off there."""
        return any(
            bool(self.inside.select(axis, end).any()) for axis in range(3) for end in (0, -1)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelSet(LatticeValues):
    """A level set as a mesh, with the values it was read from.

    Attributes:
        mesh: Closed; faces look towards growing values. Å, in the precision of the lattice.
    """

    mesh: Mesh

    @property
    def is_empty(self) -> bool:
        """Whether the level set does not exist on this lattice: no node lies inside."""
        return self.mesh.is_empty


def extract(
    field: Field,
    lattice: Lattice,
    *,
    level: float = 0.0,
    lipschitz: float = 1.3,
    chunk: int = 65536,
) -> LevelSet:
    """Extract the surface where a field takes a level, as a closed mesh.

    The mesh is the one that marching cubes gives on the dense lattice. Where the inside reaches
    the border of the lattice the surface is closed on the border.

    Args:
        field: Å per point for a signed distance; any field with a known bound will do.
        lattice: Where to look.
        level: The value looked for.
        lipschitz: How much the field changes per Å at most, as in `lattice_values`.
        chunk: How many points the field is asked for at once.

    Returns:
        Mesh, values and cost. A level that is not there gives an empty mesh.

    Raises:
        InputError: The field gives a number that is not finite.

    Source: Lewiner et al., 2003 (marching cubes with resolved ambiguities, scikit-image).
    """
    found = lattice_values(field, lattice, level=level, lipschitz=lipschitz, chunk=chunk)
    return LevelSet(**vars(found), mesh=level_mesh(found.values, lattice, level))


def lattice_values(
    field: Field,
    lattice: Lattice,
    *,
    level: float = 0.0,
    lipschitz: float = 1.3,
    chunk: int = 65536,
) -> LatticeValues:
    r"""Evaluate a field on a lattice, exactly only where it comes near a level.

    An octant o of a cell with edge s can meet the level only if all corner values f_c of the
    cell allow for a place in it,

    .. math:: |f_c - l| \le L s \, r_{oc} \quad\text{for all } c, \qquad
        r_{oc}^2 = \sum_k \bigl(\tfrac14 \text{ if } o_k = c_k \text{ else } 1\bigr),

    where s r is the distance of a corner to the farthest place of the octant. Octants that can
    are the cells of the next pass, until the spacing is reached.
    L = 1 suffices for a signed distance; a learned field needs 1.2 to 1.5, and infinity
    evaluates every node. Where the field is steeper than L says, a piece of the surface that
    comes into sight anywhere is still followed to its end; only a piece that no evaluated
    node lies inside of is lost.

    Args:
        field: Å per point for a signed distance; called without gradients.
        lattice: The nodes.
        level: The value l looked for.
        lipschitz: How much the field changes per Å at most, L.
        chunk: How many points the field is asked for at once.

    Returns:
        Values exact at all corners of cells that the surface crosses; elsewhere on the right
        side of the level. The coarse passes may ask for points up to ``2 ** halvings - 1``
        spacings beyond the far ends of the lattice.

    Raises:
        InputError: The field gives a number that is not finite.
    """
    halvings = max(0, int(math.log2((max(lattice.shape) - 1) / COARSEST + 1e-9)))
    edge = 2**halvings
    values = lattice.origin.new_zeros([-(-(size - 1) // edge) + 1 for size in lattice.shape])
    evaluated = torch.zeros_like(values, dtype=torch.bool)
    cells = torch.ones([size - 1 for size in values.shape], dtype=torch.bool, device=values.device)
    evaluations = 0
    while True:
        if edge == 1:
            x, y, z = lattice.shape
            values, evaluated = values[:x, :y, :z].contiguous(), evaluated[:x, :y, :z].contiguous()
            cells = cells[: x - 1, : y - 1, : z - 1]
        missing = _corners(cells) & ~evaluated
        evaluations += _evaluate(field, lattice, values, missing, edge, chunk)
        evaluated |= missing
        if edge == 1:
            break
        reach = lipschitz * lattice.spacing * edge
        surprises = _crossed(values < level) & ~cells
        cells = _octants(values - level, cells, reach) | _halves(surprises)
        values, evaluated = _halved(values, evaluated)
        edge //= 2
    while (missing := _corners(_crossed(values < level)) & ~evaluated).any():
        evaluations += _evaluate(field, lattice, values, missing, edge, chunk)
        evaluated |= missing
    return LatticeValues(lattice=lattice, values=values, level=level, evaluations=evaluations)


def level_mesh(values: Float[Tensor, "nx ny nz"], lattice: Lattice, level: float = 0.0) -> Mesh:
    """Mesh the level set of values on a lattice, closed at its border.

    Args:
        values: One number per node, smaller inside.
        lattice: The nodes.
        level: The value of the surface; nodes that hold it lie outside.

    Returns:
        A closed mesh whose faces look towards growing values; without vertices and faces
        when no node lies inside.
    """
    above = (values - level).cpu().numpy().astype(np.float32)
    inside = above < 0
    if not inside.any():
        return Mesh(
            vertices=lattice.origin.new_zeros((0, 3)),
            faces=torch.zeros((0, 3), dtype=torch.long, device=lattice.origin.device),
        )
    low = [int(np.flatnonzero(inside.any(axis=axes))[0]) for axes in ((1, 2), (0, 2), (0, 1))]
    high = [int(np.flatnonzero(inside.any(axis=axes))[-1]) for axes in ((1, 2), (0, 2), (0, 1))]
    used = tuple(slice(max(0, a - 1), b + 2) for a, b in zip(low, high, strict=True))
    part = np.where(above[used] == 0, np.float32(1e-6 * lattice.spacing), above[used])
    # A wall this high puts the crossing on the border node itself, to 1e-6 of the spacing.
    part = np.pad(part, 1, constant_values=1e6 * max(float(np.abs(part).max()), lattice.spacing))
    corners, faces, _, _ = marching_cubes(part, 0.0, gradient_direction="descent")
    place = corners.astype(np.float64) + [side.start - 1 for side in used]
    place = place.clip(0, np.array(lattice.shape) - 1)
    return Mesh(
        vertices=lattice.origin + torch.from_numpy(place).to(lattice.origin) * lattice.spacing,
        faces=torch.from_numpy(faces.astype(np.int64)).to(lattice.origin.device),
    )


def _evaluate(
    field: Field,
    lattice: Lattice,
    values: Float[Tensor, "nx ny nz"],
    missing: Bool[Tensor, "nx ny nz"],
    edge: int,
    chunk: int,
) -> int:
    """Write the field into the missing nodes and return how many there were."""
    index = missing.nonzero()
    with torch.no_grad():
        for part in index.split(chunk):
            points = lattice.points_of(part * edge)
            found = field(points)
            if not torch.isfinite(found).all():
                place = points[~torch.isfinite(found)][0].tolist()
                raise InputError(f"the field is not finite at {place} Å")
            values[tuple(part.unbind(dim=1))] = found.to(values)
    return len(index)


def _octants(
    above: Float[Tensor, "nx ny nz"], cells: Bool[Tensor, "nx-1 ny-1 nz-1"], reach: float
) -> Bool[Tensor, "2*nx-2 2*ny-2 2*nz-2"]:
    """Tell which octants of cells can meet level 0, when the field changes by the reach along s."""
    corners = torch.cartesian_prod(*[torch.arange(2, device=cells.device)] * 3)
    shares = torch.where(corners[:, None] == corners, 0.25, 1.0).sum(dim=2)
    farthest = (reach * shares.sqrt()).to(above)
    index = cells.nonzero()
    heights = above[tuple((index[:, None] + corners).unbind(dim=2))].abs()
    found = _halves(torch.zeros_like(cells))
    for octant, bounds in zip(corners, farthest, strict=True):
        room = (heights <= bounds).all(dim=1)
        found[tuple((2 * index[room] + octant).unbind(dim=1))] = True
    return found


def _halves(cells: Bool[Tensor, "nx ny nz"]) -> Bool[Tensor, "2*nx 2*ny 2*nz"]:
    """Give each cell's mark to its octants."""
    for axis in range(3):
        cells = cells.repeat_interleave(2, dim=axis)
    return cells


def _crossed(inside: Bool[Tensor, "nx ny nz"]) -> Bool[Tensor, "nx-1 ny-1 nz-1"]:
    """Tell which cells have corners on both sides."""
    some = every = inside
    for axis in range(3):
        size = some.shape[axis] - 1
        some = some.narrow(axis, 0, size) | some.narrow(axis, 1, size)
        every = every.narrow(axis, 0, size) & every.narrow(axis, 1, size)
    return some & ~every


def _corners(cells: Bool[Tensor, "nx ny nz"]) -> Bool[Tensor, "nx+1 ny+1 nz+1"]:
    """Tell which nodes are corners of some cells."""
    nodes = cells
    for axis in range(3):
        empty = torch.zeros_like(nodes.narrow(axis, 0, 1))
        nodes = torch.cat([nodes, empty], dim=axis) | torch.cat([empty, nodes], dim=axis)
    return nodes


def _halved(
    values: Float[Tensor, "nx ny nz"], evaluated: Bool[Tensor, "nx ny nz"]
) -> tuple[Float[Tensor, "2*nx-1 2*ny-1 2*nz-1"], Bool[Tensor, "2*nx-1 2*ny-1 2*nz-1"]]:
    """Halve the spacing: interpolated values, and which of them are exact."""
    shape = [2 * size - 1 for size in values.shape]
    finer = torch.nn.functional.interpolate(
        values[None, None], size=shape, mode="trilinear", align_corners=True
    )[0, 0]
    exact = torch.zeros(shape, dtype=torch.bool, device=values.device)
    exact[::2, ::2, ::2] = evaluated
    finer[::2, ::2, ::2] = values
    return finer, exact
