r"""The implicit network: a signed distance at any point, with its spatial gradient as plain code.

Points and condition (time, latent code) are separate arguments: the gradient is by points, and
a condition that all points share costs one matrix-vector product.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, pi, sqrt
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.harmonics import (
    paper_harmonics,
    paper_harmonics_and_jacobian,
    solid_harmonics,
    solid_harmonics_and_jacobian,
)
from undula.nn.products import linear
from undula.nn.trunk import Trunk, value_and_slopes

_ROOT_HALF = sqrt(0.5)


@dataclass(frozen=True, kw_only=True)
class ImplicitConfig:
    """The form of an implicit network; the defaults are those of DSR.

    Attributes:
        depth: Hidden layers.
        width: Numbers in a hidden layer.
        skip_at: The hidden layer, counted from 0, that sees the input again; None for none.
        beta: Sharpness β of the softplus, in 1 / (unit of a hidden number).
        harmonics: What of the point enters: its ``coordinates``, its ``solid`` harmonics of
            degrees 1 to ``degree`` (degree 0 is a constant and left out), or the ``paper``'s
            harmonics times the distance to the origin, degrees 0 to ``degree``.
        degree: Highest degree of the harmonics; 1 for coordinates.
        condition: Numbers in the condition: time features and latent code.
        condition_start: Whether the condition has no say at first (``zero``, so that the start
            is a sphere under any condition) or weights like all others (``random``, DSR's: an
            N(0, 1) latent code then lifts the field until no surface is left).
        zero_last: Whether the last layer starts at 0, for a network that corrects a known field.
        geometric_radius: Otherwise, the radius of the sphere it starts from, in the unit of the
            points. With the default sizes the surface lies between 0.8 and 1.4 radii (mean
            1.03) and the field rises by about 0.6 per unit.
    """

    depth: int = 8
    width: int = 512
    skip_at: int | None = 4
    beta: float = 100.0
    harmonics: Literal["coordinates", "solid", "paper"] = "coordinates"
    degree: int = 1
    condition: int = 0
    condition_start: Literal["zero", "random"] = "zero"
    zero_last: bool = False
    geometric_radius: float = 1.0

    def __post_init__(self) -> None:
        if self.depth < 1 or self.condition < 0 or self.degree < 1:
            raise UsageError(
                "an implicit network needs a depth and a degree of at least 1 and a condition of "
                f"at least 0, not {self.depth}, {self.degree} and {self.condition}"
            )
        if self.harmonics == "coordinates" and self.degree != 1:
            raise UsageError(f"coordinates have degree 1, not {self.degree}; choose solid or paper")
        for name in ("beta", "geometric_radius"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise UsageError(f"{name} of an implicit network must be positive, not {value}")
        if self.skip_at is not None and not 1 <= self.skip_at < self.depth:
            raise UsageError(
                f"skip_at is a hidden layer from 1 to {self.depth - 1}, not {self.skip_at}"
            )
        least = 1 if self.skip_at is None else self.features + self.condition + 1
        if self.width < least:
            raise UsageError(
                f"an implicit network with {self.features} features of the point and a condition "
                f"of {self.condition} needs a width of at least {least}, not {self.width}"
            )

    @property
    def features(self) -> int:
        """How many numbers describe a point."""
        return (self.degree + 1) ** 2 - (self.harmonics != "paper")


class ImplicitNetwork(nn.Module):
    r"""Map a point and a condition to one number: DSR's network.

    .. math::
        a_0 = W_0 (\psi, c) + b_0, \qquad h_l = T(a_{l-1}), \qquad a_l = W_l h_l + b_l,

        a_s = W_s (h_s, \psi, c) / \sqrt 2 + b_s, \qquad f = W_L h_L + b_L, \qquad
        T(a) = \ln(1 + e^{\beta a}) / \beta

    ==================  ==========================================
    ψ(x)                features of the points
    c                   condition
    s, L                ``config.skip_at``, ``config.depth``
    W_0, W_s (ψ and c)  ``first``, ``skip``
    W_l, W_L            ``hidden[l - 1]``, ``last``
    ==================  ==========================================

    Under autocast the terms of points and condition, the derivatives of the features and the
    last layer keep full precision: bfloat16 would round a coordinate of 27 Å by up to 0.06 Å.
    On a CPU give a loss at most some 4,096 points at a time (autograd's tensors over 32 MB are
    3-5 times slower) and call ``torch.set_flush_denormal(True)`` (as `undula.learn.fit` does).

    Source: DSR (code Sundw-818/DSR, ImplicitNet), after IGR (Gropp et al., 2020). Differs from
    it: the last bias is fitted so that the field is 0 at the radius, where DSR sets it to
    −radius and the softplus' own offset moves the surface; features beyond the coordinates and
    (see ``condition_start``) the condition start with weight zero, so that the start is a
    sphere.
    """

    def __init__(self, config: ImplicitConfig, generator: torch.Generator) -> None:
        """Make a network whose weights are drawn from ``generator``, on the CPU in float32."""
        super().__init__()
        self.config = config
        sizes = [config.width] * config.depth
        if config.skip_at is not None:
            sizes[config.skip_at - 1] -= config.features + config.condition
        self.first = _Entry(config.features, config.condition, sizes[0])
        self.skip = (
            _Entry(config.features, config.condition, config.width)
            if config.skip_at is not None
            else None
        )
        self.hidden = nn.ModuleList(
            nn.Linear(size, after, bias=layer != config.skip_at)
            for layer, (size, after) in enumerate(pairwise(sizes), start=1)
        )
        self.last = nn.Linear(sizes[-1], 1)
        self._start(generator)

    def forward(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> Float[Tensor, " n"]:
        """Compute the value at each point.

        Args:
            points: Where to evaluate, in the unit the network was trained in.
            condition: Time features and latent code: one row that all points share (cheaper,
                same numbers), or one row per point.

        Returns:
            The values, in the dtype of the points.
        """
        with torch.autocast(points.device.type, enabled=False):
            features = self._features(points)
        hidden, _ = self._trunk(features, condition)
        with torch.autocast(points.device.type, enabled=False):
            return self.last(hidden.to(points.dtype))[:, 0]

    def value_and_gradient(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        r"""Compute the value and its spatial gradient, for a loss on either.

        On a CPU, where the result will be differentiated, the backward pass is written by hand
        (`undula.nn.trunk`); it can be differentiated once and not be mapped over. Under autocast
        to bfloat16 that path keeps full precision on the way to the value. Everywhere else, in
        ``torch.compile`` and without autograd, this is `explicit_value_and_gradient`.

        Args:
            points: Where to evaluate, in the unit the network was trained in.
            condition: As in `forward`.

        Returns:
            The values, and their derivatives by the points (per unit of the points).
        """
        kind = points.device.type
        reduced = torch.is_autocast_enabled(kind)
        if (
            kind != "cpu"
            or not torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or (reduced and torch.get_autocast_dtype(kind) != torch.bfloat16)
        ):
            return self.explicit_value_and_gradient(points, condition)
        with torch.autocast(kind, enabled=False):
            features, jacobian = self._features_and_jacobian(points)
            value, slopes = value_and_slopes(features, self._unit_trunk(condition), reduced=reduced)
            gradient = (slopes[:, :, None] * jacobian).sum(dim=1)
            return value + self.last.bias, gradient

    def explicit_value_and_gradient(
        self, points: Float[Tensor, "n 3"], condition: Float[Tensor, "n c"] | Float[Tensor, " c"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        r"""Compute the value and its spatial gradient as plain forward code.

        .. math::
            g_L = W_L \odot \sigma(\beta a_{L-1}), \qquad
            g_l = (g_{l+1} W_l) \odot \sigma(\beta a_{l-1}), \qquad
            \nabla_x f = (g_1 W_0^\psi + g_{s+1} W_s^\psi / \sqrt 2) \, \partial \psi / \partial x

        Works without autograd, compiles, and is differentiable to any order; a loss on the
        gradient needs one ordinary backward pass, where ``torch.autograd.grad(create_graph=True)``
        needs a double one.

        Args:
            points: Where to evaluate, in the unit the network was trained in.
            condition: As in `forward`.

        Returns:
            The values, and their derivatives by the points (per unit of the points).

        Source: surface specification §7; same function as automatic differentiation.
        """
        with torch.autocast(points.device.type, enabled=False):
            features, jacobian = self._features_and_jacobian(points)
        hidden, slopes = self._trunk(features, condition)
        towards = self.last.weight * slopes[-1]
        by_features = torch.zeros_like(features)
        for layer in range(self.config.depth - 1, 0, -1):
            weight = self._hidden[layer - 1].weight
            if self.skip is not None and layer == self.config.skip_at:
                towards = towards * _ROOT_HALF
                by_features = linear(towards, self.skip.points.T)
            towards = linear(towards, weight.T) * slopes[layer - 1]
        by_features = by_features + linear(towards, self.first.points.T)
        with torch.autocast(points.device.type, enabled=False):
            value = self.last(hidden.to(points.dtype))[:, 0]
            gradient = (by_features.to(points.dtype)[:, :, None] * jacobian).sum(dim=1)
        return value, gradient

    @property
    def _hidden(self) -> list[nn.Linear]:
        """The layers between the first and the last."""
        return cast(list[nn.Linear], list(self.hidden))

    def _trunk(
        self,
        features: Float[Tensor, "n features"],
        condition: Float[Tensor, "n c"] | Float[Tensor, " c"],
    ) -> tuple[Float[Tensor, "n width"], list[Float[Tensor, "n _"]]]:
        """Run the hidden layers; also return the slope of the softplus in each."""
        hidden, slope = softplus_and_slope(self.first(features, condition), self.config.beta)
        slopes = [slope]
        for layer, after in enumerate(self._hidden, start=1):
            if self.skip is not None and layer == self.config.skip_at:
                entering = self.skip(features, condition, scale=_ROOT_HALF)
                activation = linear(hidden * _ROOT_HALF, after.weight) + entering
            else:
                activation = linear(hidden, after.weight, after.bias)
            hidden, slope = softplus_and_slope(activation, self.config.beta)
            slopes.append(slope)
        return hidden, slopes

    def _unit_trunk(self, condition: Float[Tensor, "n c"] | Float[Tensor, " c"]) -> Trunk:
        """Return the same layers with a softplus of sharpness 1."""
        beta, skip_at = self.config.beta, self.config.skip_at
        entering = {0: self.first.points * beta}
        hidden = [layer.weight for layer in self._hidden]
        shifts = [self.first.shift(condition), *(layer.bias for layer in self._hidden)]
        if self.skip is not None and skip_at is not None:
            entering[skip_at] = self.skip.points * (beta * _ROOT_HALF)
            hidden[skip_at - 1] = hidden[skip_at - 1] * _ROOT_HALF
            shifts[skip_at] = self.skip.shift(condition, scale=_ROOT_HALF)
        return Trunk(
            entering=entering,
            hidden=tuple(hidden),
            last=self.last.weight / beta,
            shifts=tuple(shift * beta for shift in shifts),
        )

    def _features(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n features"]:
        if self.config.harmonics == "paper":
            return paper_harmonics(points, self.config.degree)
        return solid_harmonics(points, self.config.degree)[:, 1:]

    def _features_and_jacobian(
        self, points: Float[Tensor, "n 3"]
    ) -> tuple[Float[Tensor, "n features"], Float[Tensor, "n features 3"]]:
        if self.config.harmonics == "paper":
            return paper_harmonics_and_jacobian(points, self.config.degree)
        values, jacobian = solid_harmonics_and_jacobian(points, self.config.degree)
        return values[:, 1:], jacobian[:, 1:]

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> None:
        """Draw the weights: a sphere, or 0 where the network corrects a known field."""
        coordinates = slice(1, 4) if self.config.harmonics == "paper" else slice(0, 3)
        for entry in (self.first, self.skip):
            if entry is not None:
                spread = sqrt(2 / len(entry.bias))
                entry.points[:, coordinates].normal_(0, spread, generator=generator)
                if self.config.condition_start == "random":
                    entry.condition.normal_(0, spread, generator=generator)
        for layer in self._hidden:
            layer.weight.normal_(0, sqrt(2 / len(layer.weight)), generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        self.last.bias.zero_()
        if self.config.zero_last:
            self.last.weight.zero_()
            return
        centre = sqrt(pi / self.last.in_features)
        self.last.weight.normal_(centre, 1e-5, generator=generator)
        directions = torch.randn(512, 3, generator=generator)
        sphere = self.config.geometric_radius * functional.normalize(directions, dim=1)
        self.last.bias.sub_(self(sphere, torch.zeros(self.config.condition)).mean())


class _Entry(nn.Module):
    """Where points and condition enter the network: the first layer, and the skip."""

    def __init__(self, features: int, condition: int, outputs: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.zeros(outputs, features))
        self.condition = nn.Parameter(torch.zeros(outputs, condition))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self,
        features: Float[Tensor, "n features"],
        condition: Float[Tensor, "n c"] | Float[Tensor, " c"],
        scale: float = 1.0,
    ) -> Float[Tensor, "n outputs"]:
        """Compute (W^ψ ψ + W^c c) · scale + b; a shared condition is folded into the bias."""
        with torch.autocast(features.device.type, enabled=False):
            shift = self.shift(condition, scale)
            if condition.ndim == 1:
                return linear(features, self.points * scale, shift)
            return linear(features, self.points * scale) + shift

    def shift(
        self, condition: Float[Tensor, "n c"] | Float[Tensor, " c"], scale: float = 1.0
    ) -> Float[Tensor, "*rows outputs"]:
        """Compute W^c c · scale + b, for all points or for each."""
        return functional.linear(condition, self.condition * scale, self.bias)


def softplus_and_slope(
    activation: Float[Tensor, "*shape"], beta: float
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Compute the softplus and its derivative, both differentiable to any order.

    .. math::
        T(a) = \ln(1 + e^{\beta a}) / \beta = \max(a, 0) - \ln \sigma(\beta |a|) / \beta,
        \qquad T'(a) = \sigma(\beta a)

    The second form neither overflows nor cancels; the absolute error is the rounding unit over
    β. One tensor is kept for the backward pass.

    Args:
        activation: The numbers a.
        beta: Sharpness β; the softplus tends to max(a, 0) as β grows.

    Returns:
        The softplus T and its slope σ(βa), of the shape of ``activation``.
    """
    return _SoftplusAndSlope.apply(activation, beta)


class _SoftplusAndSlope(torch.autograd.Function):
    """The derivative of the slope is β σ (1 − σ), so the slope is all that has to be kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(activation: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        slope = torch.sigmoid(activation * beta)
        tail = torch.maximum(slope, 1 - slope).log_()
        return torch.relu(activation).sub_(tail, alpha=1 / beta), slope

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.beta = inputs[1]

    @staticmethod
    def backward(
        ctx: Any, by_value: Tensor | None, by_slope: Tensor | None
    ) -> tuple[Tensor | None, None]:
        (slope,) = ctx.saved_tensors
        if by_slope is None:
            return (None if by_value is None else by_value * slope), None
        curved = by_slope * (slope * (1 - slope)) * ctx.beta
        return (curved if by_value is None else torch.addcmul(curved, by_value, slope)), None
