"""Periodic boxes: from lengths and angles to edge vectors, and whether a box can be meant."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

SMALLEST_WIDTH = 4.0
"""Å; a box thinner than this stands for "no box" (such as the unit cube of a PDB file)."""


def edge_vectors(
    lengths: Float[np.ndarray, "*boxes 3"], angles: Float[np.ndarray, "*boxes 3"]
) -> Float[np.ndarray, "*boxes 3 3"]:
    r"""Compute the edge vectors of boxes: a along x, b in the xy plane.

    Args:
        lengths: Edges a, b, c, in any unit.
        angles: :math:`\alpha` between b and c, :math:`\beta` between a and c,
            :math:`\gamma` between a and b, in degrees.

    Returns:
        One vector a row, in the unit of ``lengths``; not finite where the angles close no box.
    """
    a, b, c = np.moveaxis(lengths, -1, 0)
    # The cosine of 90° is 6e-17 in floating point; right angles should give exact zeros.
    cosines = np.where(angles == 90.0, 0.0, np.cos(np.radians(angles)))
    alpha, beta, gamma = np.moveaxis(cosines, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        sine = np.sqrt(1 - gamma**2)
        y = (alpha - beta * gamma) / sine
        z = np.sqrt(1 - beta**2 - y**2)
    zero = np.zeros_like(a)
    rows = [[a, zero, zero], [b * gamma, b * sine, zero], [c * beta, c * y, c * z]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def widths(boxes: Float[np.ndarray, "*boxes 3 3"]) -> Float[np.ndarray, " *boxes"]:
    """Compute the smallest distance between opposite faces of boxes; 0 if they have no volume."""
    a, b, c = np.moveaxis(boxes.astype(np.float64), -2, 0)
    normals = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=-2)
    areas = np.linalg.norm(normals, axis=-1).max(axis=-1)
    volume = np.abs((a * normals[..., 0, :]).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nan_to_num(np.where(areas > 0, volume / areas, 0.0), posinf=0.0))
