"""Covalent bonds of a structure, and frames in which they cannot be.

A damaged trajectory often decodes into numbers that look like positions. Bonds tell: their
lengths hardly change, so an atom that is wrong by an ångström shows in the distances to the
atoms one and two bonds away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from undula.elements import ELEMENTS
from undula.geometry.distances import minimum_image
from undula.types import Structure

SHORTEST_BOND = 0.7
"""Å; no two atoms bond this closely, H₂ (0.74) included."""
LONGEST_BOND = 2.3
"""Å; beyond the longest bonds between the elements below (I–C 2.2)."""
LEAST_STRAIN, LARGEST_STRAIN = {"bond": 0.3, "angle": 0.6}, 0.9
"""Å; how far a distance over one or two bonds may be from its median over the frames, at least
and at most."""
STRAIN_IN_SPREADS = {"bond": 9.0, "angle": 12.0}
"""Between these: so many times its spread (1.48 × median of the absolute deviations). In our 16
trajectories bonds stay below 6 and angles below 11."""

_COVALENT = frozenset("H D B C N O F SI P S CL AS SE BR I".split())  # noqa: SIM905
_TOLERANCE = 0.3
_FEWEST_FRAMES = 5
_BLOCK = 2**22


def covalent_bonds(structure: Structure) -> Int[Tensor, "2 bonds"]:
    r"""Find the covalent bonds of a structure by distance.

    .. math:: 0.4\,\text{Å} < d_{ij} < r_i + r_j + 0.3\,\text{Å}

    with covalent radii r; only between non-metals, not between two hydrogens, and within a
    residue, between neighbouring residues or between two atoms of sulphur. Bonds through the
    walls of a periodic box are found.

    Args:
        structure: Atoms, Å.

    Returns:
        Atom indices, i < j, sorted; the shape is (2, 0) where there are none.
    """
    radii = np.array([ELEMENTS[symbol].covalent_radius for symbol in structure.elements.tolist()])
    covalent = np.nonzero([symbol in _COVALENT for symbol in structure.elements.tolist()])[0]
    positions = structure.positions.double().cpu().numpy()
    if len(covalent) < 2:
        return torch.zeros(2, 0, dtype=torch.int64)
    reach = 2 * radii[covalent].max() + _TOLERANCE
    points, owner = positions[covalent], covalent
    if structure.box is not None:
        points, owner = _with_images(points, owner, structure.box.double().cpu().numpy(), reach)
    pairs = cKDTree(points).query_pairs(reach, output_type="ndarray")
    distance = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    i, j = np.sort(owner[pairs], axis=1).T
    hydrogen = np.isin(structure.elements, ("H", "D"))
    sulphur = structure.elements == "S"
    apart = np.abs(structure.residue_index[i] - structure.residue_index[j])
    bonded = (
        (distance > 0.4)
        & (distance < radii[i] + radii[j] + _TOLERANCE)
        & ~(hydrogen[i] & hydrogen[j])
        & ((apart <= 1) | (sulphur[i] & sulphur[j]))
        & (i != j)
    )
    found = np.unique(np.stack([i[bonded], j[bonded]], axis=1), axis=0)
    return torch.from_numpy(np.ascontiguousarray(found.T).astype(np.int64))


def _with_images(
    points: np.ndarray, owner: np.ndarray, box: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Wrap points into the box and add the images that lie within reach of its walls."""
    inverse = np.linalg.inv(box)
    fraction = points @ inverse
    fraction -= np.floor(fraction)
    margin = reach * np.linalg.norm(inverse, axis=0)
    owners, images = [owner], [fraction]
    for axis in range(3):
        fraction, owner = np.concatenate(images), np.concatenate(owners)
        shift = np.eye(3)[axis]
        for near, sign in (
            (fraction[:, axis] < margin[axis], 1),
            (fraction[:, axis] > 1 - margin[axis], -1),
        ):
            images.append(fraction[near] + sign * shift)
            owners.append(owner[near])
    return np.concatenate(images) @ box, np.concatenate(owners)


def angle_ends(bonds: Int[Tensor, "2 bonds"], atoms: int) -> Int[Tensor, "2 angles"]:
    """List the pairs of atoms that share a bonded neighbour and are not bonded themselves.

    Args:
        bonds: Atom indices.
        atoms: How many atoms there are.

    Returns:
        Atom indices, i < j, sorted.
    """
    neighbours: list[list[int]] = [[] for _ in range(atoms)]
    for i, j in bonds.T.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    ends = {
        (min(i, j), max(i, j)) for around in neighbours for i in around for j in around if i != j
    }
    found = sorted(ends - {(i, j) for i, j in bonds.T.tolist()})
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T.contiguous()


@dataclass(frozen=True, kw_only=True, eq=False)
class BrokenFrames:
    """What `broken_frames` found.

    Attributes:
        frames: Whether each frame has a distance that cannot be.
        pair: The atoms of the worst distance.
        distance: The worst distance, Å.
        frame: Its frame, from 0.
        everywhere: Bonds that are impossible in more than half of the frames: another order of
            atoms, or atoms that touch in the structure without a bond. They are not counted
            in ``frames``.
    """

    frames: Bool[Tensor, " frames"]
    pair: tuple[int, int]
    distance: float
    frame: int
    everywhere: Int[Tensor, "2 pairs"]


def broken_frames(
    positions: Float[Tensor, "frames atoms 3"],
    bonds: Int[Tensor, "2 bonds"],
    box: Float[Tensor, "frames 3 3"] | None = None,
) -> BrokenFrames:
    """Find frames in which bonds have impossible lengths or atoms stand apart from the rest.

    A bond should measure 0.7 to 2.3 Å. With five frames and more, distances over one and two
    bonds should also stay near their medians over all frames: within 9 and 12 times their spread,
    where that is more than 0.3 Å and 0.6 Å, and in any case within 0.9 Å.

    Args:
        positions: Å.
        bonds: Of the structure (`covalent_bonds`).
        box: If given, distances are those of the nearest images.

    Returns:
        The frames and the worst distance; nothing is broken where there are no bonds.
    """
    frames, atoms = positions.shape[:2]
    lasting = torch.cat([_lasts(positions, some, box) for some in _parts(bonds, frames)])
    broken = torch.zeros(frames, dtype=torch.bool)
    worst = (0.0, (0, 0), 0.0, 0)
    sound = bonds[:, lasting]
    for kind, pairs in (("bond", sound), ("angle", angle_ends(sound, atoms))):
        for some in _parts(pairs, frames):
            distance = _distances(positions, some, box)
            excess = torch.full_like(distance, -torch.inf)
            if kind == "bond":
                excess = _bond_excess(distance)
            if frames >= _FEWEST_FRAMES:
                excess = torch.maximum(excess, _strain(distance, kind))
            # A distance that is not finite is as broken as can be.
            excess = torch.nan_to_num(excess, nan=torch.inf)
            broken |= (excess > 0).any(dim=0)
            if excess.numel() and float(excess.max()) > worst[0]:
                pair, frame = divmod(int(excess.argmax()), frames)
                i, j = some[:, pair].tolist()
                worst = (float(excess.max()), (i, j), float(distance[pair, frame]), frame)
    return BrokenFrames(
        frames=broken,
        pair=worst[1],
        distance=worst[2],
        frame=worst[3],
        everywhere=bonds[:, ~lasting],
    )


def _parts(pairs: Int[Tensor, "2 pairs"], frames: int) -> tuple[Tensor, ...]:
    """Split pairs so that a part times the frames takes little memory; at least one part."""
    return pairs.split(max(1, _BLOCK // max(frames, 1)), dim=1)


def _bond_excess(distance: Float[Tensor, "pairs frames"]) -> Float[Tensor, "pairs frames"]:
    return torch.maximum(SHORTEST_BOND - distance, distance - LONGEST_BOND)


def _lasts(
    positions: Float[Tensor, "frames atoms 3"],
    bonds: Int[Tensor, "2 bonds"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Bool[Tensor, " bonds"]:
    """Tell which bonds are possible in at least half of the frames."""
    excess = _bond_excess(_distances(positions, bonds, box))
    return (excess > 0).double().mean(dim=1) <= 0.5


def _strain(distance: Float[Tensor, "pairs frames"], kind: str) -> Float[Tensor, "pairs frames"]:
    """Return by how much distances deviate more from their medians than they may."""
    deviation = (distance - distance.median(dim=1, keepdim=True).values).abs()
    spread = 1.48 * deviation.median(dim=1, keepdim=True).values
    allowed = STRAIN_IN_SPREADS[kind] * spread
    return deviation - allowed.clamp(LEAST_STRAIN[kind], LARGEST_STRAIN)


def _distances(
    positions: Float[Tensor, "frames atoms 3"],
    pairs: Int[Tensor, "2 pairs"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "pairs frames"]:
    i, j = pairs
    displacement = positions[:, j] - positions[:, i]
    if box is not None:
        displacement = minimum_image(displacement, box.to(displacement))
    return displacement.norm(dim=-1).T.contiguous()
