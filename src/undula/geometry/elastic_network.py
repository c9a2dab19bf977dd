"""Elastic networks: how a folded chain would tremble if its contacts were springs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from undula.geometry.neighbours import search_tree

GNM_CUTOFF = 7.3
"""Distance of two Cα that counts as a contact in the Gaussian network model, Å."""
ANM_CUTOFF = 15.0
"""The same in the anisotropic network model, Å."""
SOFTEST = 1e-6
"""Modes below this stiffness, in spring constants, are rigid-body motions and left out."""


def gaussian_network_fluctuations(
    positions: Float[Tensor, "nodes 3"], cutoff: float = GNM_CUTOFF
) -> Float[Tensor, " nodes"]:
    r"""Compute the mean square fluctuation of each node of a Gaussian network.

    .. math:: \langle \Delta r_i^2 \rangle \propto (\Gamma^{+})_{ii}, \qquad
        \Gamma_{ij} = -1 \text{ if } |r_i - r_j| < r_c, \quad \Gamma_{ii} = -\sum_j \Gamma_{ij}

    A pure number; 3 kT / γ makes it an area. Nodes without any contact get the largest value of
    the others; without any contact at all, everything is 0.

    Args:
        positions: Of the Cα, Å.
        cutoff: Contact distance r_c, Å.

    Returns:
        One number per node, the same for a turned, mirrored or shifted chain.

    Source: Bahar, Atilgan and Erman (1997).
    """
    stiffness = torch.zeros(len(positions), len(positions), dtype=torch.float64)
    i, j = _contacts(positions, cutoff)
    stiffness[i, j] = stiffness[j, i] = -1.0
    stiffness.diagonal().copy_(-stiffness.sum(dim=1))
    alone = stiffness.diagonal() == 0
    values, vectors = torch.linalg.eigh(stiffness)
    inverse = torch.where(values > SOFTEST, 1 / values.clamp(min=SOFTEST), 0.0)
    found = (vectors.square() * inverse).sum(dim=1)
    found[alone] = found[~alone].max() if bool((~alone).any()) else 0.0
    return found


def anisotropic_network_modes(
    positions: Float[Tensor, "nodes 3"], modes: int, cutoff: float = ANM_CUTOFF
) -> tuple[Float[Tensor, " modes"], Float[Tensor, "modes nodes 3"]]:
    r"""Compute the softest internal modes of an anisotropic network.

    .. math:: H_{ij} = -\frac{r_{ij} r_{ij}^T}{|r_{ij}|^2} \text{ for } |r_{ij}| < r_c, \qquad
        H v_k = \lambda_k v_k

    The sign of a mode is arbitrary in the mathematics; here the node that moves most moves away
    from the centroid, so that modes turn, mirror and shift with the chain.

    Args:
        positions: Of the Cα, Å.
        modes: How many at most; a chain has 3 × nodes − 6.
        cutoff: Contact distance r_c, Å.

    Returns:
        Stiffness λ in spring constants, ascending, and unit modes v.

    Source: Atilgan et al. (2001).
    """
    nodes = len(positions)
    centred = positions.double() - positions.double().mean(dim=0)
    i, j = _contacts(positions, cutoff)
    way = torch.nn.functional.normalize(centred[j] - centred[i], dim=1)
    block = -way[:, :, None] * way[:, None, :]
    stiffness = torch.zeros(nodes, nodes, 3, 3, dtype=torch.float64)
    stiffness[i, j] = block
    stiffness[j, i] = block
    own = torch.arange(nodes)
    stiffness[own, own] = -stiffness.sum(dim=1)
    flat = stiffness.permute(0, 2, 1, 3).reshape(3 * nodes, 3 * nodes)
    values, vectors = torch.linalg.eigh(flat)
    kept = torch.nonzero(values > SOFTEST)[:modes, 0]
    found = vectors[:, kept].T.reshape(-1, nodes, 3)
    if not len(kept):
        return values[kept], found
    most = found.square().sum(dim=2).argmax(dim=1)
    outward = (found[torch.arange(len(kept)), most] * centred[most]).sum(dim=1)
    return values[kept], found * torch.where(outward < 0, -1.0, 1.0)[:, None, None]


def _contacts(positions: Float[Tensor, "nodes 3"], cutoff: float) -> tuple[Tensor, Tensor]:
    pairs = search_tree(positions.detach().cpu().double().numpy()).query_pairs(
        cutoff, output_type="ndarray"
    )
    found = torch.from_numpy(pairs).long()
    return found[:, 0], found[:, 1]
