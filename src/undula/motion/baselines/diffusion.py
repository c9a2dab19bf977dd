r"""A diffusion process and its way back as a differential equation: bare mathematics.

.. math::
    y_k = \alpha_k x + \sigma_k \varepsilon, \qquad
    \alpha_k^2 = \prod_{i \le k} (1 - \beta_i), \qquad
    \alpha_k = \cos \varphi_k, \quad \sigma_k = \sin \varphi_k

x is what is to be drawn, of spread 1; ε is normal; k counts steps of the diffusion, φ is its angle.
A network knows the expected :math:`v = \alpha \varepsilon - \sigma x = \partial y / \partial
\varphi` from y and k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import atan2, cos, exp, expm1, log, sqrt

import numpy as np
from jaxtyping import Float
from torch import Tensor

from undula.errors import UsageError

Turning = Callable[[Tensor, float], Tensor]
"""Tells the expected v from y and the step k."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    r"""How much of x is left after each step of the diffusion.

    Attributes:
        logarithms: :math:`\ln \alpha_k^2` at the steps k = 0, 1, …; falling from 0. Between
            steps it is linear.
    """

    logarithms: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.logarithms) < 2 or self.logarithms[0] != 0:
            raise UsageError("a diffusion has at least one step, and starts with all that is")
        if any(b >= a for a, b in pairwise(self.logarithms)):
            raise UsageError("every step of a diffusion should add noise")

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return len(self.logarithms) - 1

    def alpha(self, step: int | float) -> float:
        """Return α: the share of x."""
        return exp(self._logarithm(step) / 2)

    def sigma(self, step: int | float) -> float:
        """Return σ: the share of the noise."""
        return sqrt(-expm1(self._logarithm(step)))

    def angle(self, step: int | float) -> float:
        """Return φ; 0 at step 0, below π/2."""
        return atan2(self.sigma(step), self.alpha(step))

    def step_at(self, angle: float) -> float:
        """Return the step, in general between whole ones, of an angle."""
        rising = np.asarray(self.logarithms)[::-1]
        return float(np.interp(2 * log(cos(angle)), rising, np.arange(self.steps, -1, -1)))

    def _logarithm(self, step: int | float) -> float:
        return float(np.interp(step, np.arange(self.steps + 1), self.logarithms))


def sigmoid_schedule(steps: int = 1000, first: float = -8.0, last: float = -4.0) -> Schedule:
    r"""Make the schedule whose β are sigmoids of evenly spaced numbers.

    .. math:: \beta_k = \frac{1}{1 + e^{-z_k}}, \quad
        \ln \alpha_k^2 = -\sum_{i \le k} \ln (1 + e^{z_i}), \quad
        z = \text{first}, \ldots, \text{last}

    With the default 1 % of the variance of x is left at the end (α² = 0.0113): it can hardly be
    told from normal noise if x has spread 1 and little mean.

    Source: Schreiner et al., Implicit Transfer Operator Learning (NeurIPS 2023), its public code.
    """
    if steps < 1:
        raise UsageError(f"a diffusion has at least 1 step, not {steps}")
    kept = -np.cumsum(np.logaddexp(0, np.linspace(first, last, steps)))
    return Schedule(logarithms=(0.0, *kept.tolist()))


def probability_flow(
    turning: Turning,
    start: Float[Tensor, "*shape"],
    schedule: Schedule,
    evaluations: int,
) -> Float[Tensor, "*shape"]:
    r"""Bring normal noise to what it stands for, by the flow that keeps all distributions.

    .. math:: \frac{dy}{d\varphi} = v(y, \varphi)

    is solved by the second-order rule of Adams and Bashforth (one evaluation a step, with the
    turning of the step before; the first step is Euler's) from the last step of the diffusion to
    the first, at angles that crowd towards it as powers of 2.5 do; then, with one more
    evaluation, :math:`x = \alpha y - \sigma v`. Where x is normal with spread 1 the spread of
    what is drawn is right to 0.02 %; for spread 0.2 it is 2 % too narrow with 11 evaluations and
    1 % with 25, for spread 0.05 10 and 7 %.

    Args:
        turning: Tells v.
        start: Normal noise.
        schedule: Of the diffusion.
        evaluations: Calls of ``turning``.

    Returns:
        x: the same for the same start.

    Raises:
        UsageError: Fewer than 3 evaluations are allowed.

    Source: Song et al., Score-Based Generative Modeling (ICLR 2021), eq. 13; v and φ after
    Salimans and Ho, Progressive Distillation (ICLR 2022), appendix D.
    """
    if evaluations < 3:
        raise UsageError(f"a sampler needs at least 3 evaluations, not {evaluations}")
    first, last = schedule.angle(1), schedule.angle(schedule.steps)
    angles = first + (last - first) * np.linspace(1, 0, evaluations) ** 2.5
    state, before, ago = start, None, 1.0
    for a, b in pairwise(angles.tolist()):
        width, turned = b - a, turning(state, schedule.step_at(a))
        change = turned - (turned if before is None else before)
        state = state + width * (turned + width / ago / 2 * change)
        before, ago = turned, width
    return schedule.alpha(1) * state - schedule.sigma(1) * turning(state, 1.0)
