"""PointMLP: residual networks over groups of points that an affine map has made alike."""

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
    protein_maximum,
    protein_mean,
)
from undula.surface.backbones.layers import BackboneConfig, drawn_linear, pointwise, readout
from undula.surface.clouds import RouterCloud
from undula.surface.router import RouterOutput

_CHANNELS = (64, 128, 256, 512, 1024)
_READOUT = (512, 256)
_BLOCKS = 2
_SHRINK = 2
_LEAST_DEVIATION = 1e-5


@dataclass(frozen=True, kw_only=True)
class PointMLPConfig(BackboneConfig):
    """The form of a PointMLP.

    Attributes:
        neighbours: How many points make a group, k.
    """

    neighbours: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours < 2:
            raise UsageError(f"neighbours of a group must be at least 2, not {self.neighbours}")


class PointMLP(nn.Module):
    """Compute a protein's code by residual networks on four levels of groups.

    Each level has half the points of the one before (rounded up) and twice its channels,
    64–128–256–512–1024 times ``width``, with two residual blocks before and two after the
    maximum over a group; maximum over the last points; readout 512–256. Features of a point are
    its place, its normal and its chemistry. 13 million parameters and 30 billion multiplications
    for 2,000 points at width 1, without ``features``: the largest of the five by far. Not invariant
    when the protein is turned.

    Args:
        config: Sizes and choices.
        features: Called with a cloud, gives the chemistry of its points (GeoAN).
        in_features: How many numbers that is, φ_s.
        generator: Draws the weights, on the CPU.

    Source: Ma et al. (2022), PointMLP, its classification network. Differs from it: LayerNorm
    for BatchNorm, no dropout, a fixed unit of length, a code in place of classes.
    """

    def __init__(
        self,
        config: PointMLPConfig,
        features: nn.Module,
        in_features: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        channels = [config.channels(size) for size in _CHANNELS]
        self.entry = pointwise([in_features + 6, channels[0]], generator)
        self.stages = nn.ModuleList(Stage(*sizes, generator) for sizes in pairwise(channels))
        out = [config.channels(size) for size in _READOUT]
        self.readout = readout([channels[-1], *out], config.code, generator)

    def forward(self, cloud: RouterCloud) -> RouterOutput:
        """Return one code per protein of the cloud."""
        counts = torch.bincount(cloud.owner, minlength=cloud.proteins).tolist()
        sizes = []
        for _ in self.stages:
            counts = [-(-count // _SHRINK) for count in counts]
            sizes.append(counts)
        before, *thinned = levels(cloud, sizes)
        places = cloud.points / ANGSTROM_PER_UNIT
        values = self.entry(torch.cat((places, cloud.normals, self.features(cloud)), dim=1))
        for level, stage in zip(thinned, self.stages, strict=True):
            members = nearest_members(level, before, self.config.neighbours)
            values = stage(values, level.within, members, level.owner, cloud.proteins)
            before = level
        return RouterOutput(self.readout(protein_maximum(values, before.owner, cloud.proteins)))


class Stage(nn.Module):
    r"""Sum up each group: geometric affine map, residual blocks, maximum, residual blocks.

    .. math::
        g_{ij} = \Big(\alpha \odot \frac{f_{ij} - f_i}{\sigma} + \beta, \; f_i\Big),
        \qquad \sigma^2 = \frac{1}{k n d} \sum_{i, j} \lVert f_{ij} - f_i \rVert^2, \qquad
        f'_i = \Phi_\mathrm{after}(\max_j \Phi_\mathrm{before}(g_{ij}))

    with n, the number of groups, and the sum counted over one protein; σ at least 10⁻⁵.

    Args:
        inputs: Channels d of f.
        outputs: Channels of f'.
        generator: Draws the weights.

    Source: Ma et al. (2022), PointMLP, with its geometric affine module.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(inputs))
        self.beta = nn.Parameter(torch.zeros(inputs))
        self.before = nn.Sequential(
            pointwise([2 * inputs, outputs], generator),
            *(Residual(outputs, generator) for _ in range(_BLOCKS)),
        )
        self.after = nn.Sequential(*(Residual(outputs, generator) for _ in range(_BLOCKS)))

    def forward(
        self,
        values: Float[Tensor, "n inputs"],
        anchors: Int[Tensor, " m"],
        members: Int[Tensor, "m k"],
        owner: Int[Tensor, " m"],
        proteins: int,
    ) -> Float[Tensor, "m outputs"]:
        """Compute the features of each group.

        Args:
            values: Features of all points of the level before.
            anchors: Which of them are at the centres of the groups.
            members: Which of them are in each group.
            owner: Which protein each group belongs to.
            proteins: How many there are.
        """
        anchor = rows_of(values, anchors)[:, None].expand(-1, members.shape[1], -1)
        apart = rows_of(values, members) - anchor
        variance = apart.square().mean(dim=(1, 2))[:, None]
        # A protein of one point has no deviation, and the root no slope at 0.
        mean = protein_mean(variance, owner, proteins).clamp_min(_LEAST_DEVIATION**2)
        deviation = rows_of(mean.sqrt(), owner)[:, :, None]
        grouped = torch.cat((self.alpha * apart / deviation + self.beta, anchor), dim=2)
        return self.after(self.before(grouped).amax(dim=1))


class Residual(nn.Module):
    """Add what a network of two layers makes of each row to the row."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = pointwise([channels, channels], generator)
        self.second = drawn_linear(channels, channels, generator)
        self.norm = nn.LayerNorm(channels)

    def forward(self, values: Float[Tensor, "*rows channels"]) -> Float[Tensor, "*rows channels"]:
        """Return rows of the same channels."""
        return functional.relu(values + self.norm(self.second(self.first(values))))
