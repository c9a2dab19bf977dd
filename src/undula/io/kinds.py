"""Chemical kinds: what an atom is, by its element and by what it is bonded to."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from undula.elements import ELEMENTS
from undula.errors import UsageError
from undula.io.bonds import covalent_bonds
from undula.types import MolecularSystem, Structure

DEPTH = 3
"""How many bonds away a kind looks unless told otherwise: methyl groups in different places,
and the carbonyls of an acetyl group and of a residue, are told apart."""


def chemical_kinds(
    elements: np.ndarray, bonds: Int[Tensor, "2 bonds"], depth: int = DEPTH
) -> np.ndarray:
    r"""Name what each atom is, by what is found when walking outwards along its bonds.

    .. math::
        k_d(a \mid p) = \text{element}(a)
        \left( \text{sorted } k_{d-1}(b \mid a) \text{ for } b \text{ bonded to } a,\ b \ne p
        \right)

    An argon atom is ``AR``; at depth 1 the oxygen of water is ``O(HH)`` and its hydrogens are
    ``H(O)``, at depth 3 ``O(HH)`` and ``H(O(H))``. A name depends on nothing but the surroundings:
    the same group in another molecule has the same name. Mirror images share theirs.

    Args:
        elements: Upper-case symbols.
        bonds: Atom indices of each bond, once.
        depth: How many bonds are walked; 0 names the elements alone.

    Returns:
        One name per atom. Symbols of two letters stand in brackets behind the first parenthesis.

    Raises:
        UsageError: ``depth`` is negative.

    Source: the colour refinement of Weisfeiler and Leman (1968), written out. Differs from it:
    a walk does not turn back along the bond it came by, which keeps names short.
    """
    if depth < 0:
        raise UsageError(f"depth should not be negative, not {depth}")
    around: list[list[int]] = [[] for _ in elements]
    for i, j in bonds.T.tolist():
        around[i].append(j)
        around[j].append(i)
    symbols = [str(symbol) for symbol in elements]
    inner = [symbol if len(symbol) == 1 else f"[{symbol}]" for symbol in symbols]
    # What is seen of an atom b by a walk that comes from a.
    seen = {(a, b): inner[b] for a, some in enumerate(around) for b in some}
    for _ in range(depth - 1):
        seen = {
            (a, b): inner[b] + _listed([seen[b, c] for c in around[b] if c != a]) for a, b in seen
        }
    if depth == 0:
        return np.array(symbols, dtype=str)
    names = [symbols[a] + _listed([seen[a, b] for b in some]) for a, some in enumerate(around)]
    return np.array(names, dtype=str)


def _listed(names: list[str]) -> str:
    return f"({''.join(sorted(names))})" if names else ""


def molecular_system(
    structure: Structure,
    bonds: Int[Tensor, "2 bonds"] | None = None,
    charges: Float[Tensor, " atoms"] | None = None,
) -> MolecularSystem:
    """Make the system of a structure: its bonds, molecules, chemical kinds and masses.

    Args:
        structure: The atoms, whole or cut by the walls of their box.
        bonds: Atom indices of each bond; by default found by distance (`covalent_bonds`).
        charges: Partial charges, e.

    Returns:
        Molecules are numbered in the order of their first atoms; masses are standard atomic
        weights in float64.
    """
    found = covalent_bonds(structure) if bonds is None else _each_once(bonds)
    masses = [ELEMENTS[symbol].mass for symbol in structure.elements.tolist()]
    return MolecularSystem(
        structure=structure,
        bonds=found,
        molecules=_molecules(len(structure), found),
        kinds=chemical_kinds(structure.elements, found),
        charges=charges,
        masses=torch.tensor(masses, dtype=torch.float64),
    )


def _each_once(bonds: Int[Tensor, "2 bonds"]) -> Int[Tensor, "2 some"]:
    return torch.unique(bonds.sort(dim=0).values, dim=1)


def _molecules(atoms: int, bonds: Int[Tensor, "2 bonds"]) -> Int[Tensor, " atoms"]:
    i, j = bonds.numpy()
    graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(atoms, atoms))
    label = connected_components(graph, directed=False)[1]
    first = np.unique(label, return_index=True)[1]
    return torch.from_numpy(np.argsort(np.argsort(first))[label])
