"""PointNet++: nested balls of points, each summed up by its largest features."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undula.errors import UsageError
from undula.nn.rows import rows_of
from undula.surface.backbones.grouping import Level, ball_members, levels, protein_maximum
from undula.surface.backbones.layers import BackboneConfig, pointwise, readout
from undula.surface.clouds import RouterCloud
from undula.surface.router import RouterOutput

_FIRST, _SECOND, _WHOLE, _READOUT = (64, 64, 128), (128, 128, 256), (256, 512, 1024), (512, 256)


@dataclass(frozen=True, kw_only=True)
class PointNet2Config(BackboneConfig):
    """The form of a PointNet++.

    Attributes:
        centres: How many balls of each protein, at most, on the first and second level.
        radii: Of the balls, Å. The published 0.2 and 0.4 of the unit sphere are 4 and 8 Å for a
            protein; 5 and 10 Å hold about 20 points of a cloud of 2 Å spacing, as they do there.
        members: How many points of a ball are used, the nearest.
    """

    centres: tuple[int, int] = (512, 128)
    radii: tuple[float, float] = (5.0, 10.0)
    members: tuple[int, int] = (32, 64)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("centres", "radii", "members"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 2 or not all(0 < value < inf for value in values):
                raise UsageError(f"{name} of PointNet++ are two positive numbers, not {values}")
        if self.centres[0] < self.centres[1]:
            raise UsageError(f"centres of PointNet++ cannot grow, as {self.centres} do")


class PointNet2(nn.Module):
    r"""Compute a protein's code by set abstraction, on two levels and then over the whole.

    .. math:: f'_c = \max_{i \in B(c)} \mathrm{MLP}(x_i - x_c, f_i)

    Features of a point are its chemistry and its normal. Channels of the three shared networks
    64–64–128, 128–128–256 and 256–512–1024, of the readout 512–256, times ``width``: 1.5
    million parameters at width 1, without those of ``features``. Not invariant when the protein
    is turned.

    Args:
        config: Sizes and choices.
        features: Called with a cloud, gives the chemistry of its points (GeoAN).
        in_features: How many numbers that is, φ_s.
        generator: Draws the weights, on the CPU.

    Source: Qi et al. (2017), PointNet++, classification with single-scale grouping. Differs from
    it: the nearest points of a ball instead of the first found, a fixed unit of length, LayerNorm
    for BatchNorm, no dropout, a code in place of classes.
    """

    def __init__(
        self,
        config: PointNet2Config,
        features: nn.Module,
        in_features: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config = config
        self.features = features
        first, second, whole, out = (
            [config.channels(size) for size in sizes]
            for sizes in (_FIRST, _SECOND, _WHOLE, _READOUT)
        )
        self.first = pointwise([in_features + 6, *first], generator)
        self.second = pointwise([first[-1] + 3, *second], generator)
        self.whole = pointwise([second[-1] + 3, *whole], generator)
        self.readout = readout([whole[-1], *out], config.code, generator)

    def forward(self, cloud: RouterCloud) -> RouterOutput:
        """Return one code per protein of the cloud."""
        counts = torch.bincount(cloud.owner, minlength=cloud.proteins).tolist()
        sizes = [[min(most, count) for count in counts] for most in self.config.centres]
        whole, many, few = levels(cloud, sizes)
        values = torch.cat((self.features(cloud), cloud.normals), dim=1)
        (near, far), (some, more) = self.config.radii, self.config.members
        values = _abstracted(self.first, values, many, whole, ball_members(many, whole, near, some))
        values = _abstracted(self.second, values, few, many, ball_members(few, many, far, more))
        values = self.whole(torch.cat((few.points, values), dim=1))
        return RouterOutput(self.readout(protein_maximum(values, few.owner, cloud.proteins)))


def _abstracted(
    network: nn.Module,
    values: Float[Tensor, "n channels"],
    centres: Level,
    level: Level,
    members: Int[Tensor, "m count"],
) -> Float[Tensor, "m _"]:
    """Return the largest features of the members of each ball."""
    apart = level.points[members] - centres.points[:, None]
    return network(torch.cat((apart, rows_of(values, members)), dim=2)).amax(dim=1)
