r"""The decoder: states of the levels at a time to positions, velocities and how sure they are.

.. math::
    \alpha = \operatorname{softmax}_l a(s_l, \lVert \mathbf{v}_l \rVert, t), \qquad
    \hat r(t) = \bar r(t) + \sigma(t) \sum_l \alpha_l D(s_l, \mathbf{v}_l), \qquad
    \hat\sigma(t) = \sigma(t) \, e^{\sum_l \alpha_l h(s_l)}

where :math:`\bar r` and σ are the best linear forecast and the spread around it
(`undula.motion.climatology`). D and h start at 0, so that an untrained model is that forecast:
whatever it learns is what the linear one does not know. Weights come from what does not turn,
vectors are only scaled and added, so a turned window gives the turned forecast.

Source: attention over levels as in the DoMiNO slides; base and scale are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from undula.errors import UsageError
from undula.motion.levels import AGES
from undula.nn.gated import Gated

LARGEST = 3.0
"""The logarithm of a spread differs from the linear forecast's by at most this."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """How the levels become one forecast.

    Attributes:
        fusion: "attention" weighs the levels at each time and atom, "concat" decodes all of
            them side by side, as the public code does.
        spread: Whether the spread is learned; if not it is that of the linear forecast.
    """

    fusion: Literal["attention", "concat"] = "attention"
    spread: bool = True

    def __post_init__(self) -> None:
        if self.fusion not in ("attention", "concat"):
            raise UsageError(f'decoder.fusion must be "attention" or "concat", not {self.fusion}')


@dataclass(frozen=True, kw_only=True, eq=False)
class Deviation:
    """What a forecast differs by from the linear one, in units of its spread.

    Attributes:
        positions: Of the positions.
        velocities: Of the velocities.
        spread: The logarithm of the factor of the spread.
        parts: What each level adds to ``positions``, coarse to fine.
    """

    positions: Float[Tensor, "times windows atoms 3"]
    velocities: Float[Tensor, "times windows atoms 3"]
    spread: Float[Tensor, "times windows atoms"]
    parts: Float[Tensor, "levels times windows atoms 3"]


class FusionDecoder(nn.Module):
    """Decode the coarsest few levels, one decoder for every number of them.

    Args:
        config: Its form.
        levels: How many levels there are at most.
        features: Channels of a state.
        generator: Draws the weights; what comes out is 0 at the start.
    """

    def __init__(
        self, config: DecoderConfig, levels: int, features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config, self.levels = config, levels
        outputs = 2 if config.fusion == "attention" else 1
        self.read = nn.ModuleList()
        for level in range(levels):
            seen = features if config.fusion == "attention" else (level + 1) * features
            self.read.append(Gated(seen + AGES, seen, outputs, 2, features, generator, gain=0.0))

    def forward(
        self,
        states: list[tuple[Tensor, Tensor]],
        when: Float[Tensor, "times ages"],
    ) -> Deviation:
        """Decode states of levels 0 to l at some times, scalars and vectors of each level."""
        shape = states[0][0].shape[:3]
        told = when[:, None, None].expand(*shape, AGES)
        if self.config.fusion == "concat":
            scalars = torch.cat([s for s, _ in states] + [told], dim=-1)
            vectors = torch.cat([v for _, v in states], dim=-1)
            spread, moved = self.read[len(states) - 1](scalars, vectors)
            parts, spread = moved[None], spread[..., 0]
        else:
            read = [
                self.read[level](torch.cat([s, told], dim=-1), v)
                for level, (s, v) in enumerate(states)
            ]
            weight = torch.stack([s[..., 1] for s, _ in read]).softmax(dim=0)
            parts = torch.stack([v for _, v in read]) * weight[..., None, None]
            spread = (torch.stack([s[..., 0] for s, _ in read]) * weight).sum(dim=0)
        positions, velocities = parts.sum(dim=0).unbind(dim=-1)
        spread = LARGEST * torch.tanh(spread / LARGEST)
        if not self.config.spread:
            spread = torch.zeros_like(spread)
        return Deviation(
            positions=positions, velocities=velocities, spread=spread, parts=parts[..., 0]
        )
