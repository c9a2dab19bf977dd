r"""Solve :math:`dz/d\tau = f(\tau, z)` over one segment, :math:`\tau` from 0 to 1, for any time.

How often f is called depends on the steps alone: it does not matter how many times are asked for,
nor which, because states between the knots come from a polynomial (`Solution.at`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from undula.errors import MachineError, UsageError
from undula.nn.rows import rows_of

State = tuple[Tensor, ...]
"""What moves: tensors with equally many rows, such as scalars and vectors of atoms."""

Flow = Callable[[Tensor, State], State]
"""The right-hand side f: from a time (a tensor without axes) and a state to the state's slope."""


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How to solve over a segment.

    Attributes:
        method: "rk4", steps of one size; or "dopri5", torchdiffeq's steps of whatever size keeps
            the error within the tolerance, to judge the former by.
        steps: How many pieces the curve has; with "rk4" each is one step.
        tolerance: Of "dopri5", relative and absolute.
        checkpoint: Whether only the knots are kept, and what lies in a step is computed once
            more on the way back: memory for one step instead of all. The numbers are the same.
    """

    method: Literal["rk4", "dopri5"] = "rk4"
    steps: int = 20
    tolerance: float = 1e-6
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.method not in _METHODS:
            raise UsageError(f"solver.method is rk4 or dopri5, not {self.method}")
        if self.steps < 1:
            raise UsageError(f"solver.steps must be at least 1, not {self.steps}")
        if not 0 < self.tolerance < 1:
            raise UsageError(f"solver.tolerance must be between 0 and 1, not {self.tolerance}")
        if self.checkpoint and self.method != "rk4":
            raise UsageError('solver.checkpoint serves solver.method "rk4" only')


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """States and slopes at equally spaced knots, and the curve through them.

    Attributes:
        states: z at each knot, the first at the start and the last at the end of the segment.
        slopes: dz/dτ there; by "rk4" the last one is that of the last step's fourth stage, which
            is off by O(h³) and saves an evaluation.
        evaluations: How often the right-hand side was called.
    """

    states: tuple[Float[Tensor, "knots rows ..."], ...]
    slopes: tuple[Float[Tensor, "knots rows ..."], ...]
    evaluations: int

    @property
    def last(self) -> State:
        """The state at the end of the segment."""
        return tuple(one[-1] for one in self.states)

    def at(self, times: Float[Tensor, " times"]) -> State:
        r"""Compute the state at some times, the same ones for all rows.

        .. math::
            z(\tau_k + \theta h) = (1 + 2 \theta) (1 - \theta)^2 z_k
            + \theta^2 (3 - 2 \theta) z_{k+1}
            + h \theta (1 - \theta)^2 \dot z_k - h \theta^2 (1 - \theta) \dot z_{k+1}

        The curve and its slope are continuous. Beside the knots' own error it errs by at most
        :math:`h^4 \max |z''''| / 384`, so that by "rk4" the order is 4 at any time.

        Args:
            times: τ in any order; what lies outside 0 to 1 continues the outer pieces.

        Returns:
            For each part of the state its values, time by time; differentiable by all that made
            the solution, and by the times.

        Source: cubic Hermite interpolation; Hairer, Nørsett, Wanner, "Solving Ordinary
        Differential Equations I", II.6. Differs from it: the last slope, see ``slopes``.
        """
        piece, weights = self._pieces(times)
        return tuple(
            _mixed(states.flatten(1), slopes.flatten(1), piece, piece + 1, weights).reshape(
                (len(times), *states.shape[1:])
            )
            for states, slopes in zip(self.states, self.slopes, strict=True)
        )

    def of(self, rows: Int[Tensor, " n"], times: Float[Tensor, " n"]) -> State:
        """Compute the state of some rows, each at a time of its own; see `at`.

        Args:
            rows: Which rows of the state, such as segments; any order, any of them repeatedly.
            times: τ for each.

        Returns:
            For each part of the state one row for each that was asked for.
        """
        piece, weights = self._pieces(times)
        count = self.states[0].shape[1]
        low = piece * count + rows
        return tuple(
            _mixed(
                states.reshape(states.shape[0] * count, -1),
                slopes.reshape(states.shape[0] * count, -1),
                low,
                low + count,
                weights,
            ).reshape((len(times), *states.shape[2:]))
            for states, slopes in zip(self.states, self.slopes, strict=True)
        )

    def _pieces(self, times: Float[Tensor, " n"]) -> tuple[Int[Tensor, " n"], Float[Tensor, "4 n"]]:
        """Find the piece of each time, and the weights of its ends and of their slopes."""
        steps = len(self.states[0]) - 1
        place = times.to(self.states[0].dtype) * steps
        piece = place.detach().floor().clamp(0, steps - 1)
        part = place - piece
        rest = 1 - part
        weights = torch.stack(
            (
                (1 + 2 * part) * rest.square(),
                part.square() * (3 - 2 * part),
                part * rest.square() / steps,
                -part.square() * rest / steps,
            )
        )
        return piece.long(), weights


def _mixed(
    states: Float[Tensor, "places width"],
    slopes: Float[Tensor, "places width"],
    low: Int[Tensor, " n"],
    high: Int[Tensor, " n"],
    weights: Float[Tensor, "4 n"],
) -> Float[Tensor, "n width"]:
    """Sum what stands at both ends of the pieces, weighted."""
    ends = ((states, low), (states, high), (slopes, low), (slopes, high))
    first, *others = (
        weight[:, None] * rows_of(rows, place)
        for weight, (rows, place) in zip(weights, ends, strict=True)
    )
    return sum(others, first)


def solve(flow: Flow, start: State, config: SolverConfig) -> Solution:
    """Solve a differential equation from τ = 0 to 1.

    All rows are solved together; several segments are one state. Gradients are those of the
    steps that were made (discretise, then optimise), not of an adjoint equation.

    Args:
        flow: f. It should be smooth: the order of the method needs four derivatives.
        start: z at τ = 0.
        config: Method, steps, and what is kept.

    Returns:
        The curve; by "rk4" four evaluations a step. By "dopri5" its knots are within the
        tolerance, and between them it is a cubic as well.

    Raises:
        UsageError: The state has no parts, or parts with different numbers of rows.
        MachineError: The method is "dopri5" and torchdiffeq is not installed.

    Source: DoMiNO solves each level by classical Runge–Kutta of order 4. Differs from it: the
    public code makes a step between any two times asked for; ours is free of these.
    """
    if len({len(part) for part in start}) != 1:
        raise UsageError("a state to solve for needs parts with equal numbers of rows")
    return _METHODS[config.method](flow, start, config)


def _rk4(flow: Flow, start: State, config: SolverConfig) -> Solution:
    """Make steps of one size."""
    width = len(start)
    times = torch.linspace(0, 1, 2 * config.steps + 1, dtype=start[0].dtype, device=start[0].device)
    step = partial(_step, flow, 1 / config.steps)
    if config.checkpoint:
        step = partial(checkpoint, step, use_reentrant=False, preserve_rng_state=False)
    states, slopes = [start], []
    for number in range(config.steps):
        made = step(times[2 * number : 2 * number + 3], *states[-1])
        states.append(made[:width])
        slopes.append(made[width : 2 * width])
    slopes.append(made[2 * width :])
    return _solution(states, slopes, 4 * config.steps)


def _step(flow: Flow, size: float, times: Float[Tensor, " 3"], *state: Tensor) -> State:
    """Make one step; return the parts of the next state, and of the first and fourth slope."""
    begin, middle, end = times
    k1 = flow(begin, state)
    k2 = flow(middle, _moved(state, size / 2, k1))
    k3 = flow(middle, _moved(state, size / 2, k2))
    k4 = flow(end, _moved(state, size, k3))
    reached = state
    for share, slope in ((1 / 6, k1), (1 / 3, k2), (1 / 3, k3), (1 / 6, k4)):
        reached = _moved(reached, size * share, slope)
    return (*reached, *k1, *k4)


def _moved(state: State, size: float, slope: State) -> State:
    """Go along a slope."""
    return tuple(torch.add(z, by, alpha=size) for z, by in zip(state, slope, strict=True))


def _dopri5(flow: Flow, start: State, config: SolverConfig) -> Solution:
    """Let torchdiffeq find the knots, and compute the slopes there."""
    try:
        odeint: Any = import_module("torchdiffeq").odeint
    except ImportError as error:
        raise MachineError(
            'the method "dopri5" of the solver needs torchdiffeq: '
            'python -m pip install "torchdiffeq>=0.2.5"'
        ) from error
    calls = 0

    def counted(time: Tensor, state: State) -> State:
        nonlocal calls
        calls += 1
        return flow(time, state)

    times = torch.linspace(0, 1, config.steps + 1, dtype=start[0].dtype, device=start[0].device)
    found = odeint(
        counted, start, times, rtol=config.tolerance, atol=config.tolerance, method="dopri5"
    )
    states = list(zip(*found, strict=True))
    slopes = [counted(time, state) for time, state in zip(times, states, strict=True)]
    return _solution(states, slopes, calls)


_METHODS: dict[str, Callable[[Flow, State, SolverConfig], Solution]] = {
    "rk4": _rk4,
    "dopri5": _dopri5,
}


def _solution(states: list[State], slopes: list[State], evaluations: int) -> Solution:
    """Stack what was found at the knots, part by part."""
    return Solution(
        states=tuple(torch.stack(one) for one in zip(*states, strict=True)),
        slopes=tuple(torch.stack(one) for one in zip(*slopes, strict=True)),
        evaluations=evaluations,
    )
