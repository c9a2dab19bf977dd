r"""Real solid harmonics of any degree as polynomials, with their exact Jacobian.

Order and axes are those of e3nn: degree by degree from 0, inside a degree the order
:math:`m = -l \dots l`, and the polar axis is y, so that degree 1 is (x, y, z) itself.
The normalisation is e3nn's "norm": :math:`\sum_m Y_{lm}(\hat x)^2 = 1` in every degree.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from functools import lru_cache
from math import factorial, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Polynomial = dict[tuple[int, int, int], Fraction]

_ONE: Polynomial = {(0, 0, 0): Fraction(1)}
_X: Polynomial = {(1, 0, 0): Fraction(1)}
_Y: Polynomial = {(0, 1, 0): Fraction(1)}
_Z: Polynomial = {(0, 0, 1): Fraction(1)}
_SQUARED_RADIUS: Polynomial = {
    (2, 0, 0): Fraction(1),
    (0, 2, 0): Fraction(1),
    (0, 0, 2): Fraction(1),
}


class _Table(NamedTuple):
    """Harmonics up to one degree over the monomials x^i y^j z^k, lowest degrees first."""

    exponents: Int[Tensor, "3 monomials"]
    values: Float[Tensor, "monomials channels"]
    jacobian: Float[Tensor, "lower_monomials channels*3"]


def solid_harmonics(points: Float[Tensor, "n 3"], degree: int) -> Float[Tensor, "n channels"]:
    r"""Compute the solid harmonics of degrees 0 to ``degree``.

    .. math:: R_{lm}(x) = \lVert x \rVert^l \, Y_{lm}(x / \lVert x \rVert)

    They are polynomials, so they are smooth everywhere, the origin included. Scale the points
    to about one beforehand: degree l grows like the l-th power. In float32 the error relative
    to :math:`\lVert x \rVert^l` was measured below 1e-6 up to degree 10.

    Args:
        points: Positions x relative to the centre, in any unit u.
        degree: Highest degree l, at least 0.

    Returns:
        (degree + 1)² channels in e3nn's order; those of degree l in the unit u^l. The first is
        the constant 1, the next three are x, y, z.

    Raises:
        ValueError: The degree is negative.

    Source: the associated Legendre recursion, homogenised by powers of the radius.
    """
    table = _table(degree, points.dtype, points.device)
    return _monomials(points, table.exponents, degree) @ table.values


def solid_harmonics_and_jacobian(
    points: Float[Tensor, "n 3"], degree: int
) -> tuple[Float[Tensor, "n channels"], Float[Tensor, "n channels 3"]]:
    r"""Compute the solid harmonics and their derivatives by the points.

    The derivative of a monomial is a monomial, so both come from one evaluation and the
    Jacobian is exact; it is differentiable in turn.

    Args:
        points: Positions x relative to the centre, in any unit u.
        degree: Highest degree l, at least 0.

    Returns:
        The values as in `solid_harmonics`, and :math:`\partial R_{lm} / \partial x_a` with a
        last.

    Raises:
        ValueError: The degree is negative.
    """
    table = _table(degree, points.dtype, points.device)
    monomials = _monomials(points, table.exponents, degree)
    flat = monomials[:, : len(table.jacobian)] @ table.jacobian
    return monomials @ table.values, flat.unflatten(1, (table.values.shape[1], 3))


def paper_harmonics(points: Float[Tensor, "n 3"], degree: int) -> Float[Tensor, "n channels"]:
    r"""Compute the paper's point features, which grow linearly in every degree.

    .. math:: \Psi_{lm}(x) = \lVert x \rVert \, Y_{lm}(x / \lVert x \rVert)

    Continuous everywhere, but at the origin only degree 1 is differentiable: the slope of the
    others depends on the direction of approach. Prefer `solid_harmonics` for new work.

    Args:
        points: Positions x relative to the centre, in any unit.
        degree: Highest degree l, at least 0.

    Returns:
        (degree + 1)² channels in e3nn's order, all in the unit of ``points``; 0 at the origin.
        The first is the distance to the origin, the next three are x, y, z.

    Raises:
        ValueError: The degree is negative.

    Source: MoE-DSR, the input encoding Ψ of the experts.
    """
    radius, direction = _radius_and_direction(points)
    values = radius * solid_harmonics(direction, degree)
    return values if degree < 1 else torch.cat((values[:, :1], points, values[:, 4:]), dim=1)


def paper_harmonics_and_jacobian(
    points: Float[Tensor, "n 3"], degree: int
) -> tuple[Float[Tensor, "n channels"], Float[Tensor, "n channels 3"]]:
    r"""Compute the paper's point features and their derivatives by the points.

    .. math:: \nabla \Psi_{lm}(x) = \nabla R_{lm}(\hat x) + (1 - l) \, Y_{lm}(\hat x) \, \hat x

    Args:
        points: Positions x relative to the centre, in any unit.
        degree: Highest degree l, at least 0.

    Returns:
        The values as in `paper_harmonics`, and their Jacobian with the axis last. At the
        origin, where only degree 1 has a derivative, that of the others is taken as 0.

    Raises:
        ValueError: The degree is negative.

    Source: MoE-DSR, the input encoding Ψ of the experts.
    """
    _, direction = _radius_and_direction(points)
    on_sphere, slope = solid_harmonics_and_jacobian(direction, degree)
    degrees = [level for level in range(degree + 1) for _ in range(2 * level + 1)]
    falling = on_sphere * (1 - torch.tensor(degrees, dtype=points.dtype, device=points.device))
    jacobian = slope + falling[:, :, None] * direction[:, None, :]
    return paper_harmonics(points, degree), jacobian


def _radius_and_direction(
    points: Float[Tensor, "n 3"],
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 3"]]:
    """Split points into length and direction; at the origin both are 0, with finite slopes."""
    square = points.square().sum(dim=1, keepdim=True)
    at_origin = square == 0
    radius = torch.where(at_origin, torch.ones_like(square), square).sqrt()
    return torch.where(at_origin, torch.zeros_like(radius), radius), points / radius


def _monomials(
    points: Float[Tensor, "n 3"], exponents: Int[Tensor, "3 monomials"], degree: int
) -> Float[Tensor, "n monomials"]:
    """Raise each axis to its exponent and multiply, without ``pow`` and its NaN slope at 0."""
    powers = [torch.ones_like(points)]
    for _ in range(degree):
        powers.append(powers[-1] * points)
    x, y, z = torch.stack(powers, dim=2).unbind(dim=1)
    i, j, k = exponents
    return x[:, i] * y[:, j] * z[:, k]


@lru_cache(maxsize=64)
def _table(degree: int, dtype: torch.dtype, device: torch.device) -> _Table:
    """Write the harmonics up to a degree as a matrix over monomials, once per device."""
    if degree < 0:
        raise ValueError(f"harmonics need a degree of at least 0, not {degree}")
    exponents = [
        (i, j, total - i - j)
        for total in range(degree + 1)
        for i in range(total, -1, -1)
        for j in range(total - i, -1, -1)
    ]
    row = {exponent: index for index, exponent in enumerate(exponents)}
    channels = _harmonic_polynomials(degree)
    values = [[0.0] * len(channels) for _ in exponents]
    lower = degree * (degree + 1) * (degree + 2) // 6
    jacobian = [[0.0] * (3 * len(channels)) for _ in range(lower)]
    for channel, (norm, polynomial) in enumerate(channels):
        for exponent, coefficient in polynomial.items():
            values[row[exponent]][channel] = norm * float(coefficient)
            for axis, power in enumerate(exponent):
                if power:
                    i, j, k = (n - (a == axis) for a, n in enumerate(exponent))
                    slope = norm * float(coefficient * power)
                    jacobian[row[i, j, k]][3 * channel + axis] = slope
    with torch.inference_mode(False):
        return _Table(
            torch.tensor(exponents, device=device).T,
            torch.tensor(values, dtype=dtype, device=device),
            torch.tensor(jacobian, dtype=dtype, device=device).reshape(lower, 3 * len(channels)),
        )


def _harmonic_polynomials(degree: int) -> list[tuple[float, Polynomial]]:
    r"""Build each channel as a norm times a polynomial with rational coefficients.

    .. math::
        R_{lm} = \sqrt{(2 - \delta_{m0}) \frac{(l-|m|)!}{(l+|m|)!}} \; \Pi_l^{|m|}(y, r^2) \;
        \begin{cases} \mathrm{Re}\,(z + i x)^m & m \ge 0 \\
        \mathrm{Im}\,(z + i x)^{|m|} & m < 0 \end{cases}

        (l - m)\, \Pi_l^m = (2l - 1)\, y\, \Pi_{l-1}^m - (l + m - 1)\, r^2\, \Pi_{l-2}^m,
        \qquad \Pi_m^m = (2m - 1)!!
    """
    channels: dict[tuple[int, int], tuple[float, Polynomial]] = {}
    real: Polynomial = _ONE
    imaginary: Polynomial = {}
    diagonal = Fraction(1)
    for m in range(degree + 1):
        before: Polynomial = {}
        current = _sum((diagonal, _ONE))
        for level in range(m, degree + 1):
            norm = sqrt((1 if m == 0 else 2) * factorial(level - m) / factorial(level + m))
            channels[level, m] = norm, _product(current, real)
            if m:
                channels[level, -m] = norm, _product(current, imaginary)
            following = _sum(
                (Fraction(2 * level + 1, level + 1 - m), _product(_Y, current)),
                (Fraction(-(level + m), level + 1 - m), _product(_SQUARED_RADIUS, before)),
            )
            before, current = current, following
        real, imaginary = (
            _sum((Fraction(1), _product(_Z, real)), (Fraction(-1), _product(_X, imaginary))),
            _sum((Fraction(1), _product(_X, real)), (Fraction(1), _product(_Z, imaginary))),
        )
        diagonal *= 2 * m + 1
    return [channels[level, m] for level in range(degree + 1) for m in range(-level, level + 1)]


def _product(first: Polynomial, second: Polynomial) -> Polynomial:
    """Multiply two polynomials."""
    result: defaultdict[tuple[int, int, int], Fraction] = defaultdict(Fraction)
    for (i, j, k), factor in first.items():
        for (p, q, r), other in second.items():
            result[i + p, j + q, k + r] += factor * other
    return dict(result)


def _sum(*terms: tuple[Fraction, Polynomial]) -> Polynomial:
    """Add polynomials, each times a factor."""
    result: defaultdict[tuple[int, int, int], Fraction] = defaultdict(Fraction)
    for factor, polynomial in terms:
        for exponent, coefficient in polynomial.items():
            result[exponent] += factor * coefficient
    return dict(result)
