"""Covalent bonds of a structure, and frames in which they cannot be.

A damaged trajectory often decodes into numbers that look like positions. Bonds tell: their
lengths hardly change, so an atom that is wrong by an ångström shows in the distances to the
atoms one and two bonds away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
planes below 11. In few frames the spread is known badly: all of it times 1 + 3 / frames."""
MOST_TOGETHER = 1.3
"""The squares of the shares of what is allowed, summed over all measures that a bond is part of:
atoms that were moved together strain the bond to the others and all angles there. In our
trajectories of 100 frames it stays below 1.0."""
OTHER_HAND = -0.5
"""The triple product at a carbon, where it is positive in the median, below which it was turned
inside out. The worst of our trajectories, of a steered simulation, is −0.2."""

_COVALENT = frozenset(
    ("H", "D", "B", "C", "N", "O", "F", "SI", "P", "S", "CL", "AS", "SE", "BR", "I")
)
_TOLERANCE = 0.3
_PLANAR = 0.35
_FEWEST_FRAMES = 5
_BLOCK = 2**20


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


def three_bonded(
    positions: Float[Tensor, "frames atoms 3"],
    bonds: Int[Tensor, "2 bonds"],
    box: Float[Tensor, "frames 3 3"] | None = None,
    release: Callable[[], None] = lambda: None,
) -> tuple[Int[Tensor, "4 planes"], Int[Tensor, "4 hands"]]:
    """List atoms with just three bonds: those flat in most frames, and the others.

    Args:
        positions: Å.
        bonds: Atom indices.
        box: Of the frames.
        release: As in `broken_frames`.

    Returns:
        Rows of both: the atom, then its neighbours, of the others in an order in which the triple
        product of the bonds' directions is positive in most frames.
    """
    around = _neighbours(bonds, positions.shape[1])
    centres = [(atom, *some) for atom, some in enumerate(around) if len(some) == 3]
    found = torch.tensor(centres, dtype=torch.int64).reshape(-1, 4).T.contiguous()
    middles = [torch.zeros(0, dtype=positions.dtype)]
    for some in _parts(found, len(positions)):
        middles.append(_triple_product(positions, some, box).nanmedian(dim=1).values)
        release()
    middle = torch.cat(middles)
    flat = middle.abs() < _PLANAR
    found[2:, middle < 0] = found[2:, middle < 0].flip(0)
    return found[:, flat], found[:, ~flat]


@dataclass(frozen=True, kw_only=True, eq=False)
class BrokenFrames:
    """What `broken_frames` found.

    Attributes:
        frames: Whether each frame has a geometry that cannot be.
        kind: Of the worst finding: ``bond``, ``angle``, ``plane``, ``hand`` (a carbon turned inside
            out) or ``together`` (many measures at one bond are odd); empty if there is none.
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
    carbon: Bool[np.ndarray, " atoms"] | None = None,
    release: Callable[[], None] = lambda: None,
) -> BrokenFrames:
    """Find frames in which bonds have impossible lengths or atoms stand apart from the rest.

    A bond should measure 0.7 to 2.3 Å. With five frames and more, distances over one and two
    bonds, and flat centres of three bonds, should also stay near their medians over all frames
    (`LEAST_STRAIN` and what follows it), each for itself and those at one bond together; and a
    carbon of three known bonds keeps its hand. An atom that turns about a bond, such as the last
    one of a side chain, may do so by more than an ångström unseen.

    Args:
        positions: Å.
        bonds: Of the structure (`covalent_bonds`).
        box: If given, distances are those of the nearest images.
        carbon: Which atoms are carbon; a nitrogen may turn inside out. By default none is known.
        release: Called after some bonds were looked at, so that frames on disk can be let go.

    Returns:
        The frames and the worst finding; nothing is broken where there are no bonds.
    """
    frames, atoms = positions.shape[:2]
    lasts = []
    for some in _parts(bonds, frames):
        lasts.append(_lasts(positions, some, box))
        release()
    lasting = torch.cat(lasts)
    sound = bonds[:, lasting]
    groups = {"bond": sound, "angle": angle_ends(sound, atoms)}
    if frames >= _FEWEST_FRAMES:
        groups["plane"], hands = three_bonded(positions, sound, box, release)
        if carbon is not None:
            groups["hand"] = hands[:, torch.from_numpy(carbon)[hands[0]]]
        if sound.shape[1]:
            groups["together"] = sound
    worst = _Worst(torch.zeros(frames, dtype=torch.bool))
    for kind, group in groups.items():
        if kind == "together":
            crossing = _crossing(groups, atoms)
            for some in torch.arange(sound.shape[1]).split(max(1, _BLOCK // max(frames, 1))):
                excess = _together(positions, groups, crossing, some, box) - MOST_TOGETHER
                values = _distances(positions, sound[:, some], box)
                worst.look(kind, sound[:, some], values, excess)
                release()
            continue
        for some in _parts(group, frames):
            values = _values(positions, some, kind, box)
            excess = torch.full_like(values, -torch.inf)
            if kind == "bond":
                excess = _bond_excess(values)
            if kind == "hand":
                excess = OTHER_HAND - values
            elif frames >= _FEWEST_FRAMES:
                deviation, allowed = _strain(values, kind)
                excess = torch.maximum(excess, deviation - allowed)
            worst.look(kind, some, values, excess)
            release()
    return BrokenFrames(
        frames=worst.frames,
        kind=worst.kind,
        atoms=worst.atoms,
        value=worst.value,
        frame=worst.frame,
        everywhere=bonds[:, ~lasting],
    )


@dataclass(eq=False)
class _Worst:
    """What was found so far: broken frames, and the worst finding."""

    frames: Bool[Tensor, " frames"]
    excess: float = 0.0
    kind: str = ""
    atoms: tuple[int, ...] = ()
    value: float = 0.0
    frame: int = 0

    def look(
        self,
        kind: str,
        group: Int[Tensor, "_ rows"],
        values: Float[Tensor, "rows frames"],
        excess: Float[Tensor, "rows frames"],
    ) -> None:
        """Take note of where values exceed what they may be."""
        # A value that is not finite is as broken as can be.
        excess = torch.nan_to_num(excess, nan=torch.inf)
        self.frames |= (excess > 0).any(dim=0)
        # Where a single measure is impossible, that says more than many that are odd.
        if kind == "together" and self.kind:
            return
        if excess.numel() and float(excess.max()) > self.excess:
            row, self.frame = divmod(int(excess.argmax()), excess.shape[1])
            self.excess, self.kind = float(excess.max()), kind
            self.atoms = tuple(group[:, row].tolist())
            self.value = float(values[row, self.frame])


def _crossing(
    groups: Mapping[str, Int[Tensor, "_ _"]], atoms: int
) -> dict[str, Int[np.ndarray, "2 pairs"]]:
    """List which angles and planes each bond is part of: rows of bonds, ascending, and of them."""
    bond = {(i, j): row for row, (i, j) in enumerate(groups["bond"].T.tolist())}
    angle = {(i, j): row for row, (i, j) in enumerate(groups["angle"].T.tolist())}
    pairs: dict[str, set[tuple[int, int]]] = {"angle": set(), "plane": set()}
    for centre, some in enumerate(_neighbours(groups["bond"], atoms)):
        for i in some:
            row = bond[min(i, centre), max(i, centre)]
            ends = ((min(i, k), max(i, k)) for k in some if k != i)
            pairs["angle"] |= {(row, angle[pair]) for pair in ends if pair in angle}
    for row, (centre, *ends) in enumerate(groups["plane"].T.tolist()):
        pairs["plane"] |= {(bond[min(i, centre), max(i, centre)], row) for i in ends}
    return {
        kind: np.array(sorted(found), dtype=np.int64).reshape(-1, 2).T
        for kind, found in pairs.items()
    }


def _together(
    positions: Float[Tensor, "frames atoms 3"],
    groups: Mapping[str, Int[Tensor, "_ _"]],
    crossing: Mapping[str, Int[np.ndarray, "2 pairs"]],
    some: Int[Tensor, " rows"],
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "rows frames"]:
    """Sum the squared shares of what is allowed over all measures at each of some bonds."""
    first = int(some[0])
    total = _share(positions, groups["bond"][:, some], "bond", box).square()
    for kind, (bonds, rows) in crossing.items():
        start, end = np.searchsorted(bonds, [first, first + len(some)])
        for begin in range(start, end, 4 * len(some)):
            part = slice(begin, min(end, begin + 4 * len(some)))
            share = _share(positions, groups[kind][:, torch.from_numpy(rows[part])], kind, box)
            total.index_add_(0, torch.from_numpy(bonds[part] - first), share.square())
    return total


def _share(
    positions: Float[Tensor, "frames atoms 3"],
    group: Int[Tensor, "_ rows"],
    kind: str,
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "rows frames"]:
    """Return deviations as shares of what is allowed."""
    deviation, allowed = _strain(_values(positions, group, kind, box), kind)
    return deviation / allowed


def _values(
    positions: Float[Tensor, "frames atoms 3"],
    group: Int[Tensor, "_ rows"],
    kind: str,
    box: Float[Tensor, "frames 3 3"] | None,
) -> Float[Tensor, "rows frames"]:
    measure = _triple_product if kind in ("plane", "hand") else _distances
    return measure(positions, group, box)


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


def _strain(
    values: Float[Tensor, "rows frames"], kind: str
) -> tuple[Float[Tensor, "rows frames"], Float[Tensor, "rows 1"]]:
    """Return by how much values deviate from their medians, and how much they may."""
    deviation = (values - values.nanmedian(dim=1, keepdim=True).values).abs()
    spread = 1.48 * deviation.nanmedian(dim=1, keepdim=True).values
    allowed = (STRAIN_IN_SPREADS[kind] * spread).clamp(LEAST_STRAIN[kind], MOST_STRAIN[kind])
    return deviation, allowed * (1 + 3 / values.shape[1])


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
