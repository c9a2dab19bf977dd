r"""A field of splines on grids: training at a point moves only the nodes around it.

It has the interface of `undula.nn.implicit.ImplicitNetwork` but no network: the condition mixes
a few grids of numbers, and a point reads 27 nodes of each resolution. A thermally moving surface
differs from its first frame by something local, which needs no more; a small network behind
grids of features cost two to four times as much and forecast no better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError

MARGIN = 0.25
"""How far the grids reach beyond [-1, 1]³; all of space outside is pressed into this margin."""

_ROUNDED = 0.1
"""The part of the radius over which the starting sphere's field is rounded at its centre."""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The form of a grid field.

    Attributes:
        resolutions: Cells along each axis of [-1.25, 1.25]³, one number per grid; the grids are
            added. The finest decides what can be told apart (cells of 1 to 1.5 Å for a moving
            protein), coarser ones carry over into places with few training points. Memory
            grows with the cube: the default holds 131,000 numbers per mixture.
        mixtures: How many sets of grids K the condition mixes: one for what stays, and one for
            each independent way to differ by time, trajectory or protein.
        condition: Numbers in the condition: time features and latent code.
        zero_last: Whether the field starts at 0, to correct a known field; otherwise as a
            sphere that the grids correct.
        geometric_radius: The radius of that sphere, in the unit of the points.
    """

    resolutions: Sequence[int] = (16, 48)
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
        f(x, c) = f_0(x) + \sum_k \varphi_k(c) \sum_l \sum_j T^l_{kj} \prod_a B_{j_a}(u^l_a),
        \qquad \varphi = W c + b, \qquad u^l = R_l \, \frac{s(x) + 1 + m}{2 (1 + m)}

    ==================  =========================================================
    T                   ``table``: a row per mixture, the grids one after another
    W, b                ``mixing``, ``bias``
    B                   quadratic B-spline, three nodes along each axis
    R_l, m              ``config.resolutions``, `MARGIN`
    f_0                 0 with ``zero_last``, otherwise a sphere
    ==================  =========================================================

    Once continuously differentiable by the points. Inside [-1, 1]³ it is the spline, s(x) = x;
    outside, along each axis, s(x) = ±(1 + m (1 − exp(−(|x| − 1) / m))) runs smoothly into the
    border of the grids: far away the sum tends to its value there. T starts at 0, b at
    (1, 0, …), W at N(0, 1 / size of c) but for its first row: the first mixture is what stays.
    For given W and b the field is linear in T, so an absolute or squared error of values and
    gradients is convex in T. What the training frames do by chance is learned too: on
    short simulations a weight decay of 1 (at a learning rate of 0.01) and averaged weights
    (decay 0.99) forecast best.

    Source: own. Layered grids of numbers are those of Müller et al. (2022), Instant NGP. Differs
    from it: no hashing, no network behind them, quadratic in place of linear interpolation.
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
            self.mixing[1:].normal_(0, 1 / sqrt(max(config.condition, 1)), generator=generator)

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
            value = self._start(points)[0]
            for nodes, place, _ in self._neighbourhoods(points, condition):
                x, y, z = _spline(place)
                value = value + _contracted(_contracted(_contracted(nodes, z), y), x)
            return value

    def value_and_gradient(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        r"""Compute the value and its spatial gradient as plain forward code.

        .. math::
            \partial_a f = \partial_a f_0 + \sum_k \varphi_k \sum_l
            \frac{R_l \, s'(x_a)}{2 (1 + m)} \sum_j T^l_{kj} \, B'_{j_a}(u^l_a)
            \prod_{b \ne a} B_{j_b}(u^l_b)

        Works without autograd; a loss on the gradient needs one ordinary backward pass.

        Args:
            points: Where to evaluate, in the unit the field was trained in.
            condition: As in `forward`.

        Returns:
            The values, and their derivatives by the points (per unit of the points).
        """
        with torch.autocast(points.device.type, enabled=False):
            value, gradient = self._start(points)
            for nodes, place, stretch in self._neighbourhoods(points, condition):
                x, y, z = _spline(place)
                by_x, by_y, by_z = _spline_slope(place)
                plane = _contracted(nodes, z)
                line = _contracted(plane, y)
                value = value + _contracted(line, x)
                slopes = (
                    _contracted(line, by_x),
                    _contracted(_contracted(plane, by_y), x),
                    _contracted(_contracted(_contracted(nodes, by_z), y), x),
                )
                gradient = gradient + torch.stack(slopes, dim=1) * stretch
            return value, gradient

    def _start(
        self, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        r"""Compute :math:`f_0 = \sqrt{|x|^2 + \epsilon^2} - \sqrt{r^2 + \epsilon^2}`, or 0."""
        if self.config.zero_last:
            return torch.zeros_like(points[:, 0]), torch.zeros_like(points)
        radius = self.config.geometric_radius
        rounded = (_ROUNDED * radius) ** 2
        length = (points.square().sum(dim=1) + rounded).sqrt()
        return length - sqrt(radius**2 + rounded), points / length[:, None]

    def _neighbourhoods(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> Iterator[tuple[Float[Tensor, "3 3 3 n"], Float[Tensor, "3 n"], Float[Tensor, "n 3"]]]:
        """Look up what surrounds the points in each grid.

        Points come last, so that all arithmetic runs along contiguous memory.

        Returns:
            For each grid: the mixed numbers at the 27 nodes around a point; where between 0 and
            1 in its cell the point is, along each axis; cells per unit of the points there.
        """
        mixture = functional.linear(condition, self.mixing, self.bias)
        table = mixture @ self.table if mixture.ndim == 1 else self.table
        beyond = functional.relu(points.abs() - 1) / MARGIN
        inside = points.clamp(-1, 1) - points.sign() * MARGIN * torch.expm1(-beyond)
        step = torch.arange(3, device=points.device)
        first = 0
        for cells in self.config.resolutions:
            side = cells + 2
            place = (inside.T / (1 + MARGIN) + 1) * (cells / 2)
            cell = place.detach().long().clamp(0, cells - 1)
            corner = first + (cell[0] * side + cell[1]) * side + cell[2]
            steps = (step[:, None, None] * side + step[:, None]) * side + step
            index = steps[..., None] + corner
            nodes = table.index_select(-1, index.flatten())
            if mixture.ndim == 1:
                nodes = nodes.view(index.shape)
            else:
                sets = nodes.view(len(self.bias), *index.shape)
                nodes = (sets * mixture.T[:, None, None, None]).sum(dim=0)
            yield nodes, place - cell, torch.exp(-beyond) * (cells / (2 + 2 * MARGIN))
            first += side**3


def _spline(place: Float[Tensor, "3 n"]) -> Float[Tensor, "3 3 n"]:
    """Compute the weights of the three nodes along each axis from the place in the cell."""
    return torch.stack(((1 - place) ** 2 / 2, 0.5 + place * (1 - place), place**2 / 2), dim=1)


def _spline_slope(place: Float[Tensor, "3 n"]) -> Float[Tensor, "3 3 n"]:
    """Compute the derivatives of `_spline` by the place."""
    return torch.stack((place - 1, 1 - 2 * place, place), dim=1)


def _contracted(
    numbers: Float[Tensor, "*axes 3 n"], weights: Float[Tensor, "3 n"]
) -> Float[Tensor, "*axes n"]:
    """Sum over the last axis of nodes."""
    return (numbers * weights).sum(dim=-2)
