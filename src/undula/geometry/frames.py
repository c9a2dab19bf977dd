"""Frames of reference: centring, superposition, and molecules made whole in a periodic box."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from undula.errors import InputError
from undula.geometry.distances import is_reduced, minimum_image


def centre(
    positions: Float[Tensor, "*frames atoms 3"], weights: Float[Tensor, " atoms"] | None = None
) -> Float[Tensor, "*frames 3"]:
    """Compute the mean position, weighted where weights such as masses are given, Å."""
    if weights is None:
        return positions.mean(dim=-2)
    return torch.einsum("...ai,a->...i", positions, weights / weights.sum())


def superposition(
    moving: Float[Tensor, "*frames atoms 3"],
    fixed: Float[Tensor, "atoms 3"],
    weights: Float[Tensor, " atoms"] | None = None,
) -> tuple[Float[Tensor, "*frames 3 3"], Float[Tensor, "*frames 3"]]:
    r"""Compute the rigid motion that brings positions closest to others.

    .. math:: \min_{R \in SO(3),\, t} \sum_a w_a \lVert R x_a + t - y_a \rVert^2, \quad
        R = V \,\mathrm{diag}(1, 1, \det V U^T)\, U^T, \quad
        U S V^T = \sum_a w_a (x_a - \bar x)(y_a - \bar y)^T

    Never a mirror image. With fewer than three atoms, or all on one line, the rotation is one
    of many equally good ones.

    Args:
        moving: Positions x, Å; each frame is moved on its own.
        fixed: Positions y of the same atoms, Å.
        weights: w, such as masses; by default all the same.

    Returns:
        R and t for ``moving @ R.mT + t``, computed in float64, in the precision of ``moving``.

    Raises:
        InputError: There are no atoms to superpose on.

    Source: Kabsch, Acta Cryst. A 32, 922 (1976) and A 34, 827 (1978).
    """
    if len(fixed) == 0:
        raise InputError("there are no atoms to superpose on")
    x, y = moving.double(), fixed.to(moving.device).double()
    w = torch.ones_like(y[:, 0]) if weights is None else weights.to(y)
    x_centre, y_centre = centre(x, w), centre(y, w)
    spread = torch.einsum("a,...ai,aj->...ij", w, x - x_centre.unsqueeze(-2), y - y_centre)
    u, _, vt = torch.linalg.svd(spread)
    signs = torch.ones_like(x_centre)
    signs[..., 2] = torch.linalg.det(u @ vt).sign()
    rotation = vt.mT @ (signs.unsqueeze(-1) * u.mT)
    translation = y_centre - (rotation @ x_centre.unsqueeze(-1)).squeeze(-1)
    return rotation.to(moving), translation.to(moving)


def superpose(
    positions: Float[Tensor, "frames atoms 3"],
    reference: Float[Tensor, "atoms 3"],
    on: Int[Tensor, " chosen"] | None = None,
) -> Float[Tensor, "frames atoms 3"]:
    """Move every frame rigidly onto a reference.

    Args:
        positions: Molecules made whole, Å.
        reference: The same atoms where they should come to lie, Å.
        on: Atoms whose distances to the reference count, such as the Cα; by default all.

    Returns:
        All atoms, moved; computed in float64, in the precision of ``positions``.

    Raises:
        InputError: There are no atoms to superpose on.
    """
    moving = positions.double()
    chosen = torch.arange(len(reference)) if on is None else on
    rotation, translation = superposition(moving[:, chosen], reference[chosen])
    return (moving @ rotation.mT + translation.unsqueeze(-2)).to(positions)


def rmsd(
    positions: Float[Tensor, "*frames atoms 3"], reference: Float[Tensor, "atoms 3"]
) -> Float[Tensor, "*frames"]:
    """Compute the root of the mean squared distance of atoms from a reference, as they stand, Å.

    `superpose` first for the usual least value.
    """
    return (positions - reference).square().sum(dim=-1).mean(dim=-1).sqrt()


def random_rotation(
    generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "3 3"]:
    """Draw a proper rotation, all equally likely (a unit quaternion from four normal numbers)."""
    q = torch.randn(4, generator=generator, dtype=torch.float64, device=generator.device)
    w, x, y, z = q / q.norm()
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]),
    ]
    return torch.stack(rows).to(dtype)


def make_whole(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "frames 3 3"],
    bonds: Int[Tensor, "2 pairs"],
) -> Float[Tensor, "frames atoms 3"]:
    """Join every molecule that the walls of a periodic box cut, frame by frame.

    From the first atom of each molecule, which stays where it is, bonds are walked outwards,
    each taken as its shortest image. Where molecules lie relative to each other is not
    changed; a chain that is bonded to its own image cannot be made whole.

    Args:
        positions: Atoms in any image, Å.
        box: Rows are the edge vectors, Å; reduced (`is_reduced`).
        bonds: Atom indices of each bond, each shorter than half the box.

    Returns:
        The atoms in images in which every walked bond is short, Å.

    Raises:
        InputError: A box has no volume or its edges are not reduced; bonds name atoms that do
            not exist.
    """
    return _whole(positions, box, bonds).to(positions)


def unwrap(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "frames 3 3"],
    bonds: Int[Tensor, "2 pairs"],
) -> Float[Tensor, "frames atoms 3"]:
    r"""Make molecules whole and follow each through the walls of a periodic box.

    .. math:: c_t = c_{t-1} + \mathrm{shortest\ image}(c'_t - c'_{t-1},\, B_t)

    for the centres c' of the whole molecules, which move less than their atoms. Each molecule
    is shifted as one, so it stays whole in every frame, and in a box that changes size its
    steps are not scaled by how far it has already come.

    Args:
        positions: Atoms in any image, Å.
        box: Rows are the edge vectors, Å; reduced (`is_reduced`).
        bonds: Atom indices of each bond; an atom without bonds is a molecule.

    Returns:
        Positions without jumps, Å; in the first frame the first atom of each molecule stays
        where it was. Right as long as no centre moves by more than half the box between frames.

    Raises:
        InputError: As for `make_whole`.

    Source: von Bülow, Bullerjahn, Hummer, J. Chem. Phys. 153, 021101 (2020), applied to the
    centres of molecules.
    """
    _check(positions, box, bonds)
    return Unwrapping(positions.shape[1], bonds).followed(positions, box)


class Unwrapping:
    """Does what `unwrap` does to frames that come a few at a time, in their order.

    Args:
        atoms: In every frame.
        bonds: Atom indices of each bond.
    """

    def __init__(self, atoms: int, bonds: Int[Tensor, "2 pairs"]) -> None:
        self.bonds = bonds
        self._count, label = _molecules(atoms, bonds)
        self._molecule = torch.from_numpy(label)
        self._last: tuple[Tensor, Tensor] | None = None

    def followed(
        self, positions: Float[Tensor, "frames atoms 3"], box: Float[Tensor, "frames 3 3"]
    ) -> Float[Tensor, "frames atoms 3"]:
        """Return the next frames without jumps; arguments and errors are those of `unwrap`."""
        whole = _whole(positions, box, self.bonds)
        molecule = self._molecule.to(positions.device)
        size = torch.bincount(molecule, minlength=self._count).to(whole)
        centres = whole.new_zeros(len(whole), self._count, 3).index_add_(1, molecule, whole)
        centres /= size[:, None]
        edges = box.to(whole)
        if self._last is None:
            steps = minimum_image(centres.diff(dim=0), edges[1:])
            path = torch.cat([centres[:1], steps]).cumsum(dim=0)
        else:
            before, reached = self._last
            steps = minimum_image(torch.cat([before, centres]).diff(dim=0), edges)
            path = torch.cat([reached, steps]).cumsum(dim=0)[1:]
        self._last = centres[-1:], path[-1:]
        return (whole + (path - centres)[:, molecule]).to(positions)


def _whole(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "frames 3 3"],
    bonds: Int[Tensor, "2 pairs"],
) -> Float[Tensor, "frames atoms 3"]:
    """Make molecules whole in float64."""
    _check(positions, box, bonds)
    raw, edges = positions.double(), box.to(positions.device).double()
    whole = raw.clone()
    for parents, children in _layers(positions.shape[1], bonds):
        step = minimum_image(raw[:, children] - raw[:, parents], edges)
        whole[:, children] = whole[:, parents] + step
    return whole


def _check(
    positions: Float[Tensor, "frames atoms 3"],
    box: Float[Tensor, "frames 3 3"],
    bonds: Int[Tensor, "2 pairs"],
) -> None:
    flat = ~(torch.linalg.det(box.double()).abs() > 1e-6)
    if flat.any():
        raise InputError(f"the box of frame {int(flat.nonzero()[0]) + 1} has no volume")
    if not is_reduced(box.double()):
        raise InputError(
            "the edges of the box are not the shortest that span its lattice; write the "
            "trajectory with a reduced box, as GROMACS does"
        )
    if bonds.numel() and not 0 <= int(bonds.min()) <= int(bonds.max()) < positions.shape[1]:
        raise InputError(f"bonds name atoms beyond the {positions.shape[1]} there are")


def _molecules(atoms: int, bonds: Int[Tensor, "2 pairs"]) -> tuple[int, np.ndarray]:
    """Return how many molecules the bonds make and the number of each atom's molecule."""
    i, j = bonds.cpu().numpy()
    graph = coo_array((np.ones(len(i), dtype=np.int8), (i, j)), shape=(atoms, atoms))
    count, label = connected_components(graph, directed=False)
    return int(count), label.astype(np.int64)


def _layers(
    atoms: int, bonds: Int[Tensor, "2 pairs"]
) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"]]]:
    """Walk all molecules at once from their first atoms: atoms reached from, atoms reached."""
    i, j = np.concatenate([bonds.cpu().numpy(), bonds.flip(0).cpu().numpy()], axis=1)
    seen = np.zeros(atoms, dtype=bool)
    seen[np.unique(_molecules(atoms, bonds)[1], return_index=True)[1]] = True
    while (open_bonds := seen[i] & ~seen[j]).any():
        children, first = np.unique(j[open_bonds], return_index=True)
        parents = i[open_bonds][first]
        yield torch.from_numpy(parents), torch.from_numpy(children)
        seen[children] = True


def own_axes(centred: Float[Tensor, "atoms 3"]) -> Float[Tensor, "3 3"]:
    """Compute the principal axes of some atoms as columns, each towards its positive third moment.

    Whatever is computed along them turns, shifts and mirrors with the molecule. A symmetric
    molecule has no such frame: where principal moments are equal or a third moment vanishes, the
    axes jump.

    Args:
        centred: Positions from their centroid, Å.
    """
    _, axes = torch.linalg.eigh(centred.T @ centred)
    third = (centred @ axes).pow(3).sum(dim=0)
    return torch.where(third < 0, -axes, axes)
