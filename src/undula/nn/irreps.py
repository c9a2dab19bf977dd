r"""Features that turn with the molecule: how their numbers lie, and layers that keep their kind.

A row of features is flat: degree by degree, in a degree component by component (in e3nn's order,
as `undula.nn.harmonics` has them), in a component channel by channel. ``channels`` says how many
channels degree 0, 1, … have. Degree l always has parity :math:`(-1)^l`: a rotation multiplies its
2 l + 1 components by Wigner's matrix, and a point reflection by :math:`(-1)^l`.

A layer keeps this if it treats all components of a channel alike: it may mix channels of one
degree, and multiply by invariants, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_LEAST = 1e-5
"""What is added to a mean square before division, in squared units of a feature."""


def width(channels: Sequence[int]) -> int:
    """Return the length of a row of features."""
    return sum((2 * level + 1) * count for level, count in enumerate(channels))


def by_degree(
    features: Float[Tensor, "n width"], channels: Sequence[int]
) -> list[Float[Tensor, "n _components _channels"]]:
    """Return views of flat rows, degree by degree: components × channels."""
    sizes = [(2 * level + 1) * count for level, count in enumerate(channels)]
    return [
        part.unflatten(1, (2 * level + 1, count))
        for level, (part, count) in enumerate(
            zip(features.split(sizes, dim=1), channels, strict=True)
        )
    ]


def joined(parts: Sequence[Float[Tensor, "n _components _channels"]]) -> Float[Tensor, "n width"]:
    """Return flat rows: what `by_degree` takes apart."""
    return torch.cat([part.flatten(1) for part in parts], dim=1)


class EquivariantLinear(nn.Module):
    r"""Mix the channels of each degree, with a bias on degree 0 alone.

    .. math:: h'_{l,\,m c'} = \sum_c W^l_{c' c} \, h_{l,\,m c} + [l = 0] \, b_{c'}

    A degree that has no channels on the way in comes out as 0.

    Source: MoE-DSR, "generalized linear layer on irreps features", after Equiformer.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        generator: torch.Generator,
        *,
        bias: bool = True,
    ) -> None:
        """Make a layer between channels; W from N(0, 1 / inputs of the degree), b of 0."""
        super().__init__()
        self.inputs = tuple(inputs)
        self.weights = nn.ParameterList(
            torch.randn(after, before, generator=generator) / max(before, 1) ** 0.5
            for before, after in zip(inputs, outputs, strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(outputs[0])) if bias else None

    def forward(
        self, features: Float[Tensor, "n inputs"], share: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n outputs"]:
        """Apply the layer to each row.

        Args:
            features: Flat rows.
            share: How often the bias counts in each row, for a row that is a sum of others;
                once by default.
        """
        parts = [
            part @ weight.mT
            for part, weight in zip(by_degree(features, self.inputs), self.weights, strict=True)
        ]
        if self.bias is not None:
            parts[0] = parts[0] + (self.bias if share is None else share[:, None, None] * self.bias)
        return joined(parts)


class EquivariantNorm(nn.Module):
    r"""Divide each degree of a row by its root mean square, and scale the channels.

    .. math::
        h'_{l,\,m c} = \gamma_{l c} \, h_{l,\,m c} \Big/
        \sqrt{\epsilon + \overline{h_{l,\,m c}^2}}

    with the mean over components and channels; rows of 0 stay 0.

    Source: the equivariant layer normalisation of Equiformer, without a shift.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.scales = nn.ParameterList(torch.ones(count) for count in channels)

    def forward(self, features: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """Normalise each row."""
        parts = [
            part * (part.square().mean(dim=(1, 2), keepdim=True) + _LEAST).rsqrt() * scale
            for part, scale in zip(by_degree(features, self.channels), self.scales, strict=True)
        ]
        return joined(parts)


def gated(
    features: Float[Tensor, "n width"], channels: Sequence[int]
) -> Float[Tensor, "n gated_width"]:
    r"""Bend features by invariants: SiLU on degree 0, a gate of its own for each other channel.

    .. math:: h'_0 = \mathrm{SiLU}(h_0), \qquad h'_{l,\,m c} = \sigma(g_{l c}) \, h_{l,\,m c}

    Args:
        features: Rows in which the channels of degree 0 are followed by one number g for each
            channel of the other degrees (`gate_channels`).
        channels: Channels of the result.
    """
    first, *others = by_degree(features, gate_channels(channels))
    scalars, *gates = first.split(list(channels), dim=2)
    return joined(
        [
            functional.silu(scalars),
            *(gate.sigmoid() * part for gate, part in zip(gates, others, strict=True)),
        ]
    )


def gate_channels(channels: Sequence[int]) -> tuple[int, ...]:
    """Return the channels that `gated` needs to give these."""
    return (sum(channels), *channels[1:])
