r"""The exact solvent-excluded surface of a molecule: distance field, point cloud and mesh.

Let the atoms be balls :math:`B(a_i, r_i)`, let p be the radius of a probe that stands for a
water molecule, and :math:`A = \bigcup_i B(a_i, r_i + p)`. The probe's centre may be anywhere
outside the interior of A; the solid S is what the probe never reaches,

.. math:: S = \{x : \operatorname{dist}(x, A^c) \ge p\}.

With :math:`d` the signed distance to :math:`\partial A` (negative inside, see
`undula.geometry.ball_union`), the field of the solvent-excluded surface is

.. math:: \varphi(x) = p + d(x).

- *Outside* A it is the exact distance to S: S grown by p is part of A, so that no point of S
  is closer than :math:`p + d`; and the point at distance :math:`r_i` from the centre of the
  closest ball is that close.
- *Inside* S (:math:`d \le -p`) it is exact: the complement of S is :math:`A^c` grown by p.
- *In the shell* between them it is a lower bound, and exact unless the straight line from the
  closest point c of :math:`\partial A` through x meets a second probe before it reaches S.
  That happens only at cusps, where two probe positions less than 2p apart cut each other.

The zero level is the surface itself, without exception. There the outward normal is
:math:`(c - x)/p`, which is also the gradient of the field. The other two kinds of surface are
:math:`\varphi = d` with balls of radius :math:`r_i + p` (solvent-accessible) or
:math:`r_i` (van der Waals).

======================  =========================
symbol                  variable
======================  =========================
:math:`a_i, r_i`        ``positions``, ``radii``
p                       ``probe``
:math:`\varphi(x)`      ``signed_distance(x)``
======================  =========================

Sources: Richards, Annu. Rev. Biophys. Bioeng. 6 (1977) 151 (definition);
Connolly, J. Appl. Cryst. 16 (1983) 548 (analytic description of the boundary).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.geometry.ball_union import (
    BallUnion,
    ball_union,
    distances,
    lattice_crossings,
    lattice_distances,
    move_onto_zero,
)
from undula.geometry.lattice import Lattice
from undula.types import Mesh, SurfaceCloud

SurfaceKind = Literal["solvent-excluded", "solvent-accessible", "van-der-waals"]

LARGEST_LATTICE = 100_000_000
"""The most nodes a lattice may have; their distances take 0.8 GB."""

CANDIDATES = 0.98
"""The lattice whose edges propose a cloud's points has this many of the cloud's spacings."""

CLOSEST = 0.47
"""Two points of a cloud are at least this many spacings apart; so there is one per spacing²."""

LARGEST_BALL = 20.0
"""The largest sum of an atom's radius and the probe's, Å."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MolecularSurface:
    """A molecule's surface that answers for its distance field, cloud and mesh.

    Made by `molecular_surface`. All arithmetic is in double precision on the CPU; results have
    the precision and device of what was asked about (`signed_distance`) or of the positions.

    Attributes:
        positions: Atom centres a, Å.
        radii: Atom radii r, Å.
        probe: Radius p of the probe, Å; 0 for the van der Waals surface.
        kind: Which of the three surfaces.
        union: The balls whose boundary the probe's centre touches.
    """

    positions: Float[Tensor, "atoms 3"]
    radii: Float[Tensor, " atoms"]
    probe: float
    kind: SurfaceKind
    union: BallUnion = field(repr=False)

    @property
    def _offset(self) -> float:
        return self.probe if self.kind == "solvent-excluded" else 0.0

    def signed_distance(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        """Compute the signed distance to the surface, negative inside.

        Beyond cusps of the solvent-excluded surface it is a lower bound (see the module);
        everywhere else it is exact. It changes by no more than the way between two points.

        Args:
            points: Anywhere, Å.

        Returns:
            One distance per point, Å.

        Raises:
            InputError: A point is not finite.
        """
        return self.signed_distance_and_gradient(points)[0]

    def signed_distance_and_gradient(
        self, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Compute the signed distance and its gradient, a unit vector that points outward.

        Where several points of the surface are equally close (the medial axis, the centre of a
        lone atom) the field has no gradient; the direction of one of them is returned.

        Args:
            points: Anywhere, Å.

        Returns:
            One distance (Å) and one unit vector per point. On the surface the vector is the
            outward normal.

        Raises:
            InputError: A point is not finite.
        """
        if not bool(torch.isfinite(points).all()):
            raise InputError("the points to measure from must be finite")
        values, gradients = distances(self.union, self._offset, _double(points))
        return torch.from_numpy(values).to(points), torch.from_numpy(gradients).to(points)

    def lattice_distance(
        self,
        origin: Float[Tensor, " 3"],
        spacing: float,
        shape: tuple[int, int, int],
        *,
        band: float | None,
    ) -> Float[Tensor, "nx ny nz"]:
        """Compute the signed distance at the nodes of a lattice, clamped to a band.

        A narrow band costs little more than the surface, none the whole volume.

        Args:
            origin: Position of node (0, 0, 0), Å.
            spacing: Distance of neighbouring nodes, Å.
            shape: Number of nodes along x, y and z.
            band: Values are clamped to [-band, band], Å; none computes every node.

        Returns:
            Node (i, j, k) is at ``origin + spacing * (i, j, k)``; Å.

        Raises:
            UsageError: The spacing or the band is not positive.
            InputError: The lattice has fewer than two nodes along an axis or is too large.
        """
        if band is not None and not band > 0:
            raise UsageError(f"the band of distances should be positive, it is {band} Å")
        if math.prod(shape) > LARGEST_LATTICE:
            raise InputError(
                f"a lattice of {math.prod(shape):.3g} nodes is too large; "
                f"at most {LARGEST_LATTICE:.3g} are allowed, which take 0.8 GB"
            )
        lattice = Lattice(origin=origin, spacing=spacing, shape=shape)
        values = self._lattice_values(lattice, math.inf if band is None else band)
        return torch.from_numpy(values).to(self.positions)

    def cloud(self, spacing: float = 1.0) -> SurfaceCloud:
        """Compute points on the surface, with exact outward normals.

        The points are where the edges of a lattice cross the surface, to 1e-9 Å, less those
        that come too close to an earlier one. There is about one per ``spacing²`` of area,
        and no two with alike normals are closer than `CLOSEST` spacings. Surfaces of cavities
        are included, pieces much smaller than the spacing may get no point.

        Args:
            spacing: Mean distance of the points, Å; 0.5 to 3 is usual.

        Returns:
            The cloud; the same for the same atoms.

        Raises:
            UsageError: The spacing is not positive.
            InputError: The spacing is too small for a molecule of this extent; says which fits.
        """
        lattice = self._lattice_around(CANDIDATES * spacing)
        origin = _double(lattice.origin)
        values = self._lattice_values(lattice, 1e-6 * spacing)
        points, normals = lattice_crossings(
            self.union, self._offset, origin, lattice.spacing, values
        )
        kept = _spread_out(
            points, normals, CLOSEST * spacing, origin, lattice.spacing, lattice.shape
        )
        return SurfaceCloud(
            points=torch.from_numpy(points[kept]).to(self.positions),
            normals=torch.from_numpy(normals[kept]).to(self.positions),
        )

    def mesh(self, spacing: float = 0.7, *, cavities: bool = True) -> Mesh:
        """Compute a watertight triangle mesh of the surface by marching cubes.

        The vertices are where lattice edges cross the exact surface, but for the few that
        marching cubes puts inside ambiguous cells, and they keep a thousandth of the spacing
        from the lattice's nodes.

        Args:
            spacing: Of the lattice, Å; 0.5 to 1 is usual. Smaller features may be lost.
            cavities: Whether to keep the surfaces of bubbles that a probe fits into but cannot
                leave.

        Returns:
            The mesh; every edge belongs to two faces that run along it in opposite ways. Empty
            if all atoms are smaller than the spacing.

        Raises:
            UsageError: The spacing is not positive.
            InputError: The spacing is too small for a molecule of this extent; says which fits.

        Source: Lewiner et al., J. Graph. Tools 8 (2003) 1 (scikit-image).
        """
        lattice = self._lattice_around(spacing)
        values = self._lattice_values(lattice, spacing * math.sqrt(3))
        if not (values < 0).any():
            vertices, faces = np.empty((0, 3)), np.empty((0, 3), dtype=np.int64)
        else:
            # Only the signs matter, and that no vertex is rounded onto a node.
            clear = np.maximum(np.abs(values), spacing / 20, dtype=np.float32)
            clear[values < 0] *= -1
            vertices, faces, _, _ = marching_cubes(clear, 0.0, gradient_direction="descent")
            vertices = move_onto_zero(
                self.union,
                self._offset,
                _double(lattice.origin),
                lattice.spacing,
                values,
                vertices.astype(np.float64),
            )
        if not cavities:
            vertices, faces = _without_cavities(vertices, faces)
        return Mesh(
            vertices=torch.from_numpy(vertices).to(self.positions),
            faces=torch.from_numpy(faces.astype(np.int64)).to(self.positions.device),
        )

    def _lattice_around(self, spacing: float) -> Lattice:
        reach = self.union.radii[:, None] - self._offset + spacing
        return Lattice.covering(
            torch.from_numpy((self.union.centres - reach).min(axis=0)),
            torch.from_numpy((self.union.centres + reach).max(axis=0)),
            float(spacing),
            limit=LARGEST_LATTICE,
        )

    def _lattice_values(self, lattice: Lattice, band: float) -> np.ndarray:
        return lattice_distances(
            self.union,
            self._offset,
            _double(lattice.origin),
            float(lattice.spacing),
            lattice.shape,
            float(band),
        )


def molecular_surface(
    positions: Float[Tensor, "atoms 3"],
    radii: Float[Tensor, " atoms"],
    *,
    probe: float = 1.4,
    kind: SurfaceKind = "solvent-excluded",
) -> MolecularSurface:
    """Build the surface of a molecule from its atoms.

    Atoms may overlap, coincide or lie apart; those inside others do not matter.

    Args:
        positions: Atom centres, Å.
        radii: Atom radii, Å.
        probe: Radius of the probe, Å; 1.4 for water. The van der Waals surface has none.
        kind: "solvent-excluded" is where the probe's surface gets to, "solvent-accessible"
            where its centre gets to, "van-der-waals" the atoms' own surface.

    Returns:
        The surface, ready to be asked.

    Raises:
        InputError: There are no atoms, a number is not finite, a radius is not positive or
            absurdly large, or the atoms are too crowded to be in Å.
    """
    if len(positions) == 0 or len(radii) != len(positions):
        raise InputError(
            f"a surface needs at least one atom and one radius each, "
            f"found {len(positions)} atoms and {len(radii)} radii"
        )
    centres, sizes = _double(positions), _double(radii)
    bad = ~(np.isfinite(centres).all(axis=1) & np.isfinite(sizes) & (sizes > 0))
    if bad.any():
        atom = int(bad.argmax())
        raise InputError(
            f"atom {atom + 1} has the position {centres[atom].tolist()} and the radius "
            f"{sizes[atom]}; positions must be finite and radii positive"
        )
    if kind == "van-der-waals":
        probe = 0.0
    if not (probe >= 0 and probe + sizes.max() <= LARGEST_BALL):
        raise InputError(
            f"the probe's radius must not be negative, and together with the largest atom's at "
            f"most {LARGEST_BALL:g} Å; found {probe:g} Å and {sizes.max():g} Å"
        )
    return MolecularSurface(
        positions=positions,
        radii=radii,
        probe=float(probe),
        kind=kind,
        union=ball_union(centres, sizes + probe),
    )


def surface_clouds(
    positions: Float[Tensor, "frames atoms 3"],
    radii: Float[Tensor, " atoms"],
    *,
    spacing: float = 1.0,
    probe: float = 1.4,
    kind: SurfaceKind = "solvent-excluded",
    threads: int = 1,
) -> list[SurfaceCloud]:
    """Compute the surface cloud of every frame of a trajectory.

    Args:
        positions: Atom centres, Å.
        radii: Atom radii, Å.
        spacing: Mean distance of the points, Å, as in `MolecularSurface.cloud`.
        probe: Radius of the probe, Å, as in `molecular_surface`.
        kind: Which surface, as in `molecular_surface`.
        threads: How many frames are worked on at once; the clouds do not depend on it.

    Returns:
        One cloud per frame, in order; 48 bytes a point in double precision.

    Raises:
        UsageError: There is no thread to work, or the spacing is not positive.
        InputError: A frame cannot be a molecule, or the spacing is too small for its extent.
    """
    if threads < 1:
        raise UsageError(f"surface clouds need at least one thread, not {threads}")

    def cloud(frame: int) -> SurfaceCloud:
        try:
            surface = molecular_surface(positions[frame], radii, probe=probe, kind=kind)
            return surface.cloud(spacing)
        except InputError as error:
            raise InputError(f"frame {frame + 1}: {error}") from error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(cloud, range(len(positions))))


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _spread_out(points, normals, closest, origin, spacing, shape):
    """Choose points so that no two whose normals are less than 90° apart are too close.

    Points are taken in their order; each is put into the cell of the lattice that it lies in.
    """
    newest = np.full(shape, -1, dtype=np.int32)
    older = np.full(len(points), -1, dtype=np.int32)
    kept = np.zeros(len(points), dtype=np.bool_)
    low, high = np.empty(3, dtype=np.int64), np.empty(3, dtype=np.int64)
    for row in range(len(points)):
        for k in range(3):
            place = (points[row, k] - origin[k]) / spacing
            low[k] = max(int(place - closest / spacing), 0)
            high[k] = min(int(place + closest / spacing) + 1, shape[k])
        alone = True
        for i in range(low[0], high[0]):
            for j in range(low[1], high[1]):
                for k in range(low[2], high[2]):
                    other = newest[i, j, k]
                    while other != -1 and alone:
                        squared, alike = 0.0, 0.0
                        for axis in range(3):
                            squared += (points[row, axis] - points[other, axis]) ** 2
                            alike += normals[row, axis] * normals[other, axis]
                        alone = squared >= closest * closest or alike <= 0
                        other = older[other]
        if alone:
            i = int((points[row, 0] - origin[0]) / spacing)
            j = int((points[row, 1] - origin[1]) / spacing)
            k = int((points[row, 2] - origin[2]) / spacing)
            older[row], newest[i, j, k] = newest[i, j, k], row
            kept[row] = True
    return kept


def _double(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().double().numpy())


def _without_cavities(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop the connected pieces of a mesh whose faces look inward (negative volume)."""
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    links = coo_array(
        (np.ones(len(edges), dtype=np.int8), edges.T), shape=(len(vertices), len(vertices))
    )
    _, piece = connected_components(links, directed=False)
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    volumes = np.bincount(piece[faces[:, 0]], weights=(a * np.cross(b, c)).sum(axis=1))
    kept = volumes[piece] > 0
    new_index = np.cumsum(kept) - 1
    return vertices[kept], new_index[faces[kept[faces[:, 0]]]]
