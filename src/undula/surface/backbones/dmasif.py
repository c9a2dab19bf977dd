"""dMaSIF: convolution along the surface, in a frame of each point that the network turns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.rows import rows_of
from undula.surface.backbones.grouping import protein_maximum, protein_mean
from undula.surface.backbones.layers import BackboneConfig, drawn_linear, readout
from undula.surface.clouds import RouterCloud
from undula.surface.router import RouterOutput

CURVATURE_SCALES = (1.0, 2.0, 3.0, 5.0, 10.0)
"""Widths of the windows in which the surface's curvatures are estimated, Å."""

_CHANNELS, _READOUT = 16, 64
_CUTS = 8
_GROUPS = 4
_SLOPE = 0.2


@dataclass(frozen=True, kw_only=True)
class DMaSIFConfig(BackboneConfig):
    """The form of a dMaSIF.

    Attributes:
        layers: Convolutions, one after the other.
        radius: Width r of the Gaussian window, Å. dMaSIF's 9 to 12 Å reach over all points of
            the surface; the pairs of a router cloud end at its own window (9 Å) at the latest.
    """

    layers: int = 3
    radius: float = 4.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers < 1:
            raise UsageError(f"layers of dMaSIF must be at least 1, not {self.layers}")
        if not (isfinite(self.radius) and self.radius > 0):
            raise UsageError(f"radius of dMaSIF must be positive, not {self.radius}")


class DMaSIF(nn.Module):
    """Compute a protein's code by quasi-geodesic convolutions.

    Features of a point are its chemistry and ten curvatures; 16 channels times ``width`` in
    three convolutions; mean and maximum over points; readout 64. 12,300 parameters at width 1,
    without those of ``features``. Invariant when the protein is turned or shifted; a mirror
    image has another code, since the frames are right-handed.

    Args:
        config: Sizes and choices.
        features: Called with a cloud, gives the chemistry of its points (GeoAN).
        in_features: How many numbers that is, φ_s.
        generator: Draws the weights, on the CPU.

    Source: Sverrisson et al. (2021), dMaSIF. Differs from it: chemistry from residues (GeoAN, as
    in MoE-DSR); sums run over the cloud's pairs and the point itself, not over all points, with
    the cloud's quasi-geodesic distances; pooled to one code, where dMaSIF keeps points.
    """

    def __init__(
        self,
        config: DMaSIFConfig,
        features: nn.Module,
        in_features: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        channels = config.channels(_CHANNELS)
        inputs = in_features + 2 * len(CURVATURE_SCALES)
        self.score = nn.Sequential(
            drawn_linear(inputs, channels, generator),
            nn.LeakyReLU(_SLOPE),
            drawn_linear(channels, 1, generator),
        )
        sizes = [inputs, *[channels] * config.layers]
        self.layers = nn.ModuleList(Layer(*pair, generator) for pair in pairwise(sizes))
        hidden = config.channels(_READOUT)
        self.readout = readout([2 * channels, hidden], config.code, generator)

    def forward(self, cloud: RouterCloud) -> RouterOutput:
        """Return one code per protein of the cloud; under autocast in full precision."""
        with torch.autocast(cloud.points.device.type, enabled=False):
            own = torch.arange(len(cloud.points), device=cloud.points.device)
            pairs = torch.cat((cloud.pairs, own.expand(2, -1)), dim=1)
            distances = torch.cat((cloud.distances, cloud.distances.new_zeros(len(own))))
            shape = curvatures(cloud.points, cloud.normals, pairs, distances)
            values = torch.cat((self.features(cloud), shape), dim=1)
            window = torch.exp(-(distances**2) / (2 * self.config.radius**2))
            apart = cloud.points[pairs[1]] - cloud.points[pairs[0]]
            frames = steered_frames(cloud.normals, apart, window, self.score(values), pairs)
            frames = rows_of(frames.flatten(1), pairs[0]).unflatten(1, (3, 3))
            places = torch.einsum("pax,px->pa", frames, apart)
            places = places / (sqrt(2) * self.config.radius)
            for layer in self.layers:
                values = layer(values, places, window, pairs, cloud.owner, cloud.proteins)
            pooled = [
                pool(values, cloud.owner, cloud.proteins)
                for pool in (protein_mean, protein_maximum)
            ]
            return RouterOutput(self.readout(torch.cat(pooled, dim=1)))


class Layer(nn.Module):
    r"""Convolve features along the surface and add them to themselves.

    .. math::
        f'_i = W f_i + \mathrm{MLP}\Big(\mathrm{MLP}_\mathrm{out}\Big(\sum_j w_{ij} \,
        \mathrm{filter}(p_{ij}) \odot \mathrm{MLP}_\mathrm{in}(f_j)\Big)\Big)

    ==================  ========================================================
    w                   ``window``, exp(−d² / 2 r²)
    p                   ``places``, x_j − x_i in the frame of i over √2 r
    filter              3 → 8 → channels, ReLU after both
    ==================  ========================================================

    Args:
        inputs: Channels of f.
        outputs: Channels of f'.
        generator: Draws the weights.

    Source: Sverrisson et al. (2021), dMaSIF, and its code.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.entering = _leaky(inputs, outputs, generator)
        self.entering_norm = ProteinNorm(outputs)
        self.filter = nn.Sequential(
            drawn_linear(3, _CUTS, generator),
            nn.ReLU(),
            drawn_linear(_CUTS, outputs, generator),
            nn.ReLU(),
        )
        self.leaving = _leaky(outputs, outputs, generator)
        self.leaving_norm = ProteinNorm(outputs)
        self.after = nn.Sequential(
            drawn_linear(outputs, outputs, generator),
            nn.ReLU(),
            drawn_linear(outputs, outputs, generator),
        )
        self.past = drawn_linear(inputs, outputs, generator)

    def forward(
        self,
        values: Float[Tensor, "n inputs"],
        places: Float[Tensor, "pairs 3"],
        window: Float[Tensor, " pairs"],
        pairs: Int[Tensor, "2 pairs"],
        owner: Int[Tensor, " n"],
        proteins: int,
    ) -> Float[Tensor, "n outputs"]:
        """Compute new features of the same points.

        Args:
            values: Features of the points.
            places: Where the sender of each pair is in the frame of the receiver.
            window: Weight of each pair.
            pairs: Receiver i and sender j.
            owner: Which protein each point belongs to.
            proteins: How many there are.
        """
        receiver, sender = pairs
        entering = self.entering_norm(self.entering(values), owner, proteins)
        messages = window[:, None] * self.filter(places) * rows_of(entering, sender)
        summed = torch.zeros_like(entering).index_add(0, receiver, messages)
        leaving = self.leaving_norm(self.leaving(summed), owner, proteins)
        return self.past(values) + self.after(leaving)


class ProteinNorm(nn.Module):
    r"""Bring groups of channels to mean 0 and variance 1 over all points of a protein.

    Source: Wu and He (2018), GroupNorm, four groups, with each protein as one sample.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, values: Float[Tensor, "n channels"], owner: Int[Tensor, " n"], proteins: int
    ) -> Float[Tensor, "n channels"]:
        """Return the normalised features times a weight plus a bias, each learned per channel."""
        grouped = values.unflatten(1, (_GROUPS, -1))
        mean = protein_mean(grouped.mean(dim=2), owner, proteins)
        centred = grouped - rows_of(mean, owner)[:, :, None]
        variance = protein_mean(centred.square().mean(dim=2), owner, proteins)
        normal = centred / (rows_of(variance, owner)[:, :, None] + 1e-5).sqrt()
        return normal.flatten(1) * self.weight + self.bias


def steered_frames(
    normals: Float[Tensor, "n 3"],
    apart: Float[Tensor, "pairs 3"],
    window: Float[Tensor, " pairs"],
    score: Float[Tensor, "n 1"],
    pairs: Int[Tensor, "2 pairs"],
) -> Float[Tensor, "n 3 3"]:
    r"""Compute a right-handed frame of each point, turned towards where a score is high.

    .. math:: u_i \propto (1 - n_i n_i^T) \sum_j w_{ij} \, s_j \, (x_j - x_i), \qquad
        v_i = n_i \times u_i

    Args:
        normals: n, of length one.
        apart: x_j − x_i of each pair.
        window: w of each pair.
        score: s, learned.
        pairs: Receiver i and sender j.

    Returns:
        Rows n, u, v. Where the sum vanishes, as for a lone point, u and v are 0: any other
        choice would depend on the axes.

    Source: Sverrisson et al. (2021), dMaSIF. Differs from it: no first tangents that are then
    turned.
    """
    receiver, sender = pairs
    pull = window[:, None] * rows_of(score, sender) * apart
    total = torch.zeros_like(normals).index_add(0, receiver, pull)
    along = (total * normals).sum(dim=1, keepdim=True) * normals
    u = functional.normalize(total - along, dim=1, eps=1e-6)
    return torch.stack((normals, u, torch.linalg.cross(normals, u)), dim=1)


@torch.no_grad()
def curvatures(
    points: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"],
    pairs: Int[Tensor, "2 pairs"],
    distances: Float[Tensor, " pairs"],
) -> Float[Tensor, "n 10"]:
    r"""Estimate the mean and Gaussian curvature at each point, at five scales.

    .. math::
        S_i = \Big(\epsilon + \sum_j w_{ij} P_{ij} P_{ij}^T\Big)^{-1} \sum_j w_{ij} P_{ij}
        Q_{ij}^T, \qquad H_i = \mathrm{tr} S_i, \qquad K_i = \det S_i

    with P and Q the parts of x_j − x_i and n_j − n_i along the surface, and the normals smoothed
    by the same window w = exp(−d² / 2 s²).

    Args:
        points: On the surface, Å.
        normals: Outward, of length one.
        pairs: Receiver i and sender j, each point with itself among them.
        distances: Along the surface, Å.

    Returns:
        H in 1/Å (the sum of both principal curvatures, 2/R on a sphere) and K in 1/Å², for each
        of `CURVATURE_SCALES` in turn, each cut to −1 to 1; 0 for a lone point.

    Source: Sverrisson et al. (2021), dMaSIF, and its code (ε = 0.01 Å²). Differs from it:
    computed without tangents, and with the pairs at hand, which the wide windows outgrow.
    """
    receiver, sender = pairs
    apart = points[sender] - points[receiver]
    found = []
    for scale in CURVATURE_SCALES:
        window = torch.exp(-(distances**2) / (2 * scale**2))[:, None]
        total = torch.zeros_like(normals).index_add(0, receiver, window * normals[sender])
        smooth = functional.normalize(total, dim=1)
        across = smooth[:, :, None] * smooth[:, None]
        along = torch.eye(3).to(points) - across
        p = torch.einsum("pxy,py->px", along[receiver], apart)
        turned = smooth[sender] - smooth[receiver]
        q = torch.einsum("pxy,py->px", along[receiver], turned)
        products = (window * p)[:, :, None] * torch.stack((p, q), dim=1).flatten(1)[:, None]
        moments = points.new_zeros(len(points), 3, 6).index_add(0, receiver, products)
        inverted = torch.linalg.solve(moments[:, :, :3] + 0.01 * along + across, moments[:, :, 3:])
        trace = inverted.diagonal(dim1=1, dim2=2).sum(dim=1)
        squared = (inverted * inverted.mT).sum(dim=(1, 2))
        found += [trace, (trace**2 - squared) / 2]
    return torch.stack(found, dim=1).clamp(-1, 1)


def _leaky(inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    return nn.Sequential(
        drawn_linear(inputs, outputs, generator),
        nn.LeakyReLU(_SLOPE),
        drawn_linear(outputs, outputs, generator),
        nn.LeakyReLU(_SLOPE),
    )
