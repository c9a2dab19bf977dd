"""DoMiNO: an observed window to every atom at any later time, by a hierarchy of graph ODEs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from undula.motion.decoder import DecoderConfig, Deviation, FusionDecoder
from undula.motion.encoder import EncoderConfig, Observation, Posterior, WindowEncoder
from undula.motion.hierarchy import Hierarchy
from undula.motion.levels import Level, LevelsConfig, Segments, ahead
from undula.motion.surroundings import BondTable, graph_of
from undula.nn.gated import linear


@dataclass(frozen=True, kw_only=True)
class MotionModelConfig:
    """Sizes and choices of DoMiNO.

    Attributes:
        encoder: Window to posterior; its widths serve the levels too.
        levels: The hierarchy.
        decoder: Levels to forecast.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    levels: LevelsConfig = field(default_factory=LevelsConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Which segments serve some times; see `planned`.

    Attributes:
        lags: Times after now, frames.
        segments: For each level the numbers of the segments to solve, ascending.
        starts: When they start, frames.
        within: For each level the number of the segment that holds each time.
        tau: For each level the part of that segment which has passed.
    """

    lags: Float[Tensor, " times"]
    segments: tuple[Int[Tensor, " _"], ...]
    starts: tuple[Float[Tensor, " _"], ...]
    within: tuple[Int[Tensor, " times"], ...]
    tau: tuple[Float[Tensor, " times"], ...]

    @property
    def all_lags(self) -> Float[Tensor, " lags"]:
        """The starts of all segments, level by level, then the times."""
        return torch.cat([*self.starts, self.lags])


def planned(hierarchy: Hierarchy, lags: Float[Tensor, " times"]) -> Plan:
    """List the segments that some times need: one of each level for each time, shared by many.

    Args:
        hierarchy: The levels.
        lags: Times after now, frames, within the horizon.

    Raises:
        UsageError: A time lies beyond the horizon.
    """
    lags = hierarchy.checked(lags)
    places = [hierarchy.places(lags, level) for level in range(hierarchy.levels)]
    segments = tuple(torch.unique(segment) for segment, _ in places)
    return Plan(
        lags=lags,
        segments=segments,
        starts=tuple(
            (numbers * length).to(lags)
            for numbers, length in zip(segments, hierarchy.lengths, strict=True)
        ),
        within=tuple(segment for segment, _ in places),
        tau=tuple(tau for _, tau in places),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Base:
    """The linear forecast at the lags of a plan (`Plan.all_lags`), on which the model builds.

    Attributes:
        mean: Expected positions, Å.
        spread: Their standard deviation per axis, Å.
        velocities: Expected velocities, Å/ps.
        speed: Usual speed of each atom per axis, Å/ps: the unit of velocities.
    """

    mean: Float[Tensor, "lags windows atoms 3"]
    spread: Float[Tensor, "lags windows atoms"]
    velocities: Float[Tensor, "lags windows atoms 3"]
    speed: Float[Tensor, " atoms"]

    def part(self, start: int, count: int) -> Base:
        """Return the base at some lags in a row."""
        some = slice(start, start + count)
        return Base(
            mean=self.mean[some],
            spread=self.spread[some],
            velocities=self.velocities[some],
            speed=self.speed,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """A forecast of the levels up to one.

    Attributes:
        mean: Expected positions, unwrapped, Å.
        spread: Standard deviation per axis, Å.
        velocities: Expected velocities, Å/ps.
        parts: What each level adds to the linear forecast, Å.
    """

    mean: Float[Tensor, "times windows atoms 3"]
    spread: Float[Tensor, "times windows atoms"]
    velocities: Float[Tensor, "times windows atoms 3"]
    parts: Float[Tensor, "levels times windows atoms 3"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """All that a pass through the model gives.

    Attributes:
        predictions: Decoded at each level, coarse to fine; the last is the forecast.
        posterior: Of the state now.
        evaluations: Calls of the right-hand side on each level.
    """

    predictions: tuple[Prediction, ...]
    posterior: Posterior
    evaluations: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Windows on their way: encoded, and solved on the coarsest few levels.

    Attributes:
        seen: The windows.
        bonds: Tells bonded pairs apart, or none.
        posterior: Of the state now.
        state: Scalars and vectors now, drawn or expected.
        solved: Segments of the levels that are solved.
    """

    seen: Observation
    bonds: BondTable | None
    posterior: Posterior
    state: tuple[Float[Tensor, "windows atoms features"], Float[Tensor, "windows atoms 3 features"]]
    solved: tuple[Segments, ...]


class DoMiNO(nn.Module):
    r"""Encoder, levels and decoder.

    .. math::
        z \sim q(z \mid \text{window}), \quad
        \text{state}_0(0) = \text{certain} + W z, \quad
        \text{state}_l(\tau) \text{ by level } l, \quad
        \hat r(t) = \text{decoder}(\text{state}_0, \ldots, \text{state}_L; t)

    Args:
        config: Sizes and choices.
        kinds: How many chemical kinds are known.
        seed: Of the weights.
    """

    def __init__(self, config: MotionModelConfig, kinds: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        encoder, levels = config.encoder, config.levels
        self.config = config
        self.hierarchy = Hierarchy(horizon=levels.horizon, strides=levels.strides)
        self.encoder = WindowEncoder(encoder, kinds, generator)
        self.latent_scalars = linear(encoder.latent, encoder.features, generator, gain=0.1)
        self.latent_vectors = linear(
            encoder.latent, encoder.features, generator, bias=False, gain=0.1
        )
        self.levels = nn.ModuleList(
            Level(number, levels, encoder, generator) for number in range(self.hierarchy.levels)
        )
        self.decoder = FusionDecoder(
            config.decoder, self.hierarchy.levels, encoder.features, generator
        )

    def forward(
        self,
        seen: Observation,
        plan: Plan,
        base: Base,
        bonds: BondTable | None,
        *,
        drawn: bool,
        generator: torch.Generator | None = None,
    ) -> Outcome:
        """Forecast the times of a plan for some windows of one system.

        Args:
            seen: The windows.
            plan: Times and segments.
            base: The linear forecast at `Plan.all_lags`.
            bonds: Tells bonded pairs apart; none where the configuration does not ask for it.
            drawn: Whether the state now is drawn from the posterior or is its mean.
            generator: Draws it; torch's own by default.
        """
        return self.finished(self.begun(seen, bonds, drawn=drawn, generator=generator), plan, base)

    def begun(
        self,
        seen: Observation,
        bonds: BondTable | None,
        *,
        drawn: bool,
        generator: torch.Generator | None = None,
    ) -> Course:
        """Encode windows; see `forward`."""
        posterior = self.encoder(seen, bonds)
        scalars, vectors = (
            posterior.drawn(generator) if drawn else (posterior.scalars, posterior.vectors)
        )
        atoms = len(seen.kinds)
        state = (
            (posterior.certain_scalars + self.latent_scalars(scalars)).unflatten(0, (-1, atoms)),
            (posterior.certain_vectors + self.latent_vectors(vectors)).unflatten(0, (-1, atoms)),
        )
        return Course(seen=seen, bonds=bonds, posterior=posterior, state=state, solved=())

    def advanced(self, course: Course, starts: Float[Tensor, " segments"], base: Base) -> Course:
        """Solve segments of the next level.

        Args:
            course: Solved on all coarser levels, where these segments start.
            starts: When the segments start, frames, ascending.
            base: The linear forecast there.
        """
        return replace(course, solved=(*course.solved, self._solved(course, starts, base)))

    def finished(self, course: Course, plan: Plan, base: Base) -> Outcome:
        """Solve the levels that are left and decode.

        Args:
            course: Solved on none or some of the coarsest levels, in all segments of the plan.
            plan: Times and segments.
            base: The linear forecast at `Plan.all_lags`.
        """
        place = sum(len(starts) for starts in plan.starts[: len(course.solved)])
        for starts in plan.starts[len(course.solved) :]:
            course = self.advanced(course, starts, base.part(place, len(starts)))
            place += len(starts)
        return Outcome(
            predictions=self._decoded(course.solved, plan, base.part(place, len(plan.lags))),
            posterior=course.posterior,
            evaluations=tuple(one.evaluations for one in course.solved),
        )

    def _solved(self, course: Course, starts: Float[Tensor, " segments"], base: Base) -> Segments:
        """Start and solve all segments of a level, a few at once."""
        number, seen = len(course.solved), course.seen
        level = cast(Level, self.levels[number])
        if number == 0:
            scalars, vectors = (one[None] for one in course.state)
            where = base.mean
        else:
            found = self._states(course.solved, starts)
            scalars, vectors = level.started(found, starts)
            deviation = self.decoder(found, ahead(starts, self.hierarchy.horizon))
            where = base.mean + base.spread[..., None] * deviation.positions
        chunk = self.config.levels.segment_chunk or len(starts)
        solutions = []
        for first in range(0, len(starts), chunk):
            some = slice(first, first + chunk)
            boxes = seen.boxes
            if boxes is not None:
                boxes = boxes.repeat(len(where[some]), 1, 1)
            graph = graph_of(
                where[some].flatten(0, 1), boxes, self.config.encoder.cutoff, course.bonds
            )
            solutions.append(
                level.solved(scalars[some].flatten(0, 1), vectors[some].flatten(0, 1), graph)
            )
        length = self.hierarchy.lengths[number]
        return Segments(
            numbers=(starts / length).round().long(),
            solutions=tuple(solutions),
            chunk=chunk,
            windows=len(course.state[0]),
        )

    def _states(
        self, solved: Sequence[Segments], lags: Float[Tensor, " times"]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the states of the solved levels at some times."""
        return [
            segments.at(*self.hierarchy.places(lags, level))
            for level, segments in enumerate(solved)
        ]

    def _decoded(
        self, solved: Sequence[Segments], plan: Plan, base: Base
    ) -> tuple[Prediction, ...]:
        """Decode the times of a plan at every level."""
        when = ahead(plan.lags, self.hierarchy.horizon)
        states = [
            segments.at(plan.within[level], plan.tau[level])
            for level, segments in enumerate(solved)
        ]
        return tuple(
            _prediction(self.decoder(states[: level + 1], when), base)
            for level in range(len(states))
        )


def _prediction(deviation: Deviation, base: Base) -> Prediction:
    """Return to Å from units of the linear forecast's spread."""
    unit = base.spread[..., None]
    return Prediction(
        mean=base.mean + unit * deviation.positions,
        spread=base.spread * deviation.spread.exp(),
        velocities=base.velocities + base.speed[:, None] * deviation.velocities,
        parts=unit * deviation.parts,
    )
