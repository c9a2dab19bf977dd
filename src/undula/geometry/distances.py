"""Distances: along a surface, and to the closest image in a periodic box."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def quasi_geodesic(
    points: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"],
    pairs: Int[Tensor, "2 pairs"],
) -> Float[Tensor, " pairs"]:
    r"""Approximate how far apart surface points are along the surface.

    .. math:: d_{ij} = \lVert x_i - x_j \rVert \, (2 - \langle n_i, n_j \rangle)

    On a flat patch this is the straight distance; across a crevice, where the normals
    oppose, three times that. On a sphere it exceeds the true arc of angle
    :math:`\theta` by :math:`1 + \frac{11}{24}\theta^2` to leading order: good for
    ranking neighbours, not for measuring long paths.

    Args:
        points: Positions x, in Å.
        normals: Outward normals n of length one (`SurfaceCloud` checks this).
        pairs: Point indices i and j; a pair (i, i) has distance 0.

    Returns:
        One distance per pair, in the unit of ``points``; symmetric in i and j.

    Source: MoE-DSR, eq. 2.
    """
    i, j = pairs
    straight = (points[i] - points[j]).norm(dim=-1)
    alignment = (normals[i] * normals[j]).sum(dim=-1)
    return straight * (2 - alignment)


def minimum_image(
    displacement: Float[Tensor, "*frames n 3"], box: Float[Tensor, "*frames 3 3"]
) -> Float[Tensor, "*frames n 3"]:
    r"""Shift displacements by whole box edges to the shortest equivalent ones.

    .. math:: d - k B, \quad k = \arg\min_{k \in \mathbb{Z}^3} \lVert d - k B \rVert

    In a rectangular box rounding :math:`d B^{-1}` is exact. In a skewed one the rounded image
    and its 26 neighbours are compared, which is exact when the edges are the shortest that
    span the lattice (`is_reduced`).

    Args:
        displacement: From one atom to another, Å, of any length.
        box: Rows are the edge vectors, Å, one box per frame.

    Returns:
        The shortest image, Å; among equally short ones any.
    """
    image = displacement - (displacement @ torch.linalg.inv(box)).round() @ box
    if torch.equal(box, torch.diag_embed(box.diagonal(dim1=-2, dim2=-1))):
        return image
    best, shortest = image, image.square().sum(dim=-1, keepdim=True)
    for shift in _neighbouring_images(box):
        other = image + (shift @ box).unsqueeze(-2)
        length = other.square().sum(dim=-1, keepdim=True)
        best = torch.where(length < shortest, other, best)
        shortest = torch.minimum(length, shortest)
    return best


def is_reduced(box: Float[Tensor, "*frames 3 3"], tolerance: float = 1e-3) -> bool:
    r"""Tell whether the edges of every box are the shortest that span its lattice.

    No sum :math:`\sum_a k_a B_a` with :math:`k_a \in \{-1, 0, 1\}` may be shorter than an edge
    it contains (Minkowski's conditions in three dimensions). GROMACS' rectangular, dodecahedral
    and octahedral boxes are reduced.

    Args:
        box: Rows are the edge vectors, Å.
        tolerance: How much shorter, as a fraction, is still taken for rounding.
    """
    edges = box.norm(dim=-1)
    return all(
        bool(((shift @ box).norm(dim=-1) >= (1 - tolerance) * (shift.abs() * edges).amax(-1)).all())
        for shift in _neighbouring_images(box)
    )


def _neighbouring_images(box: Float[Tensor, "*frames 3 3"]) -> Float[Tensor, "26 3"]:
    steps = torch.tensor([-1, 0, 1], dtype=box.dtype, device=box.device)
    shifts = torch.cartesian_prod(steps, steps, steps)
    return shifts[shifts.any(dim=1)]
