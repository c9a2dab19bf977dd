r"""A field of splines on grids: a step of training at a point moves only the nodes around it.

It has the interface of `undula.nn.implicit.ImplicitNetwork` and no network at a point: the
condition mixes a few grids of numbers, and a point reads 27 nodes of each resolution. That is
enough because a surface and its thermal motion are local and the rest is small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError

MARGIN = 0.25
"""How far the grids reach beyond [-1, 1]³; all of space outside is pressed into this margin."""

_FLATTENED = 0.1
"""The part of the radius over which the starting sphere's distance is rounded at its centre."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The form of a grid field.

    Attributes:
        resolutions: Cells along each axis of the grids that are added up. The finest decides
            what can be told apart (a cell of 1 to 1.5 Å is right for a moving protein), coarser
            ones beside it let places with few training points learn from their surroundings.
        mixtures: How many sets of grids K the condition mixes: one for what stays, and one for
            each independent way to differ (by time, by trajectory, by protein).
        condition: Numbers in the condition: time features and latent code.
        zero_last: Whether the field starts at 0, to correct a known field; otherwise as a
            sphere, to which the grids are a correction.
        geometric_radius: The radius of that sphere, in the unit of the points.
    """

    resolutions: tuple[int, ...] = (16, 48)
    mixtures: int = 4
    condition: int = 0
    zero_last: bool = False
    geometric_radius: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(self.resolutions))
        if not self.resolutions or min(self.resolutions) < 1:
            raise UsageError(
                "a grid field needs one or more resolutions of at least 1 cell, not "
                f"{list(self.resolutions)}"
            )
        if self.mixtures < 1 or self.condition < 0:
            raise UsageError(
                "a grid field needs at least 1 mixture and a condition of at least 0, not "
                f"{self.mixtures} and {self.condition}"
            )
        if not (isfinite(self.geometric_radius) and self.geometric_radius > 0):
            raise UsageError(
                f"geometric_radius of a grid field must be positive, not {self.geometric_radius}"
            )


class GridField(nn.Module):
    r"""Map a point and a condition to one number by grids that the condition mixes.

    .. math::
        f(x, c) = f_0(x) + \sum_k \varphi_k(c) \sum_l \sum_j T^l_{jk} \prod_a B(u^l_a - j_a),
        \qquad \varphi(c) = W c + b, \qquad u^l = R_l \frac{s(x) + 1 + m}{2 (1 + m)}

    ==================  =========================================================
    T                   ``table``: nodes of all resolutions below one another
    W, b                ``mixing``, ``bias``
    B                   the quadratic B-spline: three nodes along each axis
    R_l, m              ``config.resolutions``, `MARGIN`
    f_0                 0 with ``zero_last``, else a sphere
    ==================  =========================================================

    The field is once continuously differentiable by the points. Inside [-1, 1]³ it is the
    spline itself, s(x) = x; outside, s(x) = ±(1 + m (1 − exp(−(|x| − 1) / m))) along each axis
    runs smoothly into the border of the grids, so that far away the field is constant (plus
    f_0). The grids start at 0 and b at (1, 0, …), so that the first set is what stays and the
    condition has no say at first. At any weights but W and b the field is linear in them, so
    a convex loss on value or gradient is convex in the grids.

    Source: own; the layered grids are those of multi-resolution feature grids (Müller et al.,
    2022), without hashing, and with values in place of features for a network.
    """

    def __init__(self, config: GridConfig, generator: torch.Generator) -> None:
        """Make a field whose weights are drawn from ``generator``, on the CPU in float32."""
        super().__init__()
        self.config = config
        nodes = sum((cells + 2) ** 3 for cells in config.resolutions)
        self.table = nn.Parameter(torch.zeros(config.mixtures, nodes))
        self.mixing = nn.Parameter(torch.zeros(config.mixtures, config.condition))
        self.bias = nn.Parameter(torch.zeros(config.mixtures))
        with torch.no_grad():
            self.bias[0] = 1
            if config.condition:
                self.mixing[1:].normal_(0, 1 / sqrt(config.condition), generator=generator)

    def forward(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> Float[Tensor, " n"]:
        """Compute the value at each point.

        Args:
            points: Where to evaluate, in the unit the field was trained in.
            condition: Time features and latent code: one row that all points share (cheaper,
                same numbers), or one row per point.

        Returns:
            The values, in the dtype of the points.
        """
        with torch.autocast(points.device.type, enabled=False):
            value = self._sphere(points)[0]
            for nodes, place, _ in self._neighbourhoods(points, condition):
                x, y, z = _spline(place)
                value = value + _along(_along(_along(nodes, z), y), x)
            return value

    def value_and_gradient(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        r"""Compute the value and its spatial gradient as plain forward code.

        .. math::
            \partial_a f = \partial_a f_0 + \sum_k \varphi_k \sum_l \frac{R_l \, s'(x_a)}{2 (1 + m)}
            \sum_j T^l_{jk} \, B'(u^l_a - j_a) \prod_{b \ne a} B(u^l_b - j_b)

        Args:
            points: Where to evaluate, in the unit the field was trained in.
            condition: As in `forward`.

        Returns:
            The values, and their derivatives by the points (per unit of the points).
        """
        with torch.autocast(points.device.type, enabled=False):
            value, gradient = self._sphere(points)
            for nodes, place, stretch in self._neighbourhoods(points, condition):
                x, y, z = _spline(place)
                by_x, by_y, by_z = _spline_slope(place)
                plane = _along(nodes, z)
                line = _along(plane, y)
                value = value + _along(line, x)
                slopes = (
                    _along(line, by_x),
                    _along(_along(plane, by_y), x),
                    _along(_along(_along(nodes, by_z), y), x),
                )
                gradient = gradient + torch.stack(slopes, dim=1) * stretch
            return value, gradient

    def _sphere(
        self, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        r"""Compute :math:`f_0 = \sqrt{|x|^2 + \epsilon^2} - \sqrt{r^2 + \epsilon^2}`, smooth at 0."""
        if self.config.zero_last:
            return torch.zeros_like(points[:, 0]), torch.zeros_like(points)
        radius = self.config.geometric_radius
        flattened = (_FLATTENED * radius) ** 2
        length = (points.square().sum(dim=1) + flattened).sqrt()
        return length - sqrt(radius**2 + flattened), points / length[:, None]

    def _neighbourhoods(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> Iterator[
        tuple[Float[Tensor, "3 3 3 n"], Float[Tensor, "3 n"], Float[Tensor, "n 3"]]
    ]:
        """Yield, for each resolution, the mixed numbers at the nodes around each point, where in
        the middle one's cell it is (0 to 1), and cells per unit of the points.
        """
        mixture = functional.linear(condition, self.mixing, self.bias)
        beyond = functional.relu(points.abs() - 1) / MARGIN
        inside = points.clamp(-1, 1) - points.sign() * MARGIN * torch.expm1(-beyond)
        shrunk = torch.exp(-beyond)
        shared = mixture @ self.table if mixture.ndim == 1 else None
        step = torch.arange(3, device=points.device)
        first = 0
        for cells in self.config.resolutions:
            size = cells + 2
            scaled = (inside.T / (1 + MARGIN) + 1) * (cells / 2)
            cell = scaled.detach().long().clamp(0, cells - 1)
            corner = (cell[0] * size + cell[1]) * size + cell[2] + first
            ways = (step[:, None, None] * size + step[:, None]) * size + step
            index = ways[..., None] + corner
            if shared is not None:
                nodes = shared.index_select(0, index.flatten()).view(index.shape)
            else:
                sets = self.table.index_select(1, index.flatten()).view(-1, *index.shape)
                nodes = (sets * mixture.T[:, None, None, None]).sum(dim=0)
            yield nodes, scaled - cell, shrunk * (cells / (2 * (1 + MARGIN)))
            first += size**3


def _spline(place):
    return torch.stack(((1 - place) ** 2 / 2, 0.5 + place * (1 - place), place**2 / 2), dim=1)


def _spline_slope(place):
    return torch.stack((place - 1, 1 - 2 * place, place), dim=1)


def _along(nodes, weights):
    return (nodes * weights).sum(dim=-2)
