"""What the local experts know of the atoms of the first frame: invariant numbers per atom."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.geometry.elastic_network import gaussian_network_fluctuations
from undula.geometry.neighbours import search_tree
from undula.types import Structure

_DEPTH = {"A": 0, "B": 1, "G": 2, "D": 3, "E": 4, "Z": 5, "H": 6}
_BACKBONE = ("N", "CA", "C", "O", "OXT")
CHANNELS = ("one", "depth", "mobility", "contacts", "exposed depth", "terminus")
"""What each channel of `atom_channels` is."""
CONTACT_RADIUS = 8.0
"""Within this distance other heavy atoms count as contacts, Å."""


def atom_channels(structure: Structure) -> Float[Tensor, "atoms channels"]:
    """Describe each atom by numbers that stay when the molecule is turned, mirrored or shifted.

    Depth is how many bonds an atom is from the backbone along its side chain, over 6; mobility
    the root of the Gaussian network's fluctuation of its residue; contacts the number of heavy
    atoms within `CONTACT_RADIUS`, over 100; terminus falls from 1 at the chain's ends by e every
    three residues; an exposed depth is one with few contacts.

    Args:
        structure: The first frame; hydrogens, if there are any, count as atoms of depth 0.

    Returns:
        One row per atom, float32, in the order of `CHANNELS`.
    """
    names = structure.atom_names
    depth = np.array([0 if n in _BACKBONE else _depth(n) for n in names.tolist()]) / 6
    positions = structure.positions.double().numpy()
    tree = search_tree(positions)
    contacts = (tree.query_ball_point(positions, CONTACT_RADIUS, return_length=True) - 1) / 100
    columns = [
        np.ones(len(names)),
        depth,
        _mobility(structure).numpy(),
        contacts,
        depth * np.exp(-contacts / 0.3),
        _terminus(structure),
    ]
    return torch.from_numpy(np.stack([np.asarray(c, np.float32) for c in columns], axis=1))


def _depth(name: str) -> int:
    return _DEPTH.get(name[1:2], 0)


def _mobility(structure: Structure) -> Float[Tensor, " atoms"]:
    on = structure.alpha_carbons
    if len(on) < 2:
        return torch.zeros(len(structure), dtype=torch.float64)
    square = gaussian_network_fluctuations(structure.positions[on].double())
    of_residue = torch.full((int(structure.residue_index.max()) + 1,), float(square.mean()))
    of_residue = of_residue.double()
    of_residue[torch.from_numpy(structure.residue_index)[on]] = square
    return of_residue[torch.from_numpy(structure.residue_index)].sqrt()


def _terminus(structure: Structure) -> np.ndarray:
    index = structure.residue_index
    near = np.zeros(len(index))
    for chain in np.unique(structure.chain_ids):
        mine = structure.chain_ids == chain
        along = index[mine]
        near[mine] = np.exp(-np.minimum(along - along.min(), along.max() - along) / 3)
    return near
