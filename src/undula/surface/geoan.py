r"""GeoAN: what a surface point knows of the residues beneath it, as numbers that do not turn.

.. math::
    h_i = \mathrm{MLP}_2\Big(\tfrac1{|Z_i|} \sum_{r \in Z_i}
    \mathrm{MLP}_1\big(e_{t_r} \oplus \tfrac{1}{\max(\lVert x_i - x_r \rVert, 1\,Å)}
    \oplus c_r\big)\Big)

======================  ====================================================
symbol                  variable
======================  ====================================================
:math:`Z_i`             the residues of row i with a finite distance, ζ at most
:math:`e_t`             ``embedding``, φ_R numbers per residue type
:math:`x_i - x_r`       ``cloud.residue_distances`` is its length
:math:`c_r`             1 in the chain of the nearest residue, else 0
:math:`h_i`             the result, φ_s numbers per point
======================  ====================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.surface.clouds import OTHER_RESIDUE, RouterCloud

_CLOSEST = 1.0
"""Å; a closer residue counts as this far."""


@dataclass(frozen=True, kw_only=True)
class GeoANConfig:
    """The sizes of GeoAN.

    Attributes:
        embedding: φ_R, numbers that describe a residue type.
        hidden: Width of the hidden layers, and of the mean over residues.
        size: φ_s, chemical features of a point.
    """

    embedding: int = 32
    hidden: int = 64
    size: int = 32

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden", "size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of GeoAN should be at least 1, not {getattr(self, name)}")


class GeoAN(nn.Module):
    """Compute chemical features of surface points from the residues nearest to them.

    They are the same for a rotated, shifted or mirrored protein, whatever the order in which
    the residues of a point are listed.

    Source: MoE-DSR, "Geometric Surface Cloud Network", after dMaSIF (Sverrisson et al., 2021).
    Differs from it: two layers with SiLU, which the paper leaves open; 1/d is bounded;
    one more input tells residues of another chain apart; residues that are not amino acids have
    a type of their own.
    """

    def __init__(self, config: GeoANConfig, generator: torch.Generator) -> None:
        """Make a network whose weights are drawn from ``generator``, on the CPU in float32."""
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(
            torch.randn(OTHER_RESIDUE + 1, config.embedding, generator=generator)
        )
        self.of_residue = _two_layers(
            config.embedding + 2, config.hidden, config.hidden, generator=generator
        )
        self.of_point = _two_layers(config.hidden, config.hidden, config.size, generator=generator)

    def forward(self, cloud: RouterCloud) -> Float[Tensor, "n size"]:
        """Compute the features.

        Args:
            cloud: Residue types, distances and chains of every point.

        Returns:
            φ_s numbers per point, in the order of the points.
        """
        distance, chain = cloud.residue_distances, cloud.residue_chains
        same = chain == chain.gather(1, distance.argmin(dim=1, keepdim=True))
        beside = torch.stack([1 / distance.clamp(min=_CLOSEST), same.to(distance)], dim=2)
        kinds = functional.embedding(cloud.residue_types, self.embedding)
        residues = self.of_residue(torch.cat([kinds, beside], dim=2))
        there = torch.isfinite(distance).unsqueeze(dim=2).to(residues)
        return self.of_point((residues * there).sum(dim=1) / there.sum(dim=1))


def _two_layers(
    inputs: int, hidden: int, outputs: int, *, generator: torch.Generator
) -> nn.Sequential:
    layers = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(0, math.sqrt(2 / layer.in_features), generator=generator)
            layer.bias.zero_()
    return nn.Sequential(layers[0], nn.SiLU(), layers[1])
