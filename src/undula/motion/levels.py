r"""The levels: graph ODEs over segments that grow shorter, each started by the one above.

A segment of level l obeys

.. math::
    \frac{d(s, \mathbf{v})}{d\tau} = f_l(\tau, s, \mathbf{v}; \text{graph}), \qquad
    (s, \mathbf{v})_{\tau = 0} = T_l\big[(s, \mathbf{v})_0, \ldots, (s, \mathbf{v})_{l-1}\big]

with τ from 0 to 1, the graph of the atoms where they are expected at its start, and T a gated
layer on the states of all coarser levels at that time. All segments of a level are solved
together, or in chunks of a few, because on a CPU large tensors are slow.

Which segments are solved is decided by the times that are asked for: one time costs one segment
of each level. A state at a time does not depend on what other times are asked for.

Source: the DoMiNO slides, "down-scaling". Differs from the public code: evaluations follow the
steps of the solver and not the output times, filters and neighbours are computed once a segment,
τ is known to f, and graphs are periodic.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log1p

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undula.errors import UsageError
from undula.motion.encoder import EncoderConfig, backbone
from undula.nn.atom_graph import AtomGraph
from undula.nn.gated import Gated, linear
from undula.nn.ode.solve import Solution, SolverConfig, solve

AGES = 8
"""Numbers that say how far ahead a time lies."""


@dataclass(frozen=True, kw_only=True)
class LevelsConfig:
    """The hierarchy of graph ODEs.

    Attributes:
        horizon: How far a forecast reaches, frames.
        strides: Frames between the knots of each level, coarse to fine; each divides the one
            before it, and the first the horizon.
        layers: Exchanges with the neighbours in one evaluation.
        solver: How a segment is solved.
        segment_chunk: Segments solved at once; None for all, which suits a GPU.
    """

    horizon: int = 8000
    strides: tuple[int, ...] = (400, 20, 1)
    layers: int = 1
    solver: SolverConfig = field(default_factory=lambda: SolverConfig(steps=5))
    segment_chunk: int | None = 4

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise UsageError(f"levels.horizon must be at least 1, not {self.horizon}")
        if not self.strides or min(self.strides) < 1:
            raise UsageError(f"levels.strides must be at least 1, not {list(self.strides)}")
        if self.layers < 1:
            raise UsageError(f"levels.layers must be at least 1, not {self.layers}")
        if self.segment_chunk is not None and self.segment_chunk < 1:
            raise UsageError(
                f"levels.segment_chunk must be at least 1 or null, not {self.segment_chunk}"
            )


def ahead(lags: Float[Tensor, " times"], horizon: int) -> Float[Tensor, "times ages"]:
    r"""Describe how far ahead times lie by bumps on a logarithmic axis.

    .. math:: e^{-(x - k)^2 / 2}, \quad x = (K - 1) \frac{\ln(1 + t)}{\ln(1 + H)}, \quad
        k = 0, \ldots, K - 1

    Args:
        lags: t, frames.
        horizon: H, frames.
    """
    place = (AGES - 1) * torch.log1p(lags) / log1p(horizon)
    centres = torch.arange(AGES, dtype=lags.dtype, device=lags.device)
    return torch.exp(-(place[:, None] - centres).square() / 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """Solved segments of one level.

    Attributes:
        numbers: Which segments, ascending.
        solutions: Chunks of them, in order; a row of a state is one segment of one window.
        chunk: Segments in each solution but perhaps the last.
        windows: How many windows each segment was solved for.
    """

    numbers: Int[Tensor, " segments"]
    solutions: tuple[Solution, ...]
    chunk: int
    windows: int

    @property
    def evaluations(self) -> int:
        """How often the right-hand side was called, one call for all segments of a chunk."""
        return sum(one.evaluations for one in self.solutions)

    def at(
        self, segments: Int[Tensor, " times"], tau: Float[Tensor, " times"]
    ) -> tuple[
        Float[Tensor, "times windows atoms features"],
        Float[Tensor, "times windows atoms 3 features"],
    ]:
        """Compute the states at some times, each in its own segment."""
        place = torch.searchsorted(self.numbers, segments)
        chunk = place // self.chunk
        scalars: list[Tensor] = []
        vectors: list[Tensor] = []
        order: list[Tensor] = []
        for number, solution in enumerate(self.solutions):
            mine = (chunk == number).nonzero()[:, 0]
            if len(mine) == 0:
                continue
            first = (place[mine] - number * self.chunk) * self.windows
            rows = first[:, None] + torch.arange(self.windows, device=first.device)
            s, v = solution.of(rows.flatten(), tau[mine].repeat_interleave(self.windows))
            scalars.append(s.unflatten(0, rows.shape))
            vectors.append(v.unflatten(0, rows.shape))
            order.append(mine)
        back = torch.cat(order).argsort()
        return torch.cat(scalars)[back], torch.cat(vectors)[back]


class Level(nn.Module):
    """One level: how its segments start, and what moves them.

    Args:
        number: Which level, from 0.
        config: Of all levels.
        encoder: Widths, cutoff and backbone.
        generator: Draws the weights; the change starts small.
    """

    def __init__(
        self, number: int, config: LevelsConfig, encoder: EncoderConfig, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.number, self.config = number, config
        width = encoder.features
        if number:
            self.start = Gated(
                number * width + AGES, number * width, width, width, width, generator
            )
        self.clock = linear(2, width, generator)
        self.net = backbone(encoder, config.layers, generator)
        self.change = Gated(width, width, width, width, width, generator, gain=0.1)

    def started(
        self,
        states: list[tuple[Tensor, Tensor]],
        lags: Float[Tensor, " segments"],
    ) -> tuple[
        Float[Tensor, "segments windows atoms features"],
        Float[Tensor, "segments windows atoms 3 features"],
    ]:
        """Compute the states in which segments start from those of all coarser levels."""
        scalars = torch.cat([s for s, _ in states], dim=-1)
        vectors = torch.cat([v for _, v in states], dim=-1)
        when = ahead(lags, self.config.horizon)[:, None, None].expand(*scalars.shape[:3], AGES)
        s, v = self.start(torch.cat([scalars, when], dim=-1), vectors)
        last_s, last_v = states[-1]
        return last_s + s, last_v + v

    def solved(
        self,
        scalars: Float[Tensor, "rows atoms features"],
        vectors: Float[Tensor, "rows atoms 3 features"],
        graph: AtomGraph,
    ) -> Solution:
        """Solve segments from their starts; the graph has the atoms of all of them."""
        filters = self.net.filters(graph)
        rows, atoms, _ = scalars.shape

        def flow(tau: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            s, v = state[0].flatten(0, 1), state[1].flatten(0, 1)
            known = self.clock(torch.stack([tau, tau.square()]))
            heard_s, heard_v = self.net(s + known, v, filters)
            moved_s, moved_v = self.change(heard_s, heard_v)
            return moved_s.unflatten(0, (rows, atoms)), moved_v.unflatten(0, (rows, atoms))

        return solve(flow, (scalars, vectors), self.config.solver)
