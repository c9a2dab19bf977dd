r"""The hidden layers of the implicit network: value, gradient and their way back, by hand.

Autograd stores and visits every operation of the explicit gradient. Here a layer keeps three
tensors, and all happens in slices of rows that stay in the processor's cache. The plain form in
`undula.nn.implicit` is the definition; this is the same function, faster on a CPU and
differentiable once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from undula.nn.products import product

ROWS = 1024
"""Rows in a slice: 2 MB for 512 numbers in float32."""
_LINEAR_FROM = 50.0
"""Where the softplus of z is z, to the last digit of float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trunk:
    r"""Hidden layers with a softplus of sharpness 1.

    A sharpness β is moved into the weights by :math:`z = \beta a`, :math:`\eta = \beta h`: W_0,
    W_s and b times β, W_L over β.

    ====================  ============================================================
    W_0, W_s (of ψ)       ``entering[0]``, ``entering[s]`` where there is a skip connection
    W_l, W_L              ``hidden[l - 1]``, ``last``
    b_l                   ``shifts[l]``: one row that all points share, or one per point
    ====================  ============================================================
    """

    entering: Mapping[int, Float[Tensor, "_ features"]]
    hidden: tuple[Float[Tensor, "_ _"], ...]
    last: Float[Tensor, "1 width"]
    shifts: tuple[Float[Tensor, "... _"], ...]


def value_and_slopes(
    features: Float[Tensor, "n features"], trunk: Trunk, *, reduced: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n features"]]:
    r"""Compute the last product and its derivatives by the features, differentiable once.

    .. math::
        z_0 = W_0 \psi + b_0, \quad z_l = W_l \eta_l + [l = s] W_s \psi + b_l, \quad
        \eta_{l+1} = \ln(1 + e^{z_l}), \quad s_l = \sigma(z_l)

        v_l = u_l s_l, \quad u_{L-1} = W_L, \quad u_{l-1} = W_l^T v_l, \quad
        \partial_\psi f = W_0^T v_0 + W_s^T v_s

    and back, where a bar is the derivative of the loss,

    .. math::
        \bar v_0 = W_0 \bar p, \quad \bar u_l = \bar v_l s_l, \quad
        \bar v_l = W_l \bar u_{l-1} + [l = s] W_s \bar p, \quad p = \partial_\psi f

        \bar z_l = \bar\eta_{l+1} s_l + \bar v_l v_l (1 - s_l), \quad
        \bar\eta_l = W_l^T \bar z_l, \quad
        \bar W_l = \bar z_l \eta_l^T + v_l \bar u_{l-1}^T

    Args:
        features: ψ, one row per point.
        trunk: The layers.
        reduced: Whether all products but those that lead to z are in bfloat16. Those are not:
            the gate s turns within a few units of z, which spreads over some ±30 in a trained
            network, and factors of eight bits would move it by 0.1.

    Returns:
        The values without a last bias, and one derivative per feature.
    """
    with torch.autocast(features.device.type, enabled=False):
        return _ValueAndSlopes.apply(
            reduced,
            tuple(trunk.entering),
            features,
            trunk.last,
            *trunk.entering.values(),
            *trunk.shifts,
            *trunk.hidden,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """What a slice keeps, layer by layer: the η that leaves it, s and v."""

    outputs: list[Tensor]
    gates: list[Tensor]
    towards: list[Tensor]


class _ValueAndSlopes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        reduced: bool,
        at: tuple[int, ...],
        features: Tensor,
        last: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        trunk = _assembled(at, last, weights)
        dtype = torch.bfloat16 if reduced else features.dtype
        factors = [weight.to(dtype) for weight in trunk.hidden]
        value, slopes = features.new_empty(len(features)), torch.empty_like(features)
        saved: list[Tensor] = []
        for start in range(0, len(features), ROWS):
            rows = slice(start, start + ROWS)
            kept = _Kept(outputs=[], gates=[], towards=[])
            value[rows] = _climb(features, trunk, rows, kept, dtype)
            slopes[rows] = _descend(trunk, factors, kept)
            saved += kept.outputs + kept.gates + kept.towards
        ctx.at, ctx.weights, ctx.dtype = at, len(weights), dtype
        ctx.save_for_backward(features, last, *weights, *saved)
        return value, slopes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor, by_slopes: Tensor) -> tuple[Tensor | None, ...]:
        features, last, *others = ctx.saved_tensors
        weights, saved = others[: ctx.weights], others[ctx.weights :]
        trunk = _assembled(ctx.at, last, weights)
        back = _Backward(features, trunk, ctx.dtype, by_features=ctx.needs_input_grad[2])
        depth = len(trunk.shifts)
        for number, start in enumerate(range(0, len(features), ROWS)):
            rows = slice(start, start + ROWS)
            mine = saved[3 * depth * number :][: 3 * depth]
            kept = _Kept(outputs=mine[:depth], gates=mine[depth:-depth], towards=mine[-depth:])
            back.descend(by_value[rows], rows, kept, back.climb(by_slopes[rows], kept))
        return (
            None,
            None,
            back.features,
            back.last,
            *back.entering.values(),
            *back.shifts,
            *back.hidden,
        )


def _assembled(at: tuple[int, ...], last: Tensor, weights: Sequence[Tensor]) -> Trunk:
    """Name the tensors again that `torch.autograd.Function` takes in a row."""
    depth = (len(weights) - len(at) + 1) // 2
    return Trunk(
        entering=dict(zip(at, weights[: len(at)], strict=True)),
        shifts=tuple(weights[len(at) : len(at) + depth]),
        hidden=tuple(weights[len(at) + depth :]),
        last=last,
    )


def _climb(
    features: Tensor, trunk: Trunk, rows: slice, kept: _Kept, dtype: torch.dtype
) -> Float[Tensor, " rows"]:
    """Go from ψ to W_L η_L and keep η and s of each layer."""
    output, weights = features[rows], (trunk.entering[0], *trunk.hidden)
    for layer, (weight, shift) in enumerate(zip(weights, trunk.shifts, strict=True)):
        if shift.ndim == 1:
            z = product(output, weight, shift)
        else:
            z = product(output, weight).add_(shift[rows])
        if layer and layer in trunk.entering:
            z += product(features[rows], trunk.entering[layer])
        output = functional.softplus(z, threshold=_LINEAR_FROM)
        kept.outputs.append(output.to(dtype))
        kept.gates.append(z.sigmoid_().to(dtype))
    return output @ trunk.last[0]


def _descend(trunk: Trunk, factors: list[Tensor], kept: _Kept) -> Float[Tensor, "rows features"]:
    """Go from W_L to the derivatives by ψ and keep v of each layer."""
    full, dtype = trunk.last.dtype, kept.gates[-1].dtype
    towards, slopes = trunk.last.to(dtype), []
    for layer in range(len(kept.gates) - 1, -1, -1):
        towards = towards * kept.gates[layer]
        kept.towards.insert(0, towards)
        if layer in trunk.entering:
            slopes.append(product(towards.to(full), trunk.entering[layer].T))
        if layer:
            towards = product(towards, factors[layer - 1].T)
    return torch.stack(slopes).sum(dim=0)


class _Backward:
    """The derivatives of the loss by all that entered, summed slice by slice."""

    def __init__(
        self, features: Tensor, trunk: Trunk, dtype: torch.dtype, *, by_features: bool
    ) -> None:
        self._features, self._trunk = features, trunk
        self._factors = [weight.to(dtype) for weight in trunk.hidden]
        self.features = torch.zeros_like(features) if by_features else None
        self.entering = {at: torch.zeros_like(weight) for at, weight in trunk.entering.items()}
        self.last = torch.zeros_like(trunk.last)
        self.shifts = [torch.zeros_like(shift) for shift in trunk.shifts]
        self.hidden = [torch.zeros_like(weight) for weight in trunk.hidden]

    def climb(self, by_slopes: Float[Tensor, "rows features"], kept: _Kept) -> list[Tensor]:
        """Go back through the descent; return what it adds to the derivative by each z."""
        dtype, full = kept.gates[0].dtype, by_slopes.dtype
        bent: list[Tensor] = []
        arriving = by_slopes
        for layer, (gate, towards) in enumerate(zip(kept.gates, kept.towards, strict=True)):
            if layer == 0:
                by_towards = product(by_slopes, self._trunk.entering[0]).to(dtype)
            else:
                self.hidden[layer - 1] += product(towards.T, arriving.T)
                by_towards = product(arriving, self._factors[layer - 1])
                if layer in self.entering:
                    by_towards += product(by_slopes, self._trunk.entering[layer])
            if layer in self.entering:
                self.entering[layer] += product(towards.to(full).T, by_slopes.T)
            arriving = by_towards * gate
            by_towards *= towards
            bent.append(by_towards.addcmul_(by_towards, gate, value=-1))
        self.last += arriving.to(full).sum(dim=0)
        return bent

    def descend(
        self, by_value: Float[Tensor, " rows"], rows: slice, kept: _Kept, bent: list[Tensor]
    ) -> None:
        """Go back through the climb."""
        dtype, full = kept.gates[0].dtype, by_value.dtype
        self.last += by_value @ kept.outputs[-1].to(full)
        by_output = torch.outer(by_value, self._trunk.last[0]).to(dtype)
        for layer in range(len(bent) - 1, -1, -1):
            by_z = bent[layer].addcmul_(by_output, kept.gates[layer])
            if self.shifts[layer].ndim == 1:
                self.shifts[layer] += by_z.sum(dim=0)
            else:
                self.shifts[layer][rows] = by_z
            if layer in self.entering:
                self._enter(by_z.to(full), rows, layer)
            if layer:
                self.hidden[layer - 1] += product(by_z.T, kept.outputs[layer - 1].T)
                by_output = product(by_z, self._factors[layer - 1].T)

    def _enter(self, by_z: Tensor, rows: slice, layer: int) -> None:
        """Add the derivatives by the weight of ψ, and by ψ where they are wanted."""
        self.entering[layer] += product(by_z.T, self._features[rows].T)
        if self.features is not None:
            self.features[rows] += product(by_z, self._trunk.entering[layer].T)
