"""Q-MPNN: messages along the surface, from the chemistry of points to the code of a protein."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.irreps import (
    EquivariantLinear,
    EquivariantNorm,
    by_degree,
    gate_channels,
    gated,
    joined,
)
from undula.nn.messages import Form, MessageGraph, coupling, message_graph, messages
from undula.nn.radial import RadialConfig, RadialNetwork, cosine_cutoff
from undula.surface.backbones.grouping import protein_maximum, protein_mean
from undula.surface.backbones.layers import readout
from undula.surface.clouds import AT_ONCE, RouterCloud, part_of
from undula.surface.geoan import GeoAN, GeoANConfig
from undula.surface.router import RouterOutput


@dataclass(frozen=True, kw_only=True)
class QMPNNConfig:
    """The form of a Q-MPNN.

    Attributes:
        features: Sizes of GeoAN, which gives the chemistry of the points.
        channels: Channels of degree 0, 1, … up to l_max, multiples of 8; (32, 16, 8) is e3nn's
            ``32x0e+16x1o+8x2e``. The paper searches l_max 1 and 2.
        layers: Rounds of messages, L_v.
        radial: Window, basis and network of the radial weights. Its window should be that of
            the cloud: pairs beyond it say nothing.
        normals: Whether the points' own normals enter as a vector; the paper's do not.
        readout: Width of the network from pooled features to the code.
        code: Numbers in the code, φ_P.
        messages: How messages are computed; "auto" takes the fastest for the device.
    """

    features: GeoANConfig = field(default_factory=GeoANConfig)
    channels: Sequence[int] = (32, 16, 8)
    layers: int = 2
    radial: RadialConfig = field(default_factory=RadialConfig)
    normals: bool = True
    readout: int = 64
    code: int = 32
    messages: Form = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if len(self.channels) < 2:
            raise UsageError(
                f"channels of Q-MPNN should name degrees 0 and 1 at least, not {self.channels}"
            )
        if self.messages not in get_args(Form):
            raise UsageError(f"messages of Q-MPNN are {', '.join(get_args(Form))}")
        coupling(tuple(self.channels), len(self.channels) - 1)
        for name in ("layers", "readout", "code"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of Q-MPNN must be at least 1, not {getattr(self, name)}")


class QMPNN(nn.Module):
    r"""Compute codes of proteins, and vectors and higher degrees that turn with them.

    .. math::
        e_{ij} = \mathrm{Linear}\big( (A h_i + B h_j) \otimes_{w(d_{ij})} Y(x_i - x_j) \big),
        \qquad h_i \leftarrow U\Big(h_i, \sum_j e_{ij}\Big)

        h^P = \mathrm{MLP}\big( \overline{h_{i,0}} \oplus \max_i h_{i,0} \big), \qquad
        h^P_l = \overline{h_{i,l}}

    ===========  ========================================
    h_i          a flat row of `undula.nn.irreps`
    d_ij         ``cloud.distances``
    e_ij, U      `Layer`
    h^P          ``RouterOutput.code``
    h^P_l        ``RouterOutput.irreps``
    ===========  ========================================

    The code does not change when a protein is turned, shifted or its points are relabelled;
    the irreps turn with it. Only degrees of parity :math:`(-1)^l` exist, so a mirror image gives
    the mirror image of the irreps and the same code: like every invariant made of such
    features, the code does not see chirality (nor need it, as long as no protein comes with its
    mirror image; a field that is evaluated relative to the irreps is mirrored with them). There
    are 66,864 weights at the default sizes.

    Components of a vector have no largest one that all frames agree on, so degrees above 0 are
    averaged, never maximised. Without normals a centrosymmetric cloud has irreps of odd degree 0.

    Source: MoE-DSR, "Geometric Surface Cloud Network", with the open parts as in Equiformer.
    Differs from it: the mean joins the maximum; normals may enter as vectors; pairs leave
    smoothly at the window; normalised before each layer; the irreps are kept.
    """

    def __init__(self, config: QMPNNConfig, generator: torch.Generator) -> None:
        """Make a network whose weights are drawn from ``generator``, on the CPU in float32."""
        super().__init__()
        self.config = config
        channels = tuple(config.channels)
        known = (config.features.size, 1) if config.normals else (config.features.size,)
        entering = [channels[: len(known)], *[channels] * (config.layers - 1)]
        self.features = GeoAN(config.features, generator)
        self.first = EquivariantLinear(known, entering[0], generator)
        self.layers = nn.ModuleList(Layer(config, inputs, generator) for inputs in entering)
        self.norm = EquivariantNorm(channels)
        self.readout = readout([2 * channels[0], config.readout], config.code, generator)

    def forward(self, cloud: RouterCloud) -> RouterOutput:
        """Compute the code and the irreps of each protein, in full precision under autocast.

        Args:
            cloud: One or several proteins, in the dtype of the weights. What one protein gets
                does not depend on its company.
        """
        with torch.autocast(cloud.points.device.type, enabled=False):
            found = by_degree(self._features(cloud), self.config.channels)
            pooled = [
                protein_mean(part.flatten(1), cloud.owner, cloud.proteins)
                .unflatten(1, part.shape[1:])
                .mT
                for part in found
            ]
            largest = protein_maximum(found[0][:, 0], cloud.owner, cloud.proteins)
            code = self.readout(torch.cat((pooled[0][:, :, 0], largest), dim=1))
            return RouterOutput(code, tuple(pooled[1:]))

    def _features(self, cloud: RouterCloud) -> Float[Tensor, "n width"]:
        """Compute the features of the points; those of one large protein part by part.

        Messages come from so many neighbourhoods as there are layers, so a part with those
        around it gives the same. In training all is needed for the way back.
        """
        if torch.is_grad_enabled() or cloud.proteins > 1 or len(cloud) <= AT_ONCE:
            return self.point_features(cloud)
        features = []
        for rows in torch.arange(len(cloud), device=cloud.points.device).split(AT_ONCE):
            part, place = part_of(cloud, rows, self.config.layers)
            features.append(self.point_features(part)[place])
        return torch.cat(features)

    def point_features(self, cloud: RouterCloud) -> Float[Tensor, "n width"]:
        """Compute the features of the points, h_i after the last layer, as flat rows."""
        graph = message_graph(cloud.points, cloud.pairs, len(self.config.channels) - 1)
        known = self.features(cloud)[:, None, :]
        vectors = cloud.normals[:, :, None] if self.config.normals else None
        features = self.first(joined([known] if vectors is None else [known, vectors]))
        for layer in self.layers:
            features = layer(features, graph, cloud.distances)
        return self.norm(features)


class Layer(nn.Module):
    r"""One round of messages.

    .. math::
        n_i = \mathrm{Norm}(h_i), \qquad
        s_i = \sum_j (A n_i + B n_j) \otimes_{w(d_{ij})} Y(x_i - x_j), \qquad
        r_i = \sum_j c(d_{ij})

        h_i \leftarrow h_i + \mathrm{Gate}\big( W n_i + b + (V s_i + r_i v) / \sqrt{1 + r_i} \big)

    ======  =====================================================
    A, B    ``receiver``, ``sender``: MLP_s and MLP_d of the paper
    w       ``radial``
    W, b    ``own``
    V, v    ``heard``: the linear layer on messages, and its bias
    c       `cosine_cutoff`
    ======  =====================================================

    The linear layer V of the messages comes after their sum, which gives the same numbers. Its
    bias counts as much as the window lets a message through, and r takes the place of the
    number of neighbours: so nothing jumps when a point enters or leaves the window.
    """

    def __init__(
        self, config: QMPNNConfig, inputs: tuple[int, ...], generator: torch.Generator
    ) -> None:
        """Make a layer from channels ``inputs``, the first of those in ``config``, to all."""
        super().__init__()
        channels = tuple(config.channels)
        self.channels, self.window, self.form = channels, config.radial.window, config.messages
        self.paths = coupling(inputs, len(channels) - 1)
        self.norm = EquivariantNorm(inputs)
        self.receiver = EquivariantLinear(inputs, inputs, generator)
        self.sender = EquivariantLinear(inputs, inputs, generator, bias=False)
        self.radial = RadialNetwork(config.radial, self.paths.weights, generator)
        into = gate_channels(channels)
        self.own = EquivariantLinear(
            (*inputs, *[0] * (len(channels) - len(inputs))), into, generator
        )
        self.heard = EquivariantLinear(self.paths.message_channels, into, generator)

    def forward(
        self,
        features: Float[Tensor, "n inputs"],
        graph: MessageGraph,
        distances: Float[Tensor, " pairs"],
    ) -> Float[Tensor, "n width"]:
        """Send messages once.

        Args:
            features: h, flat rows; degrees that are missing at their end count as 0.
            graph: Pairs and directions.
            distances: Quasi-geodesic distance of each pair, Å.
        """
        normed = self.norm(features)
        sums = messages(
            self.receiver(normed),
            self.sender(normed),
            self.radial.weights(distances),
            graph,
            self.paths,
            form=self.form,
        )
        reach = distances.new_zeros(len(features))
        reach = reach.index_add(0, graph.receivers, cosine_cutoff(distances, self.window))
        heard = self.heard(sums, reach) / (1 + reach).sqrt()[:, None]
        update = gated(self.own(normed) + heard, self.channels)
        return functional.pad(features, (0, update.shape[1] - features.shape[1])) + update
