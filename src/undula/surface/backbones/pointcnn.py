"""PointCNN: convolution over neighbours that a learned matrix has put in order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.nn.rows import rows_of
from undula.surface.backbones.grouping import levels, nearest_members, protein_mean
from undula.surface.backbones.layers import (
    BackboneConfig,
    drawn_linear,
    drawn_uniform,
    pointwise,
    readout,
)
from undula.surface.clouds import RouterCloud
from undula.surface.router import RouterOutput

_LAYERS = ((8, 1, 0, 48), (12, 2, 384, 96), (16, 2, 128, 192), (16, 3, 128, 384))
"""Neighbours K, dilation D, representative points P (0: all) and channels C of each X-Conv."""
_READOUT = (384, 192)


@dataclass(frozen=True, kw_only=True)
class PointCNNConfig(BackboneConfig):
    """The form of a PointCNN: its code's size and its width."""


class PointCNN(nn.Module):
    """Compute a protein's code by four X-convolutions.

    K = 8, 12, 16, 16 neighbours with dilation 1, 2, 2, 3, around all, 384, 128 and 128 points of
    each protein, 48, 96, 192 and 384 channels times ``width``; the last sees the places of its
    points too; mean over points; readout 384–192. Features of a point are its chemistry and its
    normal. 0.6 million parameters at width 1, without those of ``features``. Not invariant when
    the protein is turned.

    Args:
        config: Sizes.
        features: Called with a cloud, gives the chemistry of its points (GeoAN).
        in_features: How many numbers that is, φ_s.
        generator: Draws the weights, on the CPU.

    Source: Li et al. (2018), PointCNN, its classification network for ModelNet40. Differs from
    it: farthest instead of random points, neighbours in order of distance (what the matrix
    learns then does not depend on the order of the points), mean over features rather than over
    the points' classes, LayerNorm for BatchNorm, no dropout.
    """

    def __init__(
        self,
        config: PointCNNConfig,
        features: nn.Module,
        in_features: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        channels = [config.channels(layer[3]) for layer in _LAYERS]
        inputs = [in_features + 3, *channels[:-1]]
        lifted = [channels[0] // 2, *(before // 4 for before in channels[:-1])]
        self.convolutions = nn.ModuleList(
            XConv(layer[0], before, lift, after, generator)
            for layer, before, lift, after in zip(_LAYERS, inputs, lifted, channels, strict=True)
        )
        place = channels[-1] // 4
        self.place = pointwise([3, place, place], generator, nn.ELU)
        out = [config.channels(size) for size in _READOUT]
        self.readout = readout([channels[-1] + place, *out], config.code, generator)

    def forward(self, cloud: RouterCloud) -> RouterOutput:
        """Return one code per protein of the cloud."""
        counts = torch.bincount(cloud.owner, minlength=cloud.proteins).tolist()
        kept = [[min(most, count) for count in counts] for _, _, most, _ in _LAYERS[1:]]
        whole, *thinned = levels(cloud, kept)
        values = torch.cat((self.features(cloud), cloud.normals), dim=1)
        level = whole
        for convolution, layer, centres in zip(
            self.convolutions, _LAYERS, (whole, *thinned), strict=True
        ):
            neighbours, dilation = layer[:2]
            members = nearest_members(centres, level, neighbours * dilation)[:, ::dilation]
            apart = level.points[members] - centres.points[:, None]
            values = convolution(apart, values, members)
            level = centres
        values = torch.cat((values, self.place(level.points)), dim=1)
        return RouterOutput(self.readout(protein_mean(values, level.owner, cloud.proteins)))


class XConv(nn.Module):
    r"""Convolve over K neighbours after a learned transformation of their order.

    .. math::
        X = \mathrm{MLP}(x_1 - p, \dots, x_K - p) \in \mathbb{R}^{K \times K}, \qquad
        f_p = \mathrm{Conv}(K, X \, [\mathrm{MLP}_\delta(x_k - p), f_k]_k)

    The convolution is separable: over neighbours for each channel, then over channels.

    Args:
        neighbours: K.
        inputs: Channels of f_k.
        lift: Channels of MLP_δ.
        outputs: Channels of f_p.
        generator: Draws the weights.

    Source: Li et al. (2018), algorithm 1.
    """

    def __init__(
        self, neighbours: int, inputs: int, lift: int, outputs: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        count = neighbours
        self.lifting = pointwise([3, lift, lift], generator, nn.ELU)
        self.start = pointwise([3 * count, count * count], generator, nn.ELU)
        self.middle = nn.Parameter(torch.empty(count, count, count))
        self.middle_norm = nn.LayerNorm(count * count)
        self.end = nn.Parameter(torch.empty(count, count, count))
        multiple = math.ceil(outputs / (lift + inputs))
        self.depthwise = nn.Parameter(torch.empty(count, lift + inputs, multiple))
        for kernel in (self.middle, self.end, self.depthwise):
            drawn_uniform(kernel, count, generator)
        self.across = drawn_linear((lift + inputs) * multiple, outputs, generator)
        self.norm = nn.LayerNorm(outputs)

    def forward(
        self,
        apart: Float[Tensor, "m k 3"],
        values: Float[Tensor, "n inputs"],
        members: Int[Tensor, "m k"],
    ) -> Float[Tensor, "m outputs"]:
        """Compute the features of each centre from those of its neighbours.

        Args:
            apart: Where the neighbours are, from the centre.
            values: Features of all points of the level before.
            members: Which of them are the neighbours, nearest first.
        """
        square = (*members.shape, members.shape[1])
        lifted = torch.cat((self.lifting(apart), rows_of(values, members)), dim=2)
        matrix = self.start(apart.flatten(1)).reshape(square)
        matrix = torch.einsum("mkc,kco->mco", matrix, self.middle).flatten(1)
        matrix = self.middle_norm(functional.elu(matrix)).reshape(square)
        matrix = torch.einsum("mkc,kco->mco", matrix, self.end)
        gathered = torch.einsum("mkc,kco->mco", matrix @ lifted, self.depthwise).flatten(1)
        return functional.elu(self.norm(self.across(gathered)))
