"""How large a molecule's surface is, roughly and at once: what work on it will cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

_VOXELS = 600_000
_FINEST = 1.0
_RADIUS, _PROBE = 1.75, 1.4
_LAYER = 1.5


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How far a molecule reaches.

    Attributes:
        area: Of its solvent-excluded surface, Å².
        shells: Volume of the places within each reach that was asked for of the surface, Å³.
        atoms: How many there are.
    """

    area: float
    shells: tuple[float, ...]
    atoms: int


def extent(positions: Float[Tensor, "atoms 3"], *reaches: float) -> Extent:
    """Estimate the surface of a molecule on a coarse grid.

    Every atom counts as a ball of 1.75 Å. On proteins the area is right to 15 % where the grid's
    voxels are 1 Å; very large molecules get wider ones, at most 600,000 of them.

    Args:
        positions: Of the heavy atoms, Å.
        reaches: How far from the surface each shell goes, on both sides, Å.

    Returns:
        Area and shells; memory and time do not grow with the number of atoms beyond these.
    """
    places = positions.detach().cpu().double().numpy()
    low, margin = places.min(axis=0), max(reaches) + _RADIUS + _PROBE
    size = places.max(axis=0) - low + 2 * margin
    edge = max(_FINEST, float(math.prod(size) / _VOXELS) ** (1 / 3))
    shape = np.ceil(size / edge).astype(int) + 1
    empty = np.ones(shape, dtype=bool)
    empty[tuple(np.rint((places - low + margin) / edge).astype(int).T)] = False
    away = distance_transform_edt(empty, sampling=edge)
    accessible = away >= _RADIUS + _PROBE
    depth = distance_transform_edt(~accessible, sampling=edge)
    signed = np.where(accessible, away - _RADIUS, _PROBE - depth)
    voxel = edge**3
    layer = max(_LAYER, edge)
    return Extent(
        area=float((np.abs(signed) < layer).sum() * voxel / (2 * layer)),
        shells=tuple(float((np.abs(signed) < reach).sum() * voxel) for reach in reaches),
        atoms=len(places),
    )


def nodes_around(positions: Float[Tensor, "atoms axes"], margin: float, spacing: float) -> int:
    """Return how many nodes a lattice around a molecule has.

    Args:
        positions: Å.
        margin: Space on every side, Å.
        spacing: Of the nodes, Å.
    """
    size = (positions.amax(dim=0) - positions.amin(dim=0)).double() + 2 * margin
    return math.prod(math.ceil(length / spacing) + 1 for length in size.tolist())


def own_extent(positions: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 3"]:
    """Return positions along the molecule's principal axes, Å."""
    centred = positions.double() - positions.double().mean(dim=0)
    return centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors
