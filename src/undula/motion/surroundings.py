"""Graphs of atoms in one or many frames, with what the bonds say about each pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.geometry.periodic import pair_vectors, pairs_of_frames
from undula.nn.atom_graph import AtomGraph
from undula.types import MolecularSystem

BONDS_APART = 3
"""Pairs up to so many bonds apart are told from the rest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BondTable:
    """Which pairs of atoms are how many bonds apart.

    Attributes:
        codes: i × atoms + j of all pairs up to `BONDS_APART` bonds apart, both ways, ascending.
        apart: 1, 2 or 3 for each.
        atoms: How many atoms there are.
    """

    codes: Int[Tensor, " bonded"]
    apart: Int[Tensor, " bonded"]
    atoms: int

    def kinds(self, pairs: Int[Tensor, "2 pairs"]) -> Int[Tensor, " pairs"]:
        """Return 1, 2 or 3 for pairs so many bonds apart and 0 for all others.

        Args:
            pairs: Atoms of one frame or of many, one frame's after the other's.
        """
        if self.codes.numel() == 0 or pairs.shape[1] == 0:
            return torch.zeros_like(pairs[0])
        asked = (pairs[0] % self.atoms) * self.atoms + pairs[1] % self.atoms
        codes = self.codes.to(pairs.device)
        place = torch.searchsorted(codes, asked).clamp(max=len(codes) - 1)
        return torch.where(codes[place] == asked, self.apart.to(pairs.device)[place], 0)


def bond_table(system: MolecularSystem) -> BondTable:
    """List the pairs of atoms that are at most three bonds apart, by the shortest way."""
    atoms = len(system)
    around: list[set[int]] = [set() for _ in range(atoms)]
    for i, j in system.bonds.T.tolist():
        around[i].add(j)
        around[j].add(i)
    codes: list[int] = []
    apart: list[int] = []
    for atom in range(atoms):
        seen, edge = {atom}, {atom}
        for distance in range(1, BONDS_APART + 1):
            edge = {other for one in edge for other in around[one]} - seen
            seen |= edge
            codes += [atom * atoms + other for other in edge]
            apart += [distance] * len(edge)
    order = sorted(range(len(codes)), key=codes.__getitem__)
    return BondTable(
        codes=torch.tensor([codes[k] for k in order], dtype=torch.long),
        apart=torch.tensor([apart[k] for k in order], dtype=torch.long),
        atoms=atoms,
    )


def graph_of(
    positions: Float[Tensor, "blocks atoms 3"],
    boxes: Float[Tensor, "blocks 3 3"] | None,
    cutoff: float,
    bonds: BondTable | None,
) -> AtomGraph:
    """Build the graph of some frames, each a part that is not joined to the others.

    Args:
        positions: Å; unwrapped is fine.
        boxes: Edge vectors of each frame's box, Å, or none.
        cutoff: Atoms closer than this are pairs, Å.
        bonds: Tells bonded pairs from the others; none where all pairs are of one kind.

    Returns:
        Atoms of all frames one after the other; vectors without gradient.
    """
    frames, atoms, _ = positions.shape
    still = positions.detach()
    pairs, shift = pairs_of_frames(still, boxes, cutoff)
    return AtomGraph(
        pairs=pairs,
        vectors=pair_vectors(still.flatten(0, 1), pairs, shift),
        atoms=frames * atoms,
        kinds=None if bonds is None else bonds.kinds(pairs),
    )
