"""Point Transformer: attention over neighbours, with a weight for every channel."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.rows import rows_of
from undula.surface.backbones.grouping import (
    ANGSTROM_PER_UNIT,
    levels,
    nearest_members,
    protein_mean,
)
from undula.surface.backbones.layers import BackboneConfig, drawn_linear, pointwise, readout
from undula.surface.clouds import RouterCloud
from undula.surface.router import RouterOutput

_CHANNELS = (32, 64, 128, 256, 512)
_READOUT = (256,)
_SHRINK = 4


@dataclass(frozen=True, kw_only=True)
class PointTransformerConfig(BackboneConfig):
    """The form of a Point Transformer.

    Attributes:
        neighbours: How many points each looks at, k.
    """

    neighbours: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 2:
            raise UsageError(f"neighbours of attention must be at least 2, not {self.neighbours}")


class PointTransformer(nn.Module):
    """Compute a protein's code by attention among neighbours on five levels.

    Each level has a quarter of the points of the one before (rounded up) and one block; channels
    32–64–128–256–512 times ``width``; mean over points; readout 256. Features of a point are
    its place, its normal and its chemistry. 3.1 million parameters at width 1, without those of
    ``features``. Not invariant when the protein is turned.

    Args:
        config: Sizes and choices.
        features: Called with a cloud, gives the chemistry of its points (GeoAN).
        in_features: How many numbers that is, φ_s.
        generator: Draws the weights, on the CPU.

    Source: Zhao et al. (2021), Point Transformer, its classification network. Differs from it:
    LayerNorm for BatchNorm, no dropout, a fixed unit of length, a code in place of classes.
    """

    def __init__(
        self,
        config: PointTransformerConfig,
        features: nn.Module,
        in_features: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        channels = [config.channels(size) for size in _CHANNELS]
        self.entry = pointwise([in_features + 6, channels[0]], generator)
        self.down = nn.ModuleList(
            pointwise([before + 3, after], generator) for before, after in pairwise(channels)
        )
        self.blocks = nn.ModuleList(AttentionBlock(size, generator) for size in channels)
        out = [config.channels(size) for size in _READOUT]
        self.readout = readout([channels[-1], *out], config.code, generator)

    def forward(self, cloud: RouterCloud) -> RouterOutput:
        """Return one code per protein of the cloud."""
        counts = torch.bincount(cloud.owner, minlength=cloud.proteins).tolist()
        sizes = []
        for _ in self.down:
            counts = [-(-count // _SHRINK) for count in counts]
            sizes.append(counts)
        before, *thinned = levels(cloud, sizes)
        places = cloud.points / ANGSTROM_PER_UNIT
        values = self.entry(torch.cat((places, cloud.normals, self.features(cloud)), dim=1))
        members = nearest_members(before, before, self.config.neighbours)
        values = self.blocks[0](before.points, values, members)
        for level, down, block in zip(thinned, self.down, self.blocks[1:], strict=True):
            members = nearest_members(level, before, self.config.neighbours)
            apart = before.points[members] - level.points[:, None]
            values = down(torch.cat((apart, rows_of(values, members)), dim=2)).amax(dim=1)
            members = nearest_members(level, level, self.config.neighbours)
            values = block(level.points, values, members)
            before = level
        return RouterOutput(self.readout(protein_mean(values, before.owner, cloud.proteins)))


class AttentionBlock(nn.Module):
    r"""Add what attention to the neighbours says, between two linear layers.

    .. math::
        y_i = \sum_{j \in N(i)} \mathrm{softmax}_j(\gamma(\varphi(x_i) - \psi(x_j) + \delta_{ij}))
        \odot (\alpha(x_j) + \delta_{ij}), \qquad \delta_{ij} = \theta(p_i - p_j)

    ==================  ==================================================
    x, p                features, places
    φ, ψ, α             linear: ``query``, ``key``, ``value``
    γ, θ                two linear layers with a ReLU between: ``weighing``, ``offset``
    ==================  ==================================================

    Args:
        channels: Of the features.
        generator: Draws the weights.

    Source: Zhao et al. (2021), eqs. 3 and 4. The last layer of γ has no bias: the softmax
    would cancel it.
    """

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.before = pointwise([channels, channels], generator)
        self.query = drawn_linear(channels, channels, generator)
        self.key = drawn_linear(channels, channels, generator)
        self.value = drawn_linear(channels, channels, generator)
        self.offset = nn.Sequential(
            drawn_linear(3, channels, generator),
            nn.ReLU(),
            drawn_linear(channels, channels, generator),
        )
        self.weighing = nn.Sequential(
            drawn_linear(channels, channels, generator),
            nn.ReLU(),
            drawn_linear(channels, channels, generator, bias=False),
        )
        self.middle_norm = nn.LayerNorm(channels)
        self.after = drawn_linear(channels, channels, generator)
        self.after_norm = nn.LayerNorm(channels)

    def forward(
        self,
        points: Float[Tensor, "n 3"],
        values: Float[Tensor, "n channels"],
        members: Int[Tensor, "n k"],
    ) -> Float[Tensor, "n channels"]:
        """Compute new features of the same points.

        Args:
            points: Where they are.
            values: Their features.
            members: The neighbours of each; those that are repeated count more often.
        """
        x = self.before(values)
        offset = self.offset(points[:, None] - points[members])
        weight = self.weighing(self.query(x)[:, None] - rows_of(self.key(x), members) + offset)
        attended = (weight.softmax(dim=1) * (rows_of(self.value(x), members) + offset)).sum(dim=1)
        attended = functional.relu(self.middle_norm(attended))
        return functional.relu(values + self.after_norm(self.after(attended)))
