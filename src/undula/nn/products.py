"""Matrix products in float32 on a CPU by oneDNN, which both kinds of processor serve well.

torch hands float32 products to MKL, which reaches half of oneDNN's rate on AMD processors
(100 against 230 GFLOP/s on one core of an EPYC, Zen 5); numbers agree to 4e-7.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def product(
    left: Float[Tensor, "rows inner"],
    right: Float[Tensor, "columns inner"],
    shift: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    r"""Compute :math:`A B^T + b`, without a derivative.

    Transposed views are as fast as contiguous tensors. Other dtypes than float32, other devices
    and builds of torch without oneDNN are served by torch's own choice.

    Args:
        left: A.
        right: B, of the dtype of A.
        shift: b, added to every row.

    Returns:
        The product; equal to torch's up to rounding, the same bytes each time.
    """
    suits = left.dtype == torch.float32 and left.device.type == "cpu"
    if suits and left.numel() and right.numel() and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(left, right, shift, "none", [], "")
    return functional.linear(left, right, shift)


def linear(
    inputs: Float[Tensor, "rows inner"],
    weight: Float[Tensor, "columns inner"],
    bias: Float[Tensor, " columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """Compute what `torch.nn.functional.linear` does, by `product` where that is faster.

    Under autocast and in `torch.compile`, which choose the product themselves, it is torch's.

    Args:
        inputs: One row per point.
        weight: One row per output.
        bias: Added to every row.

    Returns:
        One row per point; differentiable to any order, also under ``torch.func``.
    """
    kind = inputs.device.type
    if kind != "cpu" or torch.is_autocast_enabled(kind) or torch.compiler.is_compiling():
        return functional.linear(inputs, weight, bias)
    return _Linear.apply(inputs, weight, bias)


def through(layer: nn.Linear, rows: Float[Tensor, "rows inner"]) -> Float[Tensor, "rows columns"]:
    """Apply a linear layer by `linear`."""
    return linear(rows, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return product(inputs, weight, bias)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
    ) -> None:
        del output
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, by_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        for_inputs, for_weight, for_bias = ctx.needs_input_grad
        return (
            _Linear.apply(by_output, weight.mT, None) if for_inputs else None,
            _Linear.apply(by_output.mT, inputs.mT, None) if for_weight else None,
            by_output.sum(dim=0) if for_bias else None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, int | None, int | None],
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        del info
        inputs, weight = (
            one if axis is None else one.movedim(axis, 0)
            for one, axis in zip((inputs, weight), in_dims, strict=False)
        )
        result = inputs @ weight.mT
        if bias is not None:
            result = result + (bias if in_dims[2] is None else bias.movedim(in_dims[2], 0)[:, None])
        return result, 0
