"""All that a model of unseen proteins may know of one: its first frame, seen from every point.

Nothing in here has ever seen a later frame. Everything is computed in the molecule's own frame
(centroid and principal axes), so that it turns, shifts and mirrors with the molecule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from undula.data.prepare import FIXED_REACH, surface_of
from undula.errors import UsageError
from undula.geometry.blocks import EDGE, LatticeBlocks, needed_blocks
from undula.geometry.elastic_network import anisotropic_network_modes
from undula.geometry.frames import own_axes
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.nn.radial_sums import KNOTS, radial_sums
from undula.surface.atoms import CHANNELS, atom_channels
from undula.types import Structure

REACH = FIXED_REACH
"""Farther than this from the first frame's surface, Å, the field is the first frame's."""
BLUR_SPACING = 0.6
"""Of the lattice on which the first frame is blurred, Å."""
_EDGE = 0.2
"""Over which distance the occupancy goes from inside to outside before it is blurred, Å."""
_CARRIER = 4
"""The radial spline at which atoms stop carrying the points around them along."""
_BAND = 8 * _EDGE
"""Farther than this from the surface, Å, all is inside or outside."""
_TRUNCATED = 4.0
"""Gaussians end after so many deviations."""
SLAB = 16_000_000
"""Nodes of the lattice of the blurred first frame that are worked on at once: 0.4 GB."""


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """What a point is told of the first frame around it.

    Attributes:
        blurs: Widths σ of the Gaussians that blur the first frame's inside, Å.
        modes: Soft modes of the elastic network that may move a sample.
    """

    blurs: Sequence[float] = (0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
    modes: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "blurs", tuple(self.blurs))
        if not self.blurs or min(self.blurs) <= 0:
            raise UsageError(f"blurs should be positive widths in Å, not {list(self.blurs)}")
        if self.modes < 0:
            raise UsageError(f"modes should not be negative, not {self.modes}")

    @property
    def size(self) -> int:
        """How many numbers a point gets."""
        return len(self.blurs) + KNOTS * len(CHANNELS)


@dataclass(frozen=True, eq=False)
class LocalPoints:
    """Points with what they know of the first frame.

    Attributes:
        points: In the molecule's own frame, Å.
        distance: Signed distance to the first frame's surface, Å.
        direction: Its gradient.
        features: `LocalConfig.size` numbers.
    """

    points: Float[Tensor, "n 3"]
    distance: Float[Tensor, " n"]
    direction: Float[Tensor, "n 3"]
    features: Float[Tensor, "n features"]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Tensor | slice) -> LocalPoints:
        return LocalPoints(
            self.points[rows], self.distance[rows], self.direction[rows], self.features[rows]
        )


class FirstFrame:
    """A protein as it is at time 0, in its own frame.

    Args:
        structure: The first frame, in any pose.
        config: What points are told.
        probe: Radius of the solvent probe, Å.
        turned: Whether the own frame is turned to the principal axes, or only shifted.
    """

    def __init__(
        self,
        structure: Structure,
        config: LocalConfig,
        probe: float = 1.4,
        *,
        turned: bool = True,
    ) -> None:
        positions = structure.positions.double()
        self.config = config
        self.probe = probe
        self.centre = positions.mean(dim=0)
        self.axes = torch.eye(3, dtype=torch.float64)
        if turned:
            self.axes = own_axes(positions - self.centre)
        self.structure = replace(structure, positions=self.to_own(positions))
        self.scale = 1.1 * float(self.structure.positions.norm(dim=1).max())

    def to_own(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Return points of the structure's pose in the own frame."""
        return (points.double() - self.centre) @ self.axes

    @cached_property
    def surface(self) -> MolecularSurface:
        """The exact surface."""
        return surface_of(self.structure, self.probe)

    @property
    def residues(self) -> int:
        """How many residues there are."""
        return int(self.structure.residue_index[-1]) + 1

    @property
    def modes(self) -> int:
        """How many soft modes may move a sample."""
        return min(self.config.modes, max(3 * len(self.structure.alpha_carbons) - 6, 0))

    @cached_property
    def channels(self) -> Float[Tensor, "atoms channels"]:
        """What each atom is."""
        return atom_channels(self.structure)

    @cached_property
    def lattice(self) -> Lattice:
        """Where the blurred insides lie."""
        positions, margin = self.structure.positions, REACH + 2 * max(self.config.blurs)
        return Lattice.covering(
            positions.amin(dim=0) - margin, positions.amax(dim=0) + margin, BLUR_SPACING
        )

    @cached_property
    def blurred(self) -> tuple[Float[Tensor, "nx ny nz"], ...]:
        r"""Compute the inside blurred by each Gaussian, from 0 outside to 1 inside.

        .. math:: G_\sigma * \frac1{1 + e^{d / \epsilon}}

        A blurred first frame is the best forecast of those that do not know the protein, so a
        network that is told these numbers has little to learn before it does as well.
        """
        inside = torch.sigmoid(-self._distance(0, self.lattice.shape[0]) / _EDGE).float().numpy()
        return tuple(
            torch.from_numpy(gaussian_filter(inside, width, mode="constant", truncate=_TRUNCATED))
            for width in self._widths
        )

    @cached_property
    def blurred_blocks(self) -> LatticeBlocks:
        """The same numbers near the surface, for a lattice too large to be worked on at once.

        Slab by slab, each seen with all that a Gaussian reaches. Kept are blocks with nodes in the
        band around the surface and those that adjoin them: `EDGE` nodes are 6 Å, and nobody asks
        farther than `REACH` from the surface.
        """
        planes, widths = self.lattice.shape[0], self._widths
        found, reach = LatticeBlocks(self.lattice, len(widths)), self.blur_reach
        for start in range(0, planes, self.slab_planes):
            stop = min(start + self.slab_planes, planes)
            low, high = max(start - reach, 0), min(stop + reach, planes)
            distance = self._distance(low, high)
            near = distance.abs() < _BAND
            found.begin(start, needed_blocks(near, start - low, stop - start))
            inside = distance.neg_().div_(_EDGE).sigmoid_().float().numpy()
            for number, width in enumerate(widths):
                wide = gaussian_filter(inside, width, mode="constant", truncate=_TRUNCATED)
                found.put(number, torch.from_numpy(wide[start - low : stop - low]))
        return found

    @property
    def _widths(self) -> list[float]:
        return [width / BLUR_SPACING for width in self.config.blurs]

    @property
    def blur_reach(self) -> int:
        """How many nodes the widest Gaussian reaches, no less than a block."""
        return max(EDGE, int(_TRUNCATED * max(self._widths) + 0.5))

    @property
    def slab_planes(self) -> int:
        """How many planes of the lattice are blurred at once, whole blocks."""
        room = SLAB // math.prod(self.lattice.shape[1:]) - 2 * self.blur_reach
        return EDGE * max(room // EDGE, 2)

    def forget_blurs(self) -> None:
        """Let go of the blurred insides, the largest thing known; they can be computed again."""
        for name in ("blurred", "blurred_blocks"):
            self.__dict__.pop(name, None)

    def blurs_at(self, points: Float[Tensor, "n 3"]) -> list[Float[Tensor, " n"]]:
        """Return the blurred insides at points of the own frame, near the surface."""
        if self.lattice.nodes > SLAB:
            return list(self.blurred_blocks.interpolate(points).float())
        return [self.lattice.interpolate(values, points).float() for values in self.blurred]

    def _distance(self, low: int, high: int) -> Float[Tensor, "nx ny nz"]:
        """Return the distance to the surface on some planes of the lattice, within a band, Å."""
        lattice = self.lattice
        origin = lattice.origin + lattice.origin.new_tensor([low * lattice.spacing, 0.0, 0.0])
        shape = (high - low, lattice.shape[1], lattice.shape[2])
        return self.surface.lattice_distance(origin, lattice.spacing, shape, band=_BAND)

    def local(
        self,
        points: Float[Tensor, "n 3"],
        distance: Float[Tensor, " n"] | None = None,
        direction: Float[Tensor, "n 3"] | None = None,
    ) -> LocalPoints:
        """Tell points what they know.

        Args:
            points: In the own frame, Å.
            distance: Their distance to the first frame's surface, if it is known already, Å.
            direction: Its gradient, likewise.
        """
        if distance is None or direction is None:
            distance, direction = self.surface.signed_distance_and_gradient(points)
        sums = radial_sums(
            points, self.structure.positions, self.structure.vdw_radii, self.channels
        )
        blurs = self.blurs_at(points)
        features = torch.cat([torch.stack(blurs, dim=1), sums.flatten(1)], dim=1)
        return LocalPoints(points, distance.float(), direction.float(), features)

    @cached_property
    def residue_modes(self) -> tuple[Float[Tensor, " modes"], Float[Tensor, "modes residues 3"]]:
        """Root of compliance, and unit displacement of every residue, of the softest modes.

        Scaled so that the residues' mean square displacement by all modes is 1 Å².
        """
        on = self.structure.alpha_carbons
        stiffness, modes = anisotropic_network_modes(
            self.structure.positions[on], self.config.modes
        )
        moved = torch.zeros(len(modes), self.residues, 3, dtype=torch.float64)
        moved[:, torch.from_numpy(self.structure.residue_index)[on]] = modes
        size = stiffness.rsqrt()
        square = float((size.square()[:, None, None] * moved.square()).sum()) / self.residues
        return size / max(square, 1e-12) ** 0.5, moved

    def tremble(
        self,
        points: LocalPoints,
        modes: Float[Tensor, "samples modes"],
        residues: Float[Tensor, "samples residues"],
    ) -> Float[Tensor, "samples 3 n"]:
        r"""Carry random motions of the residues to points, as motions of the surface there.

        .. math::
            \xi_1(x) = \langle S[\delta](x), \nabla d_0(x) \rangle, \quad
            \delta_r = \sum_k u_k \lambda_k^{-1/2} v_{kr}, \qquad
            \xi_2(x) = S[w](x), \qquad
            S[h](x) = \frac{\sum_j K(|x - a_j| - r_j) \, h_{r(j)}}{\sum_j K(|x - a_j| - r_j)}

        Args:
            points: Where.
            modes: Standard normal numbers u, one per mode and sample.
            residues: Standard normal numbers w, one per residue and sample.

        Returns:
            ξ_1 (Å), ξ_2 and 1 for each sample; the motions turn with the molecule, so these numbers
            stay the same.
        """
        return self.carried(points, self.motions(modes, residues))

    def motions(
        self, modes: Float[Tensor, "samples modes"], residues: Float[Tensor, "samples residues"]
    ) -> Float[Tensor, "atoms channels"]:
        """Return 1 and, sample by sample, δ and w of each atom's residue, float32.

        Args:
            modes: As in `tremble`.
            residues: As in `tremble`.
        """
        index = torch.from_numpy(self.structure.residue_index)
        size, way = self.residue_modes
        moved = torch.einsum("sk,krc->rsc", modes[:, : len(size)].double() * size, way)
        channels = torch.cat([moved, residues.T[:, :, None].double()], dim=2).flatten(1)
        return torch.cat([torch.ones(len(index), 1), channels.float()[index]], dim=1)

    def carried(
        self, points: LocalPoints, motions: Float[Tensor, "atoms channels"]
    ) -> Float[Tensor, "samples 3 n"]:
        """Carry motions of atoms to points, as `tremble` does.

        Args:
            points: Where.
            motions: From `motions`.
        """
        sums = radial_sums(
            points.points, self.structure.positions, self.structure.vdw_radii, motions
        )[:, : _CARRIER + 1].sum(dim=1)
        carried = sums[:, 1:] / sums[:, :1].clamp(min=1e-3)
        found = carried.reshape(len(points), carried.shape[1] // 4, 4)
        along = (found[:, :, :3] * points.direction[:, None]).sum(dim=2)
        every = torch.stack([along, found[:, :, 3], torch.ones_like(along)], dim=1)
        return every.permute(2, 1, 0)
