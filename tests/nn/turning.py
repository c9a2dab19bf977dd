"""Turn and mirror features, for tests of what turns with the molecule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undula.nn.harmonics import solid_harmonics
from undula.nn.irreps import by_degree, joined


def rotation(seed: int = 0) -> Tensor:
    """Draw a rotation."""
    drawn = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    turned = torch.linalg.qr(drawn)[0]
    return turned * torch.linalg.det(turned)


def reflection(seed: int = 0) -> Tensor:
    """Draw a rotation after a reflection in a plane."""
    return rotation(seed) @ torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64))


def wigner(matrix: Tensor, level: int) -> Tensor:
    """Return the matrix D with Y(R x) = D Y(x) in one degree."""
    points = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    own = slice(level**2, (level + 1) ** 2)
    before, after = (solid_harmonics(x, level)[:, own] for x in (points, points @ matrix.T))
    return torch.linalg.lstsq(before, after).solution.T


def turned(features: Tensor, channels: Sequence[int], matrix: Tensor) -> Tensor:
    """Turn flat rows of features."""
    parts = by_degree(features, channels)
    return joined([wigner(matrix, level) @ part for level, part in enumerate(parts)])
