r"""Experts: small networks that say how far the surface is from where the first frame's was.

Three kinds, under one interface: rows of features, and of conditions, to rows of answers.

``local``        features of the first frame around the point (`LocalInputs`): does not change when
                 molecule and point are turned, mirrored or shifted together
``contraction``  the protein's irreps contracted with solid harmonics of the point
                 (`ContractionInputs`): the same symmetry, but one code for the whole protein
``paper``        harmonics of the point beside the code (`undula.nn.implicit`): not equivariant
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.harmonics import solid_harmonics
from undula.nn.implicit import ImplicitConfig
from undula.nn.radial_sums import KNOTS
from undula.nn.rows import rows_of
from undula.surface.atoms import CHANNELS
from undula.surface.first_frame import REACH, LocalConfig

_FILTERS = ((1.0, 1.5), (4.0, 3.0))
"""Where the filters of the atoms begin to fall and how fast, knots of the radial splines."""
_LEAST = 0.01
"""A blurred inside is taken to be at least this far from 0 and 1."""
_BUMPS = 8
"""How many Gaussian bumps tell an expert the distance to the first frame's surface."""


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The form of the experts.

    Attributes:
        kind: See the module: "local", "contraction" or "paper".
        width: Numbers in a hidden layer (local and contraction).
        dropout: Share of hidden numbers left out in training (local and contraction).
        channels: How many vectors, rank-2 tensors … of the protein the contraction uses.
        network: The implicit network of a "paper" expert, and of no other.
    """

    kind: Literal["local", "contraction", "paper"] = "local"
    width: int = 32
    dropout: float = 0.1
    channels: int = 8
    network: ImplicitConfig | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("local", "contraction", "paper"):
            raise UsageError(f"there is no expert of kind {self.kind}")
        if (self.kind == "paper") != (self.network is not None):
            raise UsageError("experts.network belongs to experts of kind paper, and only to those")
        if self.width < 1 or self.channels < 1 or not 0 <= self.dropout < 1:
            raise UsageError("experts need a width and channels of at least 1, dropout in [0, 1)")


class FeatureExpert(nn.Module):
    r"""Map features of a point and a condition to a few numbers, at first to zero.

    .. math::
        h_1 = T\big((W_1 \phi + b_1) \odot (1 + A c) + B c\big), \qquad
        h_2 = T(W_2 h_1 + b_2), \qquad W_3 h_2 + b_3, \qquad T(a) = a / (1 + e^{-a})

    Args:
        features: Numbers φ of a point.
        condition: Numbers c of protein and time.
        outputs: Numbers in the answer.
        config: Width and dropout.
        generator: Draws the weights. W_3 and b_3 start at 0.
    """

    def __init__(
        self,
        features: int,
        condition: int,
        outputs: int,
        config: ExpertConfig,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.entry = nn.Linear(features, config.width)
        self.scale = nn.Linear(condition, config.width, bias=False)
        self.shift = nn.Linear(condition, config.width, bias=False)
        self.hidden = nn.Linear(config.width, config.width)
        self.last = nn.Linear(config.width, outputs)
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            for layer in (self.entry, self.hidden, self.shift):
                spread = max(layer.in_features, 1) ** -0.5
                layer.weight.normal_(0, spread, generator=generator)
            for tensor in (self.scale.weight, self.last.weight, self.last.bias):
                tensor.zero_()
            self.entry.bias.zero_()
            self.hidden.bias.zero_()

    def forward(
        self, features: Float[Tensor, "n features"], condition: Float[Tensor, "n condition"]
    ) -> Float[Tensor, "n outputs"]:
        """Answer for each row."""
        entered = self.entry(features) * (1 + self.scale(condition)) + self.shift(condition)
        hidden = self.dropout(functional.silu(entered))
        return self.last(functional.silu(self.hidden(hidden)))


class LocalInputs(nn.Module):
    r"""Turn what a point knows of the first frame into features of order one.

    .. math::
        \frac{\sum_k w_{mk} A_{kc}(x)}{\sum_k w_{mk} A_{k1}(x)} \;(c > 1), \qquad
        \frac{\delta_\sigma(x) - d_0(x)}{\sigma}, \qquad e^{-(d_0 - \mu)^2 / 2 s^2}

    A is `radial_sums`; the filters w ≥ 0 are learned, and start as one that sees the nearest
    atoms and one that sees them all. δ is the `lifts`' blurred distance.
    """

    def __init__(self, config: LocalConfig) -> None:
        super().__init__()
        self.blurs = len(config.blurs)
        self.register_buffer("widths", torch.tensor(config.blurs), persistent=False)
        knots = torch.arange(KNOTS)
        starts = [-functional.relu(knots - begin) / fall for begin, fall in _FILTERS]
        self.filters = nn.Parameter(torch.stack(starts))
        self.size = self.blurs + len(_FILTERS) * len(CHANNELS) + _BUMPS + 1

    widths: Tensor

    def forward(
        self, features: Float[Tensor, "n raw"], distance: Float[Tensor, " n"]
    ) -> Float[Tensor, "n size"]:
        """Return the features of each point.

        Args:
            features: `LocalPoints.features`.
            distance: To the first frame's surface, Å.
        """
        sums = features[:, self.blurs :].unflatten(1, (KNOTS, len(CHANNELS)))
        filtered = torch.einsum("nkc,mk->nmc", sums, self.filters.exp())
        count = filtered[:, :, :1]
        averages = filtered[:, :, 1:] / count.clamp(min=1e-2)
        density = torch.log1p(count[:, :, 0]) / 2
        lifts = self.lifts(features, distance) / self.widths
        return torch.cat([lifts, averages.flatten(1), density, bumps(distance)], dim=1)

    def lifts(
        self, features: Float[Tensor, "n raw"], distance: Float[Tensor, " n"]
    ) -> Float[Tensor, "n blurs"]:
        r"""Return how far each blur lifts the field: the blurred distance less the exact one.

        .. math:: \delta_\sigma(x) = -\sigma \, \Phi^{-1}\big((G_\sigma * 1_{in})(x)\big)

        Φ is the normal distribution function. A plane is blurred into itself, so this is 0 where
        the first frame is flat, above 0 over what sticks out and below 0 over what caves in: an
        expert that adds up lifts is a blurred first frame whose width changes from place to place.

        Args:
            features: `LocalPoints.features`.
            distance: To the first frame's surface, Å.
        """
        inside = features[:, : self.blurs].clamp(_LEAST, 1 - _LEAST)
        return -self.widths * torch.special.ndtri(inside) - distance[:, None]


def bumps(distance: Float[Tensor, " n"]) -> Float[Tensor, "n size"]:
    """Return Gaussian bumps over the distance to the first frame's surface, and the distance."""
    centres = torch.linspace(-REACH, REACH, _BUMPS, dtype=distance.dtype, device=distance.device)
    width = float(centres[1] - centres[0])
    found = torch.exp(-((distance[:, None] - centres) ** 2) / (2 * (0.75 * width) ** 2))
    return torch.cat([found, distance[:, None] / REACH], dim=1)


class ContractionInputs(nn.Module):
    r"""Contract a protein's irreps with solid harmonics of the point.

    .. math::
        s_{lc}(x) = \langle \hat h^P_{lc}, \; |x|^l Y_l(x / |x|) \rangle, \qquad
        \hat h^P_l = M_l \, h^P_l / \mathrm{rms}(h^P_l)

    beside |x|² and the first frame's distance. If molecule and point turn together, irreps and
    harmonics turn alike and nothing changes; a mirror image gives the same numbers, as all
    irreps have parity (−1)^l.

    Args:
        irreps: Channels of degree 1, 2, … of the router.
        channels: How many contractions per degree.
        generator: Draws M.
    """

    def __init__(self, irreps: Sequence[int], channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.mixing = nn.ParameterList(
            nn.Parameter(torch.randn(channels, count, generator=generator) / count**0.5)
            for count in irreps
        )
        self.size = channels * len(self.mixing) + 1 + _BUMPS + 1

    def forward(
        self,
        points: Float[Tensor, "n 3"],
        distance: Float[Tensor, " n"],
        irreps: Sequence[Float[Tensor, "proteins _ _"]],
        owner: Tensor,
    ) -> Float[Tensor, "n size"]:
        """Return the features of each point.

        Args:
            points: From the protein's centroid, in units of its size.
            distance: To the first frame's surface, Å.
            irreps: `RouterOutput.irreps`, in the pose of the points.
            owner: Which protein each point belongs to.
        """
        harmonics = solid_harmonics(points, len(self.mixing))
        parts = []
        for degree, (mixing, pooled) in enumerate(zip(self.mixing, irreps, strict=True), start=1):
            size = pooled.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-6)
            mixed = torch.einsum("dc,pcm->pdm", mixing, pooled / size)
            own = harmonics[:, degree**2 : (degree + 1) ** 2]
            parts.append(
                torch.einsum(
                    "ndm,nm->nd",
                    rows_of(mixed.flatten(1), owner).unflatten(1, mixed.shape[1:]),
                    own,
                )
            )
        square = points.square().sum(dim=1, keepdim=True)
        return torch.cat([*parts, square, bumps(distance)], dim=1)


@dataclass(frozen=True, eq=False)
class PointRows:
    """Points of several frames of several proteins, one row each.

    Attributes:
        frame: Which frame of the batch a row belongs to.
        points: From the centroid of the first frame, in the pose of the router's cloud, Å.
        distance: To the first frame's surface, Å.
        features: `LocalPoints.features`; no columns where the experts do not use them.
    """

    frame: Tensor
    points: Float[Tensor, "n 3"]
    distance: Float[Tensor, " n"]
    features: Float[Tensor, "n raw"]
