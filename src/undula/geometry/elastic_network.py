"""Elastic networks: how a folded chain would tremble if its contacts were springs."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import coo_array, csc_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu
from torch import Tensor

from undula.geometry.neighbours import search_tree

GNM_CUTOFF = 7.3
"""Distance of two Cα that counts as a contact in the Gaussian network model, Å."""
ANM_CUTOFF = 15.0
"""The same in the anisotropic network model, Å."""
SOFTEST = 1e-6
"""Modes below this stiffness, in spring constants, are rigid-body motions and left out."""
LARGEST_DENSE = 3600
"""The most degrees of freedom of a dense stiffness matrix, of 0.1 GB; beyond, it is sparse."""
MOST_BLOCKS = 500
"""About so many rigid blocks stand for the nodes of a larger anisotropic network."""
_CHAIN_BREAK = 6.0
"""Successive nodes farther apart than this are of different blocks, Å."""
_COLUMNS = 128
"""Columns of an inverse that are solved for at once."""


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
        One number per node, the same for a turned, mirrored or shifted chain. Many nodes
        (`LARGEST_DENSE`) take a sparse factorisation, which gives the same to rounding.

    Source: Bahar, Atilgan and Erman (1997).
    """
    i, j = _contacts(positions, cutoff)
    if 3 * len(positions) > LARGEST_DENSE:
        return _sparse_fluctuations(len(positions), i.numpy(), j.numpy())
    stiffness = torch.zeros(len(positions), len(positions), dtype=torch.float64)
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
        Stiffness λ in spring constants, ascending, and unit modes v. Networks of more degrees
        of freedom than `LARGEST_DENSE` move in rigid blocks of successive nodes.

    Source: Atilgan et al. (2001); blocks: Tama, Gadea, Marques and Sanejouand (2000).
    """
    nodes = len(positions)
    centred = positions.double() - positions.double().mean(dim=0)
    i, j = _contacts(positions, cutoff)
    way = torch.nn.functional.normalize(centred[j] - centred[i], dim=1)
    if 3 * nodes > LARGEST_DENSE:
        values, vectors = _block_modes(centred, i, j, way)
    else:
        values, vectors = _node_modes(nodes, i, j, way)
    kept = torch.nonzero(values > SOFTEST)[:modes, 0]
    found = vectors[:, kept].T.reshape(len(kept), nodes, 3)
    if not len(kept):
        return values[kept], found
    most = found.square().sum(dim=2).argmax(dim=1)
    outward = (found[torch.arange(len(kept)), most] * centred[most]).sum(dim=1)
    return values[kept], found * torch.where(outward < 0, -1.0, 1.0)[:, None, None]


def _node_modes(
    nodes: int, i: Tensor, j: Tensor, way: Float[Tensor, "contacts 3"]
) -> tuple[Float[Tensor, " all"], Float[Tensor, "all all"]]:
    """Solve for all modes of a network, each node moving by itself."""
    block = -way[:, :, None] * way[:, None, :]
    stiffness = torch.zeros(nodes, nodes, 3, 3, dtype=torch.float64)
    stiffness[i, j] = block
    stiffness[j, i] = block
    own = torch.arange(nodes)
    stiffness[own, own] = -stiffness.sum(dim=1)
    flat = stiffness.permute(0, 2, 1, 3).reshape(3 * nodes, 3 * nodes)
    values, vectors = torch.linalg.eigh(flat)
    return values, vectors


def _block_modes(
    positions: Float[Tensor, "nodes 3"], i: Tensor, j: Tensor, way: Float[Tensor, "contacts 3"]
) -> tuple[Float[Tensor, " some"], Float[Tensor, "all some"]]:
    r"""Solve for the modes in which rigid blocks of successive nodes move.

    .. math:: P^T H P \, u = \lambda u, \qquad v = P u, \qquad H = B^T B

    with the orthonormal rigid motions P of all blocks, and one row of B for each contact: by how
    much it is stretched when nodes move.
    """
    contact = np.arange(len(i))
    rows = np.repeat(np.concatenate([contact, contact]), 3)
    columns = (3 * torch.cat([i, j])[:, None] + torch.arange(3)).flatten().numpy()
    stretch = torch.cat([-way, way]).flatten().numpy()
    shape = (len(i), positions.numel())
    stretched = csr_array(coo_array((stretch, (rows, columns)), shape=shape))
    motions = _rigid_motions(positions)
    reduced = stretched @ motions
    values, vectors = torch.linalg.eigh(torch.from_numpy((reduced.T @ reduced).toarray()))
    softest = torch.nonzero(values > SOFTEST)[:, 0]
    softest = softest[: min(len(softest), LARGEST_DENSE // 6)]
    return values[softest], torch.from_numpy(motions @ vectors[:, softest].numpy())


def _rigid_motions(positions: Float[Tensor, "nodes 3"]) -> csr_array:
    """Return the orthonormal translations and rotations of blocks of nodes, one per column."""
    nodes = len(positions)
    most = -(-nodes // MOST_BLOCKS)
    broken = np.nonzero((positions[1:] - positions[:-1]).norm(dim=1).numpy() > _CHAIN_BREAK)[0] + 1
    if len(broken) > MOST_BLOCKS:
        broken = broken[:0]
    runs = np.split(np.arange(nodes), broken)
    blocks = [part for run in runs for part in np.array_split(run, -(-len(run) // most))]
    rows, columns, entries, found = [], [], [], 0
    for block in blocks:
        around = (positions[block] - positions[block].mean(dim=0)).numpy()
        turns = np.cross(np.eye(3)[:, None], around[None])
        shifts = np.broadcast_to(np.eye(3)[:, None], (3, len(block), 3))
        way, size, _ = np.linalg.svd(
            np.concatenate([shifts, turns]).reshape(6, -1).T, full_matrices=False
        )
        way = way[:, size > 1e-6 * size.max()]
        places = (3 * block[:, None] + np.arange(3)).flatten()
        rows.append(np.repeat(places, way.shape[1]))
        columns.append(np.tile(found + np.arange(way.shape[1]), len(places)))
        entries.append(way.flatten())
        found += way.shape[1]
    index = (np.concatenate(rows), np.concatenate(columns))
    return csr_array(coo_array((np.concatenate(entries), index), shape=(3 * nodes, found)))


def _sparse_fluctuations(nodes: int, i: np.ndarray, j: np.ndarray) -> Float[Tensor, " nodes"]:
    r"""Return the diagonal of a Laplacian's pseudo-inverse by solving for columns of an inverse.

    .. math:: (\Gamma^+)_{ii} = G_{ii} - 2 \overline{G_{i \cdot}} + \overline{G}

    where G is the inverse with the first node of each connected part left out (0 there), and
    means are over the part.
    """
    ones = np.ones(len(i))
    links = csr_array(coo_array((ones, (i, j)), shape=(nodes, nodes)))
    links = links + links.T
    parts, label = connected_components(links, directed=False)
    size = np.bincount(label, minlength=parts)
    free = np.ones(nodes, dtype=bool)
    free[np.unique(label, return_index=True)[1]] = False
    places = np.nonzero(free)[0]
    found = np.zeros(nodes)
    if len(places):
        degree = csr_array(coo_array((links.sum(axis=0), (np.arange(nodes),) * 2)))
        grounded = csc_array((degree - links)[places][:, places])
        factors = splu(grounded, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        mean = np.zeros(nodes)
        mean[places] = factors.solve(1 / size[label[places]])
        overall = np.bincount(label, weights=mean, minlength=parts) / size
        for start in range(0, len(places), _COLUMNS):
            few = np.arange(start, min(start + _COLUMNS, len(places)))
            wanted = np.zeros((len(places), len(few)))
            wanted[few, few - start] = 1
            found[places[few]] = factors.solve(wanted)[few, few - start]
        found += overall[label] - 2 * mean
    alone = (size == 1)[label]
    found[alone] = found[~alone].max() if (~alone).any() else 0.0
    return torch.from_numpy(found)


def _contacts(positions: Float[Tensor, "nodes 3"], cutoff: float) -> tuple[Tensor, Tensor]:
    pairs = search_tree(positions.detach().cpu().double().numpy()).query_pairs(
        cutoff, output_type="ndarray"
    )
    found = torch.from_numpy(pairs).long()
    return found[:, 0], found[:, 1]
