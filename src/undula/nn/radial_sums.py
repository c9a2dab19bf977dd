r"""Sums over the atoms around a point: the local knowledge of a field, without weights.

A learned continuous convolution of atoms is linear in its filters, so the sums of each channel
with a few radial splines hold all such convolutions; a network takes it from there.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

KNOTS = 10
"""How many radial splines there are."""
FIRST = -2.5
"""Where the first spline has its centre: distance from the atom's van der Waals sphere, Å."""
REACH = FIRST + KNOTS + 0.5
"""Farther than this from the sphere, Å, an atom is not felt: the end of the last spline."""


def radial_sums(
    points: Float[Tensor, "n 3"],
    positions: Float[Tensor, "atoms 3"],
    radii: Float[Tensor, " atoms"],
    channels: Float[Tensor, "atoms channels"],
) -> Float[Tensor, "n knots channels"]:
    r"""Sum the channels of the atoms around each point, by distance.

    .. math:: A_{kc}(x) = \sum_j B_k(|x - a_j| - r_j) \, h_{jc}

    with quadratic B-splines :math:`B_k` one Å apart, centred at `FIRST` + k; an atom nearer than
    the first spline counts for nothing, which happens only deep inside another one. The sums do
    not change when the molecule is turned, mirrored or shifted with the points, nor with the
    order of its atoms.

    Args:
        points: x, Å.
        positions: Of the atoms a, Å.
        radii: Van der Waals radii r, Å.
        channels: Numbers of the atoms h.

    Returns:
        A, float32, on the points' device; zeros where no atom is near.
    """
    place, sphere_centres, sphere_radii = (
        tensor.detach().to("cpu", torch.float64).contiguous().numpy()
        for tensor in (points, positions, radii)
    )
    values = channels.detach().to("cpu", torch.float32).contiguous().numpy()
    found = np.zeros((len(place), KNOTS, values.shape[1]), dtype=np.float32)
    if len(place) and len(values):
        reach = REACH + float(sphere_radii.max())
        low = sphere_centres.min(axis=0)
        cells = np.floor((sphere_centres - low) / reach).astype(np.int64)
        shape = cells.max(axis=0) + 1
        flat = (cells[:, 0] * shape[1] + cells[:, 1]) * shape[2] + cells[:, 2]
        order = np.argsort(flat, kind="stable")
        starts = np.searchsorted(flat[order], np.arange(int(np.prod(shape)) + 1))
        atoms = (sphere_centres[order], sphere_radii[order], values[order])
        _sum(place, atoms, (low, reach, shape, starts), found)
    return torch.from_numpy(found).to(points.device)


@no_type_check
@numba.njit(cache=True, nogil=True, error_model="numpy")
def _sum(points, atoms, grid, found):
    positions, radii, channels = atoms
    low, reach, shape, starts = grid
    for n in range(points.shape[0]):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        cx = int(np.floor((x - low[0]) / reach))
        cy = int(np.floor((y - low[1]) / reach))
        cz = int(np.floor((z - low[2]) / reach))
        bottom, top = max(cz - 1, 0), min(cz + 2, shape[2])
        for ix in range(max(cx - 1, 0), min(cx + 2, shape[0])):
            for iy in range(max(cy - 1, 0), min(cy + 2, shape[1])):
                if bottom >= top:
                    continue
                row = (ix * shape[1] + iy) * shape[2]
                for j in range(starts[row + bottom], starts[row + top]):
                    dx = x - positions[j, 0]
                    dy = y - positions[j, 1]
                    dz = z - positions[j, 2]
                    squared = dx * dx + dy * dy + dz * dz
                    limit = REACH + radii[j]
                    if squared < limit * limit:
                        place = np.sqrt(squared) - radii[j] - FIRST + 0.5
                        _add(place, channels[j], found[n])


@no_type_check
@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _add(place, values, sums):
    """Add an atom to the three splines that reach it."""
    last = int(np.floor(place))
    part = place - last
    for step in range(3):
        knot = last - 1 + step
        if knot < 0 or knot >= KNOTS:
            continue
        if step == 0:
            weight = 0.5 * (1 - part) * (1 - part)
        elif step == 1:
            weight = 0.5 + part * (1 - part)
        else:
            weight = 0.5 * part * part
        for c in range(values.shape[0]):
            sums[knot, c] += weight * values[c]
