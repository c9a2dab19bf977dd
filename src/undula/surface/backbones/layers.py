"""Layers that the point networks share: applied to each row alone, with weights from a generator.

The papers normalise over the rows of a batch (BatchNorm), which suits hundreds of clouds. Here a
batch holds a few proteins, and what a protein's code is must not depend on its company: every
row is normalised over its own channels (LayerNorm) instead, in training as in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from undula.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """What all point networks let choose.

    Attributes:
        code: Numbers in a protein's code, φ_P.
        width: Channels in every layer as a multiple of the published ones.
    """

    code: int = 32
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.code < 1:
            raise UsageError(f"code of a router must be at least 1, not {self.code}")
        if not 0 < self.width < math.inf:
            raise UsageError(f"width of a router must be positive, not {self.width}")

    def channels(self, published: int) -> int:
        """Return how many channels stand for the published number: a multiple of 8."""
        return max(8, 8 * round(published * self.width / 8))


def drawn_linear(
    inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """Make a linear layer as torch would, U(−1/√inputs, 1/√inputs), but from a generator."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            drawn_uniform(parameter, inputs, generator)
    return layer


@torch.no_grad()
def drawn_uniform(parameter: torch.Tensor, inputs: int, generator: torch.Generator) -> None:
    """Fill a parameter from U(−1/√inputs, 1/√inputs)."""
    bound = 1 / math.sqrt(inputs)
    parameter.uniform_(-bound, bound, generator=generator)


def pointwise(
    sizes: Sequence[int],
    generator: torch.Generator,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Make layers that act on each row alone: linear, LayerNorm, activation, for each step.

    Args:
        sizes: Channels before, between and after the layers.
        generator: Draws the weights.
        activation: Made once per layer.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [drawn_linear(before, after, generator), nn.LayerNorm(after), activation()]
    return nn.Sequential(*layers)


def readout(sizes: Sequence[int], code: int, generator: torch.Generator) -> nn.Sequential:
    """Make the network from pooled channels to the code: `pointwise`, then linear."""
    layers = pointwise(sizes, generator)
    return layers.append(drawn_linear(sizes[-1], code, generator))
