r"""The hidden layers of the implicit network, with value, gradient and backward pass by hand.

Autograd keeps a tensor for every operation of the explicit gradient and visits each of them
again. Here each layer keeps three, in slices of rows that stay in the processor's cache, and the
products of a layer run back to back. The plain form in `undula.nn.implicit` is the definition;
this is the same function, faster on a CPU and differentiable once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ROOT_HALF = sqrt(0.5)
ROWS = 1024
"""Rows of a slice: 2 MB for 512 numbers in float32, the size of a core's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trunk:
    r"""The weights of an implicit network's hidden layers, as `value_and_slope_by_features` reads.

    ====================  =======================================================
    W_0, W_s (of ψ)       ``first``, ``skip`` (none without a skip connection)
    W_l, W_L              ``hidden[l - 1]``, ``last``
    b_l + W_l^c c         ``entering[l]``: one row for all points, or one per point
    β, s                  ``beta``, ``skip_at``
    ====================  =======================================================
    """

    first: Float[Tensor, "outputs features"]
    skip: Float[Tensor, "width features"] | None
    hidden: tuple[Float[Tensor, "_ _"], ...]
    last: Float[Tensor, "1 width"]
    entering: tuple[Tensor, ...]
    beta: float
    skip_at: int | None


def value_and_slope_by_features(
    features: Float[Tensor, "n features"], trunk: Trunk, *, reduced: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n features"]]:
    r"""Compute W_L h_L and its derivatives by the features, differentiable once.

    With :math:`z = \beta a` and :math:`\eta = \beta h` the sharpness leaves the layers:

    .. math::
        z_l = W_l \eta_l + \beta e_l, \qquad s_l = \sigma(z_l), \qquad
        \eta_{l+1} = \ln(1 + e^{z_l}), \qquad v_l = u_l s_l, \qquad u_{l-1} = W_l^T v_l

    with :math:`u_{L-1} = W_L`, and back, a bar for the derivative of the loss,

    .. math::
        \bar u_l = \bar v_l s_l, \qquad \bar v_l = W_l \bar u_{l-1}, \qquad
        \bar z_l = \bar\eta_{l+1} s_l + \bar v_l u_l s_l (1 - s_l), \qquad
        \bar W_l = \bar z_l \eta_l^T + v_l \bar u_{l-1}^T

    Args:
        features: ψ, one row per point.
        trunk: The weights; the skip's share of 1/√2 is applied here.
        reduced: Whether all products but those that lead to z are in bfloat16. z is not: the
            gate s turns from 0 to 1 within a few units of z, and inputs rounded to eight bits
            move z by as much as 0.1 (gradient error 1.3e-2 instead of 3e-3).

    Returns:
        The values without the last bias, and one derivative per feature.
    """
    with torch.autocast(features.device.type, enabled=False):
        return _Step.apply(
            reduced,
            trunk.beta,
            trunk.skip_at,
            features,
            trunk.first,
            trunk.skip,
            trunk.last,
            *trunk.entering,
            *trunk.hidden,
        )


@dataclass(kw_only=True)
class _Kept:
    """What a slice keeps for the way back: η, s and u of each layer, in the products' dtype."""

    inputs: list[Tensor]
    slopes: list[Tensor]
    towards: list[Tensor]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        reduced: bool,
        beta: float,
        skip_at: int | None,
        features: Tensor,
        first: Tensor,
        skip: Tensor | None,
        last: Tensor,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        depth = (len(layers) + 1) // 2
        entering = [one * beta for one in layers[:depth]]
        weights = [_scaled(one, l == skip_at) for l, one in enumerate(layers[depth:], start=1)]
        dtype = torch.bfloat16 if reduced else features.dtype
        ctx.products = [weight.to(dtype) for weight in weights]
        ctx.settings = beta, skip_at, dtype
        ctx.save_for_backward(features, first, skip, last, *layers[:depth])
        ctx.kept = []
        by_point, by_skip = first * beta, None if skip is None else skip * (beta * ROOT_HALF)
        value = features.new_empty(len(features))
        by_features = torch.empty_like(features)
        for start in range(0, len(features), ROWS):
            rows = slice(start, start + ROWS)
            psi = features[rows]
            kept = _Kept(inputs=[], slopes=[], towards=[])
            for layer in range(depth):
                shift = entering[layer] if entering[layer].ndim == 1 else entering[layer][rows]
                if layer == 0:
                    z = torch.addmm(shift, psi, by_point.T)
                else:
                    z = torch.addmm(shift, eta, weights[layer - 1].T)
                    if layer == skip_at:
                        z.addmm_(psi, by_skip.T)
                eta = functional.softplus(z)
                kept.slopes.append(z.sigmoid_().to(dtype))
                kept.inputs.append(eta.to(dtype))
            torch.mv(eta, last[0] / beta, out=value[rows])
            u = last.to(dtype).expand(len(psi), -1)
            for layer in range(depth - 1, -1, -1):
                kept.towards.insert(0, u)
                v = u * kept.slopes[layer]
                if layer == skip_at:
                    by_features[rows] = v.to(features.dtype) @ skip * ROOT_HALF
                if layer:
                    u = v @ ctx.products[layer - 1]
            if skip_at is None:
                torch.mm(v.to(features.dtype), first, out=by_features[rows])
            else:
                by_features[rows].addmm_(v.to(features.dtype), first)
            ctx.kept.append(kept)
        return value, by_features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor, by_slope: Tensor) -> tuple[Tensor | None, ...]:
        features, first, skip, last, *entering = ctx.saved_tensors
        beta, skip_at, dtype = ctx.settings
        depth = len(entering)
        of_first, of_last = torch.zeros_like(first), torch.zeros_like(last)
        of_skip = None if skip is None else torch.zeros_like(skip)
        of_hidden = [torch.zeros_like(one, dtype=features.dtype) for one in ctx.products]
        of_entering = [torch.zeros_like(one) for one in entering]
        of_features = torch.zeros_like(features) if ctx.needs_input_grad[3] else None
        full = features.dtype
        for number, kept in enumerate(ctx.kept):
            rows = slice(number * ROWS, (number + 1) * ROWS)
            psi, y, p = features[rows], by_value[rows], by_slope[rows]
            curved = []
            vs, ubs = [], []
            for layer in range(depth):
                s, u = kept.slopes[layer], kept.towards[layer]
                if layer == 0:
                    v_bar = (p @ first.T).to(dtype)
                else:
                    v_bar = u_bar @ ctx.products[layer - 1].T
                    if layer == skip_at:
                        v_bar += (p @ skip.T * ROOT_HALF).to(dtype)
                v = u * s
                if layer == 0:
                    of_first.addmm_(v.to(full).T, p)
                elif layer == skip_at:
                    of_skip.addmm_(v.to(full).T, p, alpha=ROOT_HALF)
                if layer:
                    _add(of_hidden[layer - 1], v, u_bar)
                u_bar = v_bar * s
                v_bar.mul_(u)
                v_bar.mul_(torch.addcmul(s, s, s, value=-1))
                curved.append(v_bar)
            of_last += u_bar.to(full).sum(0)
            of_last += (y @ kept.inputs[-1].to(full)) / beta
            eta_bar = torch.outer(y, last[0] / beta).to(dtype)
            for layer in range(depth - 1, -1, -1):
                z_bar = curved[layer].addcmul_(eta_bar, kept.slopes[layer])
                exact = z_bar.to(full)
                if of_entering[layer].ndim == 1:
                    of_entering[layer].add_(exact.sum(0), alpha=beta)
                else:
                    torch.mul(exact, beta, out=of_entering[layer][rows])
                if layer == 0:
                    of_first.addmm_(exact.T, psi, alpha=beta)
                elif layer == skip_at:
                    of_skip.addmm_(exact.T, psi, alpha=beta * ROOT_HALF)
                if of_features is not None and layer in (0, skip_at):
                    of_features[rows].addmm_(exact, first if layer == 0 else skip, alpha=beta * (1 if layer == 0 else ROOT_HALF))
                if layer:
                    _add(of_hidden[layer - 1], z_bar, kept.inputs[layer - 1])
                    eta_bar = z_bar @ ctx.products[layer - 1]
        if skip_at is not None:
            of_hidden[skip_at - 1] *= ROOT_HALF
        return (None, None, None, of_features, of_first, of_skip, of_last, *of_entering, *of_hidden)


def _scaled(weight: Tensor, at_skip: bool) -> Tensor:
    return weight * ROOT_HALF if at_skip else weight


def _add(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right
