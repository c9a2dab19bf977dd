r"""Noise as the climate has it, and molecules whose bonds survive it.

Atoms of one molecule are uncertain together, and what is unknown at one time is still unknown a
moment later. `climatological_noise` draws whole courses of such errors from three tables
(`undula.motion.climatology`); `restored_bonds` then brings atoms back to their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

from undula.io.bonds import angle_ends
from undula.motion.windows import Window
from undula.types import MolecularSystem

_ELEMENTS_AT_ONCE = 4_000_000
"""Of the matrices of correlation that stand in memory together (32 MB in float64)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Topology:
    """Molecules with the same bonds between their atoms, taken in the order of the structure.

    Attributes:
        members: Atom indices, one molecule a row.
        hops: Number of bonds between each two of its atoms; the number of atoms for two that no
            bonds connect.
    """

    members: Int[Tensor, "molecules size"]
    hops: Int[Tensor, "size size"]


def topologies(system: MolecularSystem) -> list[Topology]:
    """Sort the molecules of a system by how their atoms are bonded."""
    molecule = system.molecules.cpu().numpy()
    order = np.argsort(molecule, kind="stable")
    sizes = np.bincount(molecule)
    starts = np.cumsum(sizes) - sizes
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - np.repeat(starts, sizes)
    ends = np.sort(place[system.bonds.cpu().numpy()], axis=0).T
    owner = molecule[system.bonds.cpu().numpy()[0]]
    by_owner = np.lexsort((ends[:, 1], ends[:, 0], owner))
    per_molecule = np.split(
        ends[by_owner], np.searchsorted(owner[by_owner], np.arange(1, len(sizes)))
    )
    alike: dict[tuple[int, bytes], list[int]] = {}
    for number, bonds in enumerate(per_molecule):
        alike.setdefault((int(sizes[number]), bonds.tobytes()), []).append(number)
    found = []
    for (size, _), numbers in alike.items():
        members = order[starts[numbers][:, None] + np.arange(size)]
        found.append(
            Topology(
                members=torch.from_numpy(members).to(system.molecules.device),
                hops=_hops(per_molecule[numbers[0]], size).to(system.molecules.device),
            )
        )
    return found


def _hops(bonds: np.ndarray, size: int) -> Int[Tensor, "size size"]:
    graph = coo_array((np.ones(len(bonds)), (bonds[:, 0], bonds[:, 1])), shape=(size, size))
    steps = shortest_path(graph.tocsr(), directed=False, unweighted=True)
    steps[np.isinf(steps)] = size
    return torch.from_numpy(steps.astype(np.int64))


def climatological_noise(
    system: MolecularSystem,
    lags_ps: Float[Tensor, " times"],
    spread: Float[Tensor, "times atoms"],
    correlation: Float[Tensor, "times hops"],
    clock: Float[Tensor, "times atoms"],
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "samples times atoms 3"]:
    r"""Draw courses of correlated normal errors.

    .. math:: e_a(t) = \sigma_a(t) \sum_b S_{ab}(t) \, w_b(t), \quad S S^T = C, \quad
        C_{ab} = \rho_{h(a, b)}(t), \quad
        \langle w_b(t) \, w_b(t') \rangle = e^{-|u_b(t) - u_b(t')|}

    S is the symmetric root of C, whose negative eigenvalues (a table of ρ need not be one of a
    distribution) are set to 0 and whose diagonal is brought back to 1: at each time an atom's
    error has exactly the deviation σ along each axis. Molecules are independent. Where all
    clocks of a molecule agree, so do the correlations in time; else atoms lend each other theirs.

    Args:
        system: The atoms; molecules and bonds count.
        lags_ps: Times t after now, ps, in any order. Errors at times asked for together belong
            to one course; asking for other times draws other courses.
        spread: σ, Å.
        correlation: ρ of two atoms h = 0, 1, … bonds apart; the last serves all that are farther.
        clock: u, growing with time.
        count: How many courses.
        generator: On any device.

    Returns:
        Errors, Å, on the device of ``spread``.
    """
    order = torch.argsort(lags_ps, stable=True)
    white = torch.randn(
        (count, *spread.shape, 3), generator=generator, dtype=spread.dtype, device=generator.device
    ).to(spread.device)
    kept = torch.exp(-clock[order].diff(dim=0)).unsqueeze(-1)
    fresh = (1 - kept.square()).clamp(min=0).sqrt()
    for step in range(1, len(order)):
        white[:, step] = kept[step - 1] * white[:, step - 1] + fresh[step - 1] * white[:, step]
    noise = torch.empty_like(white)
    for group in topologies(system):
        members, hops = group.members, group.hops.clamp(max=correlation.shape[1] - 1)
        at_once = max(1, _ELEMENTS_AT_ONCE // hops.numel())
        for places in torch.arange(len(order), device=order.device).split(at_once):
            root = _root(correlation[order[places]][:, hops])
            drawn = white[:, places][:, :, members]
            noise[:, order[places].unsqueeze(1), members.reshape(1, -1)] = torch.einsum(
                "tab,stmbx->stmax", root, drawn
            ).flatten(2, 3)
    return noise * spread.unsqueeze(-1)


def _root(correlation: Float[Tensor, "times size size"]) -> Float[Tensor, "times size size"]:
    """Compute the symmetric root with negative eigenvalues cut off and rows of length one."""
    values, axes = torch.linalg.eigh(correlation)
    root = axes * values.clamp(min=0).sqrt().unsqueeze(-2) @ axes.mT
    return root / root.norm(dim=-1, keepdim=True)


def window_lengths(window: Window) -> tuple[Int[Tensor, "2 pairs"], Float[Tensor, " pairs"]]:
    """Measure the mean lengths of all bonds, and across all bond angles, in a window.

    Returns:
        Atom indices of each pair (bonds first) and its mean distance, Å.
    """
    bonds = window.system.bonds
    across = angle_ends(bonds.cpu(), len(window.system)).to(bonds)
    pairs = torch.cat([bonds, across], dim=1)
    apart = window.positions[:, pairs[0]] - window.positions[:, pairs[1]]
    return pairs, apart.norm(dim=-1).mean(dim=0)


def restored_bonds(
    positions: Float[Tensor, "*many atoms 3"],
    pairs: Int[Tensor, "2 pairs"],
    lengths: Float[Tensor, " pairs"],
    masses: Float[Tensor, " atoms"],
    iterations: int = 40,
) -> Float[Tensor, "*many atoms 3"]:
    r"""Move atoms until given distances are right again, light atoms more than heavy ones.

    .. math:: x_i \leftarrow x_i - \frac{m_i^{-1}}{m_i^{-1} + m_j^{-1}}
        \left(1 - \frac{l_{ij}}{\lVert x_i - x_j \rVert}\right) (x_i - x_j)

    and likewise j, pair after pair, pairs without common atoms at once. Centres of mass stay.
    Distances that contradict each other are met as nearly as the last few moves allow; mirror
    images meet them as well, so a centre that the noise turned inside out stays so.

    Args:
        positions: Molecules made whole, Å.
        pairs: Atom indices i and j, such as those of `window_lengths`.
        lengths: l, Å.
        masses: m, u.
        iterations: Rounds through all pairs. From errors of a third of a bond 20 rounds bring
            water to 1e-3 Å, 40 alanine dipeptide, whose angles hang together, to 5e-3 Å.

    Source: Müller et al., J. Vis. Commun. Image R. 18, 109 (2007), eqs. 10 and 11, as in SHAKE.
    """
    moved = positions.clone()
    ease = 1 / masses.to(positions)
    steps = [
        (*pairs[:, chosen], lengths[chosen].to(positions).unsqueeze(-1)) for chosen in _apart(pairs)
    ]
    for _ in range(iterations):
        for i, j, length in steps:
            between = moved[..., i, :] - moved[..., j, :]
            distance = between.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            too_far = (1 - length / distance) * between / (ease[i] + ease[j]).unsqueeze(-1)
            moved[..., i, :] = moved[..., i, :] - ease[i].unsqueeze(-1) * too_far
            moved[..., j, :] = moved[..., j, :] + ease[j].unsqueeze(-1) * too_far
    return moved


def _apart(pairs: Int[Tensor, "2 pairs"]) -> list[Int[Tensor, " chosen"]]:
    """Deal the pairs into rounds in which no atom occurs twice."""
    taken: dict[int, int] = {}
    rounds: list[list[int]] = []
    for number, (i, j) in enumerate(pairs.T.tolist()):
        used = taken.get(i, 0) | taken.get(j, 0)
        free = (~used & (used + 1)).bit_length() - 1
        taken[i] = taken.get(i, 0) | 1 << free
        taken[j] = taken.get(j, 0) | 1 << free
        if free == len(rounds):
            rounds.append([])
        rounds[free].append(number)
    return [torch.tensor(some, dtype=torch.int64, device=pairs.device) for some in rounds]
