"""The evidence lower bound: how well positions and velocities are foretold, level by level."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from undula.errors import UsageError
from undula.motion.model import Base, Outcome, Prediction


@dataclass(frozen=True, kw_only=True)
class MotionLossConfig:
    """Weights of the loss.

    Attributes:
        levels: Weight of the forecast decoded at each level, coarse to fine; 1 for levels
            beyond the end of the list.
        stage_steps: Steps after which the next finer level joins, coarse to fine; 0 for all
            levels from the first step on.
        velocities: Weight of the velocities.
        divergence: β of the divergence from the prior, once warmed up.
        warmup_steps: Steps over which β rises from 0.
    """

    levels: tuple[float, ...] = (0.1, 0.2, 0.7)
    stage_steps: int = 0
    velocities: float = 0.1
    divergence: float = 1.0
    warmup_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("stage_steps", "velocities", "divergence", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"loss.{name} must be at least 0, not {getattr(self, name)}")
        if not self.levels or min(self.levels) < 0:
            raise UsageError(f"loss.levels must be at least 0, not {list(self.levels)}")

    def weights(self, levels: int, step: int) -> list[float]:
        """Return the weight of each level at a step; they sum to 1.

        Levels that have not joined count 0, and the finest of those that have stands in for the
        finest of all; one level alone has the weight 1.
        """
        joined = levels if not self.stage_steps else min(levels, 1 + step // self.stage_steps)
        known = [*self.levels, *[1.0] * levels]
        weights = [known[level] if level < joined else 0.0 for level in range(levels)]
        if joined < levels or sum(weights) == 0:
            weights[joined - 1] = known[levels - 1] or 1.0
        return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What came after some windows.

    Attributes:
        positions: Unwrapped, Å.
        known: Whether a window reaches that far.
        velocities: Å/ps.
        velocities_known: Whether a time has velocities.
    """

    positions: Float[Tensor, "times windows atoms 3"]
    known: Bool[Tensor, "times windows"]
    velocities: Float[Tensor, "times windows atoms 3"]
    velocities_known: Bool[Tensor, "times windows"]


def surprise(prediction: Prediction, base: Base, truth: Truth) -> Float[Tensor, "times windows"]:
    r"""Compute how improbable the true positions are, in nats per coordinate.

    .. math:: \tfrac12 \Big(\frac{r - \hat r}{\hat\sigma}\Big)^2 + \ln \frac{\hat\sigma}{\sigma}

    without the constants, in units of the linear forecast's spread σ: its own value is about ½ at
    every lag, so that all lags count alike. Positions are unwrapped, so the difference is that of
    the way an atom went; wrapped into a box, right forecasts would look wrong.
    """
    error = (truth.positions - prediction.mean) / prediction.spread[..., None]
    wider = (prediction.spread / base.spread)[..., None].log()
    return (error.square() / 2 + wider).mean(dim=(-1, -2))


def motion_loss(
    outcome: Outcome, base: Base, truth: Truth, config: MotionLossConfig, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Compute the negative evidence lower bound per coordinate.

    .. math::
        \sum_l w_l \Big[ -\ln p(r \mid z)_l + \lambda \,
        \tfrac12 \big\lVert (v - \hat v_l) / u \big\rVert^2 \Big]
        + \beta \frac{\mathrm{KL}(q \,\Vert\, \mathcal{N}(0, 1))}{3 T}

    Args:
        outcome: Of the model, its state drawn.
        base: The linear forecast at the same times.
        truth: What came.
        config: w, λ, β.
        step: Of the training.

    Returns:
        The loss, and its parts by name.

    Source: Huang et al., LG-ODE (NeurIPS 2020), eq. 9; supervision of every level as in the
    public code of DoMiNO. Differs from it: the spread is learned and not fixed at 0.01, β rises
    over the steps of the whole training (there it is never above 0).
    """
    parts: dict[str, Tensor] = {}
    total = base.mean.new_zeros(())
    known = truth.known.to(base.mean)
    moving = truth.velocities_known.to(base.mean)
    weights = config.weights(len(outcome.predictions), step)
    for level, (prediction, weight) in enumerate(zip(outcome.predictions, weights, strict=True)):
        if weight == 0:
            continue
        improbable = surprise(prediction, base, truth)
        positions = (improbable * known).sum() / known.sum().clamp(min=1)
        error = (truth.velocities - prediction.velocities) / base.speed[:, None]
        squares = error.square().mean(dim=(-1, -2)) / 2
        velocities = (squares * moving).sum() / moving.sum().clamp(min=1)
        parts[f"positions_{level}"] = positions
        parts[f"velocities_{level}"] = velocities
        total = total + weight * (positions + config.velocities * velocities)
    rise = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    divergence = outcome.posterior.divergence() / (3 * len(truth.positions))
    parts["divergence"] = divergence
    return total + rise * config.divergence * divergence, parts
