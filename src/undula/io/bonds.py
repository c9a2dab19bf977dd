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
from torch import Tensor

from undula.elements import ELEMENTS
from undula.geometry.distances import minimum_image
from undula.geometry.neighbours import search_tree
from undula.types import Structure

SHORTEST_BOND = 0.7
"""Å; no two atoms bond this closely, H₂ (0.74) included."""
LONGEST_BOND = 2.3
"""Å; beyond the longest bonds between the elements below (I–C 2.2)."""
LEAST_STRAIN = {"bond": 0.3, "angle": 0.6, "plane": 0.6}
MOST_STRAIN = {"bond": 0.9, "angle": 0.9, "plane": 2.0}
STRAIN_IN_SPREADS = {"bond": 9.0, "angle": 12.0, "plane": 12.0}
"""How far a measure may be from its median over the frames: so many times its spread (1.48 ×
median of the absolute deviations), but at least and at most so much, in Å for the distances over
one bond and two (an angle). In our 16 trajectories bonds stay below 6 spreads, angles below 11,
planes below 11."""

_COVALENT = frozenset(
    ("H", "D", "B", "C", "N", "O", "F", "SI", "P", "S", "CL", "AS", "SE", "BR", "I")
)
_TOLERANCE = 0.3
_PLANAR = 0.35
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
    pairs = search_tree(points).query_pairs(reach, output_type="ndarray")
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
    around = _neighbours(bonds, atoms)
    ends = {(i, j) for some in around for i in some for j in some if i < j}
    found = sorted(ends - {(i, j) for i, j in bonds.T.tolist()})
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2).T.contiguous()


def _neighbours(bonds: Int[Tensor, "2 bonds"], atoms: int) -> list[list[int]]:
    neighbours: list[list[int]] = [[] for _ in range(atoms)]
    for i, j in bonds.T.tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    return neighbours


def planar_centres(
    positions: Float[Tensor, "frames atoms 3"],
    bonds: Int[Tensor, "2 bonds"],
    box: Float[Tensor, "frames 3 3"] | None = None,
) -> Int[Tensor, "4 planes"]:
    """List atoms with just three bonds that lie in a plane in most frames, and their neighbours.

    Args:
        positions: Å.
        bonds: Atom indices.
        box: Of the frames.

    Returns:
        Rows: the atom, then its neighbours.
    """
    around = _neighbours(bonds, positions.shape[1])
    centres = [(atom, *some) for atom, some in enumerate(around) if len(some) == 3]
    found = torch.tensor(centres, dtype=torch.int64).reshape(-1, 4).T.contiguous()
    middle = _triple_product(positions, found, box).nanmedian(dim=1).values
    return found[:, middle.abs() < _PLANAR]


@dataclass(frozen=True, kw_only=True, eq=False)
class BrokenFrames:
    """What `broken_frames` found.

    Attributes:
        frames: Whether each frame has a geometry that cannot be.
        kind: Of the worst finding: ``bond``, ``angle`` or ``plane``; empty if there is none.
        atoms: Its atoms: two, or the centre and its three neighbours.
        value: Its distance in Å, or the triple product of the directions of three bonds.
        frame: Its frame, from 0.
        everywhere: Bonds that are impossible in more than half of the frames: another order of
            atoms, or atoms that touch in the structure without a bond. They are not counted
            in ``frames``.
    """

    frames: Bool[Tensor, " frames"]
    kind: str
    atoms: tuple[int, ...]
    value: float
    frame: int
    everywhere: Int[Tensor, "2 pairs"]


def broken_frames(
    positions: Float[Tensor, "frames atoms 3"],
    bonds: Int[Tensor, "2 bonds"],
    box: Float[Tensor, "frames 3 3"] | None = None,
) -> BrokenFrames:
    """Find frames in which bonds have impossible lengths or atoms stand apart from the rest.

    A bond should measure 0.7 to 2.3 Å. With five frames and more, distances over one and two
    bonds, and flat centres of three bonds, should also stay near their medians over all frames
    (`LEAST_STRAIN` and what follows it). An atom that turns about a bond, such as the last one
    of a side chain, may do so by more than an ångström unseen.

    Args:
        positions: Å.
        bonds: Of the structure (`covalent_bonds`).
        box: If given, distances are those of the nearest images.

    Returns:
        The frames and the worst finding; nothing is broken where there are no bonds.
    """
    frames, atoms = positions.shape[:2]
    lasting = torch.cat([_lasts(positions, some, box) for some in _parts(bonds, frames)])
    sound = bonds[:, lasting]
    broken = torch.zeros(frames, dtype=torch.bool)
    worst: tuple[float, str, tuple[int, ...], float, int] = (0.0, "", (), 0.0, 0)
    groups = {"bond": sound, "angle": angle_ends(sound, atoms)}
    if frames >= _FEWEST_FRAMES:
        groups["plane"] = planar_centres(positions, sound, box)
    for kind, group in groups.items():
        for some in _parts(group, frames):
            measure = _triple_product if kind == "plane" else _distances
            values = measure(positions, some, box)
            excess = torch.full_like(values, -torch.inf)
            if kind == "bond":
                excess = _bond_excess(values)
            if frames >= _FEWEST_FRAMES:
                excess = torch.maximum(excess, _strain(values, kind))
            # A value that is not finite is as broken as can be.
            excess = torch.nan_to_num(excess, nan=torch.inf)
            broken |= (excess > 0).any(dim=0)
            if excess.numel() and float(excess.max()) > worst[0]:
                row, frame = divmod(int(excess.argmax()), frames)
                worst = (
                    float(excess.max()),
                    kind,
                    tuple(some[:, row].tolist()),
                    float(values[row, frame]),
                    frame,
                )
    return BrokenFrames(
        frames=broken,
        kind=worst[1],
        atoms=worst[2],
        value=worst[3],
        frame=worst[4],
        everywhere=bonds[:, ~lasting],
    )


def _parts(groups: Int[Tensor, "_ groups"], frames: int) -> tuple[Tensor, ...]:
    """Split groups of atoms so that a part times the frames takes little memory."""
    return groups.split(max(1, _BLOCK // max(frames, 1)), dim=1)


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


def _strain(values: Float[Tensor, "rows frames"], kind: str) -> Float[Tensor, "rows frames"]:
    """Return by how much values deviate more from their medians than they may."""
    deviation = (values - values.nanmedian(dim=1, keepdim=True).values).abs()
    spread = 1.48 * deviation.nanmedian(dim=1, keepdim=True).values
    allowed = STRAIN_IN_SPREADS[kind] * spread
    return deviation - allowed.clamp(LEAST_STRAIN[kind], MOST_STRAIN[kind])


def _displacements(
    positions: Float[Tensor, "frames atoms 3"],
    start: Int[Tensor, " pairs"],
    end: Int[Tensor, " pairs"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "frames pairs 3"]:
    displacement = positions[:, end] - positions[:, start]
    return displacement if box is None else minimum_image(displacement, box.to(displacement))


def _distances(
    positions: Float[Tensor, "frames atoms 3"],
    pairs: Int[Tensor, "2 pairs"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "pairs frames"]:
    i, j = pairs
    return _displacements(positions, i, j, box).norm(dim=-1).T.contiguous()


def _triple_product(
    positions: Float[Tensor, "frames atoms 3"],
    centres: Int[Tensor, "4 centres"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "centres frames"]:
    """Compute the triple product of the directions of three bonds: 0 in a plane, else to ±1."""
    centre, *ends = centres
    a, b, c = (
        torch.nn.functional.normalize(_displacements(positions, centre, end, box), dim=-1)
        for end in ends
    )
    return (torch.linalg.cross(a, b) * c).sum(dim=-1).T.contiguous()
