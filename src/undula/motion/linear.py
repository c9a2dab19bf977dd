"""The linear forecast in the form the network builds on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.motion.climatology import Climatology
from undula.motion.model import Base
from undula.motion.observation import Usual
from undula.motion.windows import Window


def linear_base(
    windows: Sequence[Window],
    lags: Float[Tensor, " lags"],
    climatology: Climatology,
    usual: Usual,
    kinds: Int[Tensor, " atoms"],
) -> Base:
    """Compute the linear forecast of some windows at some lags, in frames."""
    lags_ps = lags * climatology.frame_ps
    expected = [climatology.expected(window, lags_ps) for window in windows]
    return Base(
        mean=torch.stack([one.mean for one in expected], dim=1),
        spread=torch.stack([one.spread for one in expected], dim=1),
        velocities=torch.stack([one.velocities for one in expected], dim=1),
        speed=usual.speed.to(expected[0].mean)[kinds],
    )
