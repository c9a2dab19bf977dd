"""Soft light: how open each place of a surface lies, for pictures only."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor

from undula.types import Mesh

_REACH = 4.0
_CELL = 1.5
_MOST_CELLS = 160
_CONTRAST = 10.0


def openness(mesh: Mesh) -> Float[Tensor, " vertices"]:
    r"""Approximate how much of the sky each vertex sees: 1 on a ridge, 0 at the bottom of a cleft.

    .. math:: o(x) = \frac{1}{1 + e^{k c}}, \qquad
              c = \left\langle n, \frac{\bar{x}_\sigma - x}{\sigma} \right\rangle

    The mean :math:`\bar{x}_\sigma` of the surface around a vertex lies above its tangent plane
    in a hollow and below it on a knob. It is a Gaussian mean over the area (σ = 4 Å), made on a
    grid, so the cost grows with the number of vertices only. On a plane it is ½. A stand-in for
    traced ambient occlusion that needs no graphics card; it measures nothing.

    Args:
        mesh: Vertices in Å.

    Returns:
        Between 0 and 1 per vertex; it turns and shifts with the mesh up to the grid's error.
    """
    if mesh.is_empty:
        return torch.full((len(mesh.vertices),), 0.5)
    points = mesh.vertices.detach().cpu().double()
    weight = torch.zeros(len(points), dtype=torch.float64)
    areas = mesh.face_normals.detach().cpu().double().norm(dim=1)
    weight.index_add_(0, mesh.faces.cpu().reshape(-1), areas.repeat_interleave(3))
    low = points.min(dim=0).values - 2 * _REACH
    span = points.max(dim=0).values + 2 * _REACH - low
    cell = max(_CELL, float(span.max()) / _MOST_CELLS)
    shape = tuple((span / cell).ceil().int().add(1).tolist())
    places = ((points - low) / cell).numpy().T
    flat = np.ravel_multi_index(tuple(np.rint(places).astype(np.int64)), shape)

    def around(values: Tensor) -> Tensor:
        grid = np.bincount(flat, weights=values.numpy(), minlength=int(np.prod(shape)))
        smooth = gaussian_filter(grid.reshape(shape), _REACH / cell, mode="constant", truncate=3)
        return torch.from_numpy(map_coordinates(smooth, places, order=1))

    total = around(weight).clamp(min=1e-12)
    mean = torch.stack([around(weight * axis) / total for axis in (points - low).T], dim=1)
    above = ((mean - (points - low)) * mesh.vertex_normals.detach().cpu()).sum(dim=1) / _REACH
    return torch.sigmoid(-_CONTRAST * above).float()
