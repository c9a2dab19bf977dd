"""Layers on scalars and vectors together that turn as the vectors do."""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_SMALLEST = 1e-8
"""Added to squared lengths, so that the slope of a length of 0 is 0."""


def linear(
    inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True, gain: float = 1.0
) -> nn.Linear:
    """Make a linear layer whose outputs vary as its inputs do, drawn from a generator.

    Args:
        inputs: Its width before.
        outputs: Its width after.
        generator: Draws the weights; on the CPU, in float32.
        bias: Whether it adds a constant, at first 0.
        gain: Spread of the outputs over that of the inputs; 0 for a layer that starts silent.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.normal_(0, 1 / sqrt(max(inputs, 1)), generator=generator).mul_(gain)
        if bias:
            layer.bias.zero_()
    return layer


def lengths(vectors: Float[Tensor, "*rows 3 channels"]) -> Float[Tensor, "*rows channels"]:
    """Compute lengths of vectors, with a slope of 0 where they vanish."""
    return (vectors.square().sum(dim=-2) + _SMALLEST).sqrt() - sqrt(_SMALLEST)


class Gated(nn.Module):
    r"""Mix scalars with lengths, and vectors among themselves, opened or closed by scalars.

    .. math::
        h = \phi(W_1 \, \mathrm{LN}[s; \lVert V \mathbf{v} \rVert] + b_1), \qquad
        s' = W_2 h + b_2, \qquad
        \mathbf{v}' = (W_3 h + b_3) \circ U \mathbf{v}

    Vectors are only scaled and added, never multiplied with each other, so that they stay true
    vectors: turned and mirrored inputs give turned and mirrored outputs. Gates see normalised
    numbers, so that long vectors are not multiplied by something that grows with their length:
    as a part of a differential equation that would run away.

    Args:
        scalars: Scalar inputs.
        vectors: Vector inputs.
        scalars_out: Scalar outputs.
        vectors_out: Vector outputs.
        hidden: Width of h.
        generator: Draws the weights.
        gain: Spread of the outputs at the start; 0 for outputs that start at 0.

    Source: Schütt et al., PaiNN (ICML 2021), the gated equivariant block. Differs from it: the
    normalisation LN, without weights of its own.
    """

    def __init__(
        self,
        scalars: int,
        vectors: int,
        scalars_out: int,
        vectors_out: int,
        hidden: int,
        generator: torch.Generator,
        *,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.measured = linear(vectors, vectors, generator, bias=False)
        self.enter = linear(scalars + vectors, hidden, generator)
        self.leave = linear(hidden, scalars_out, generator, gain=gain)
        self.gates = linear(hidden, vectors_out, generator)
        self.mixed = linear(vectors, vectors_out, generator, bias=False, gain=gain)
        with torch.no_grad():
            self.gates.bias.fill_(1.0)

    def forward(
        self, scalars: Float[Tensor, "*rows a"], vectors: Float[Tensor, "*rows 3 b"]
    ) -> tuple[Float[Tensor, "*rows c"], Float[Tensor, "*rows 3 d"]]:
        """Return scalars and vectors, one row for each row given."""
        seen = torch.cat([scalars, lengths(self.measured(vectors))], dim=-1)
        hidden = functional.silu(self.enter(functional.layer_norm(seen, seen.shape[-1:])))
        return self.leave(hidden), self.gates(hidden).unsqueeze(-2) * self.mixed(vectors)
