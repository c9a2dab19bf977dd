"""How a network is told the time: features of the lag since the first frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TimeConfig:
    """Features of time.

    Attributes:
        kind: "linear" is the paper's t in [-1, 1] over the training horizon, and grows without
            bound beyond it; "relaxation" saturates, so that far times tend to one shape; "none"
            tells the network no time at all: a control that shows whether time is used.
        scales: How many relaxation times, log-spaced from the shortest lag in training to the
            longest relaxation time (relaxation only).
        longest: The longest relaxation time as a part of the training horizon (relaxation
            only). At 0.2 the features are within 1 % of their end at the horizon, so that a
            forecast beyond it does not drift; at 1 it goes on drifting for a while.
    """

    kind: Literal["linear", "relaxation", "none"] = "relaxation"
    scales: int = 3
    longest: float = 0.2

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "relaxation", "none"):
            raise UsageError(f"time.kind is linear, relaxation or none, not {self.kind}")
        if self.scales < 1:
            raise UsageError(f"time.scales should be at least 1, not {self.scales}")
        if not self.longest > 0:
            raise UsageError(f"time.longest should be positive, not {self.longest}")

    @property
    def size(self) -> int:
        """How many features there are."""
        return {"linear": 1, "relaxation": self.scales, "none": 0}[self.kind]


def time_features(
    config: TimeConfig,
    lag_ps: Float[Tensor, " times"],
    shortest_ps: float,
    horizon_ps: float,
) -> Float[Tensor, "times size"]:
    """Return the configured features of time.

    Args:
        config: Which.
        lag_ps: Time since the first frame, ps.
        shortest_ps: The shortest positive lag in training, ps.
        horizon_ps: The longest, ps.

    Returns:
        ``config.size`` columns; none for the kind "none".
    """
    if config.kind == "none":
        return lag_ps.new_zeros(len(lag_ps), 0)
    if config.kind == "linear":
        return linear_time(lag_ps, horizon_ps)
    longest = max(config.longest * horizon_ps, shortest_ps)
    return relaxation(lag_ps, shortest_ps, longest, config.scales)


def linear_time(lag_ps: Float[Tensor, " times"], horizon_ps: float) -> Float[Tensor, "times 1"]:
    r"""Map lags onto the paper's time domain.

    .. math:: t' = 2 t / T - 1

    Args:
        lag_ps: Time since the first frame t, ps.
        horizon_ps: The largest lag seen in training T, ps.

    Returns:
        From -1 at the first frame to 1 at the horizon, beyond 1 in extrapolation.

    Source: MoE-DSR, preliminaries (time domain [-1, 1]).
    """
    return (2 * lag_ps / horizon_ps - 1)[:, None]


def relaxation(
    lag_ps: Float[Tensor, " times"], shortest_ps: float, longest_ps: float, scales: int
) -> Float[Tensor, "times scales"]:
    r"""Return how far processes of several time constants have gone since the first frame.

    .. math:: \varphi_k(t) = 1 - e^{-t/\tau_k}

    All features are 0 at the first frame and 1 in the far future: an overdamped protein
    forgets its start, so a forecast beyond the training horizon tends to a fixed shape
    instead of running away.

    Args:
        lag_ps: Time since the first frame t, ps.
        shortest_ps: The first time constant, ps.
        longest_ps: The last time constant, ps.
        scales: How many there are, log-spaced.
    """
    exponent = torch.linspace(0, 1, scales, dtype=lag_ps.dtype, device=lag_ps.device)
    constants = shortest_ps * (longest_ps / shortest_ps) ** exponent
    return -torch.expm1(-lag_ps[:, None] / constants)
