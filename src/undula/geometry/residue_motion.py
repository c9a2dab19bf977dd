"""Atoms that follow the Cα around them: from a moved chain to a moved molecule."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undula.geometry.elastic_network import GNM_CUTOFF
from undula.geometry.frames import superposition
from undula.geometry.neighbours import search_tree
from undula.types import Structure

FEWEST_NODES = 4
"""Cα that a structure needs: fewer have no direction in which to turn a residue."""


def carried(
    structure: Structure,
    atoms: Float[Tensor, "frames atoms 3"],
    moved: Float[Tensor, "frames nodes 3"],
    *,
    anchored: bool = False,
) -> Float[Tensor, "frames atoms 3"]:
    r"""Move each residue as one piece with the Cα around it.

    .. math:: x_a \mapsto R_r x_a + s_r, \qquad (R_r, s_r) = \arg\min \sum_{n \in N(r)}
        \lVert R c_n + s - c'_n \rVert^2

    with N(r) the Cα within `GNM_CUTOFF` of residue r, at least `FEWEST_NODES` of them. Lengths
    within a residue stay exactly, bonds between residues nearly (0.1 Å); but a Cα goes only as
    far as those around it do on average, about half as far as a stiff mode of its own takes it.
    Where residues are anchored, they only turn with those around them, s is such that
    their own Cα goes where its node went, and the chain's bonds stretch with the network's.

    Args:
        structure: Where the Cα are, and which atom belongs to which residue.
        atoms: What is moved, Å: the structure's atoms, or a variant of them for every frame.
        moved: Where its Cα go, in the order of ``structure.alpha_carbons``, Å; at least
            `FEWEST_NODES`.
        anchored: Whether each Cα goes exactly where its node went; a residue without one goes
            as one that is not anchored.

    Returns:
        The moved atoms, Å.
    """
    start = structure.positions.double()
    nodes = start[structure.alpha_carbons]
    centres = start[torch.from_numpy(residue_centres(structure))]
    tree = search_tree(nodes.numpy())
    nearest = np.asarray(tree.query(centres.numpy(), k=FEWEST_NODES)[1])
    own = {
        int(residue): node
        for node, residue in enumerate(structure.residue_index[structure.alpha_carbons.numpy()])
    }
    found = atoms.clone()
    for residue, centre in enumerate(centres):
        close = tree.query_ball_point(centre.numpy(), GNM_CUTOFF)
        around = torch.from_numpy(np.union1d(close, nearest[residue]).astype(np.int64))
        mine = torch.from_numpy(np.nonzero(structure.residue_index == residue)[0])
        back, shift = superposition(moved[:, around], nodes[around])
        if anchored and residue in own:
            shift = centre - (back @ moved[:, own[residue], :, None])[..., 0]
        found[:, mine] = (atoms[:, mine] - shift[:, None]) @ back
    return found


def residue_centres(structure: Structure) -> np.ndarray:
    """Return the Cα of each residue, or its first atom where there is none."""
    place = np.unique(structure.residue_index, return_index=True)[1]
    alpha = structure.alpha_carbons.flip(0).numpy()
    place[structure.residue_index[alpha]] = alpha
    return place
