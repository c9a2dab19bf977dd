"""Score one forecaster of atoms on one test recording, under the published error and under ours.

==================  ==========================================================================
measure             what it is
==================  ==========================================================================
physical            mean square error along an axis, unwrapped, Å²
paper               the published error of the mean as it is; with velocities where the truth has
                    or shows them, else of positions alone
paper_expected      the same of where a normally distributed atom is expected once it is wrapped
                    into the box: the best point forecast under that error; the mean itself where
                    a forecaster gives no spread, or where there is no box
paper_nearest       the same with the shortest image of each error
crps                of a normal distribution along each axis, Å; none without a spread
==================  ==========================================================================

A forecaster that says no velocities counts in the published error as one that says rest, which is
what is expected of a velocity once it is forgotten; `Scored.at_rest` tells. One that forecasts
only some of the atoms is scored on these. A rollout that leaves the range of what is possible
keeps its last possible frame: its later errors are the errors of that frame, finite and bad, and
`Scored.divergences` tells in how many windows. Leaving them out would score it where it fared
well alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undula.errors import UsageError
from undula.io.recordings import Recording, Recordings
from undula.motion.scores import (
    TARGET_FRAMES,
    Motion,
    PaperRanges,
    crps_normal,
    expected_wrapped,
    normal_pit,
    paper_error,
    paper_ranges,
    physical_error,
    target_windows,
)
from undula.motion.windows import AtomForecast, AtomForecaster, Divergence, Forecasts, Window
from undula.types import MolecularSystem

MEASURES = ("physical", "paper", "paper_expected", "paper_nearest", "crps")
PIT_BINS = 40
"""Of `undula.motion.scores.normal_pit`; the ends of 50 % and 90 % lie between two."""


@dataclass(frozen=True, kw_only=True)
class MotionScoring:
    """How a forecaster is scored.

    Attributes:
        frames: How many frames of the whole horizon from the standard start, evenly spaced,
            beside those of the target windows; 0 for all.
        starts: How many windows of each test recording, evenly spread over the frames from which
            a forecast has its whole window, with velocities where the recording has any.
        lags: Frames after each of these starts that are scored, those within the horizon.
        samples: How many futures are drawn from a start.
        sample_starts: From how many of the starts.
        sample_frames: Frames of the whole horizon, evenly spaced, at which samples are measured.
        fine: So many first frames of samples are drawn one by one, for their velocities.
        seed: Of samples and intervals.
    """

    frames: int = 80
    starts: int = 20
    lags: list[int] = field(
        default_factory=lambda: [
            *(1, 2, 3, 5, 7, 10, 14, 20, 50, 100, 200, 500),
            *(1000, 2000, 5000, 8000),
        ]
    )
    samples: int = 16
    sample_starts: int = 4
    sample_frames: int = 40
    fine: int = 30
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"frames": 0, "starts": 1, "samples": 2, "sample_starts": 1}
        least |= {"sample_frames": 2, "fine": 4, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"scoring.{name} is at least {bound}, not {getattr(self, name)}")
        if not self.lags or min(self.lags) < 1 or sorted(set(self.lags)) != self.lags:
            raise UsageError(f"scoring.lags should increase from 1 on, not {self.lags}")

    def lags_within(self, horizon: int) -> list[int]:
        """Return the lags up to a horizon, which is one of them."""
        return sorted({*(lag for lag in self.lags if lag < horizon), horizon})

    def standard_lags(self, horizon: int) -> list[int]:
        """Return the frames scored from the standard start: target windows and an even part."""
        windows = {
            frame for one in target_windows(horizon) for frame in range(one.first, one.last + 1)
        }
        return sorted({*even_frames(horizon, self.frames), *windows})


def even_frames(horizon: int, count: int) -> list[int]:
    """Return some frames after now, evenly spaced, the last at the horizon; all for 0."""
    if count == 0 or count >= horizon:
        return list(range(1, horizon + 1))
    return sorted({round(horizon * (step + 1) / count) for step in range(count)})


def window_at(source: Recordings, recording: Recording, now: int, frames: int) -> Window:
    """Cut the window of some frames whose last one is ``now``."""
    positions, velocities, box = recording.slice(now + 1 - frames, now + 1)
    return Window(
        system=source.system,
        positions=positions,
        velocities=velocities,
        box=box,
        frame_ps=source.frame_ps,
    )


def starts_of(recording: Recording, window: int, count: int) -> list[int]:
    """Spread starts evenly over the frames from which forecasts can be scored.

    Args:
        recording: Of the test.
        window: Frames that a forecast sees; all have velocities if the recording has any.
        count: How many; fewer if there are fewer frames.
    """
    last = (recording.velocity_frames or len(recording)) - 1
    last = min(last, len(recording) - 2)
    places = torch.linspace(window - 1, last, min(count, last - window + 2), dtype=torch.float64)
    return sorted(set(places.round().long().tolist()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Later:
    """What came after a window.

    Attributes:
        motion: Positions, Å; velocities, Å/ps, 0 where they are not known.
        moving: At which times velocities are known.
    """

    motion: Motion
    moving: Bool[Tensor, " times"]


def later(recording: Recording, now: int, lags: Sequence[int]) -> Later:
    """Read what came after a frame; velocities as recorded, else by differences if these hold."""
    rows = [now + lag for lag in lags]
    positions = torch.from_numpy(recording.positions[rows])
    known = [recording.velocity(row) for row in rows]
    found = [
        recording.differenced_velocity(row) if one is None else one
        for row, one in zip(rows, known, strict=True)
    ]
    return Later(
        motion=Motion(
            positions=positions,
            velocities=torch.stack(
                [torch.zeros_like(positions[0]) if one is None else one for one in found]
            ),
        ),
        moving=torch.tensor([one is not None for one in found]),
    )


def ranges_of(source: Recordings, names: Sequence[str], observed: int) -> PaperRanges:
    """Find the ranges of the published error in the observed part of training recordings.

    Velocities count where later ones are known or shown by differences in all of these
    recordings, and in systems with a box, as published.
    """
    recordings = [source.named(name) for name in names]
    usable = all(
        one.boxes is not None
        and one.velocity_frames >= observed
        and one.differences is not None
        and (one.differences.valid or one.velocity_frames == len(one))
        for one in recordings
    )
    parts = [one.slice(0, observed) for one in recordings]
    return paper_ranges(
        ((place, speed if usable else None, box) for place, speed, box in parts), source.system
    )


def point_scores(
    forecast: AtomForecast,
    truth: Later,
    system: MolecularSystem,
    box: Float[Tensor, "3 3"] | None,
    ranges: PaperRanges,
    atoms: Int[Tensor, " chosen"] | None = None,
) -> dict[str, list[float | None]]:
    """Compute all `MEASURES` at each time; none where a measure is not defined.

    Args:
        forecast: At the times of the truth.
        truth: What came.
        system: The atoms.
        box: Of the target frames.
        ranges: Of `ranges_of`.
        atoms: Those that count; all if there are none.
    """
    scores: dict[str, list[float | None]] = {name: [None] * len(truth.moving) for name in MEASURES}
    counting = slice(None) if atoms is None else atoms
    some, came = forecast.mean[:, counting], truth.motion.positions[:, counting]
    scores["physical"] = list(physical_error(some, came).tolist())
    if forecast.spread is not None:
        wide = forecast.spread[:, counting, None].expand_as(some)
        score = crps_normal(some, wide, came).mean(dim=(-1, -2))
        scores["crps"] = list(score.tolist())
    counted = torch.ones_like(truth.moving) if ranges.velocity is None else truth.moving
    times = counted.nonzero().squeeze(-1)
    if len(times) == 0:
        return scores
    mean, speed = forecast.mean[times], forecast.velocities
    told = Motion(
        positions=mean, velocities=torch.zeros_like(mean) if speed is None else speed[times]
    )
    assert truth.motion.velocities is not None
    true = Motion(
        positions=truth.motion.positions[times], velocities=truth.motion.velocities[times]
    )
    expected = told
    if forecast.spread is not None and box is not None:
        expected = replace(
            told, positions=expected_wrapped(mean, forecast.spread[times], system, box)
        )
    values = {
        "paper": paper_error(told, true, system, box, ranges, atoms=atoms),
        "paper_expected": paper_error(expected, true, system, box, ranges, atoms=atoms),
        "paper_nearest": paper_error(told, true, system, box, ranges, "nearest", atoms),
    }
    for name, value in values.items():
        for time, number in zip(times.tolist(), value.tolist(), strict=True):
            scores[name][time] = number
    return scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The point scores of one forecaster on one test recording.

    Attributes:
        standard: Measure → a number at each of `MotionScoring.standard_lags`.
        starts: Measure → for each start a number at each lag; none beyond the recording.
        pit: At each lag the counts of `normal_pit`, over all starts; none without a spread.
        windows: How many windows were forecast.
        divergences: Of the rollouts that left the range of what is possible.
        at_rest: Whether velocities count that the forecaster does not say.
    """

    standard: dict[str, list[float | None]]
    starts: dict[str, list[list[float | None]]]
    pit: list[list[int]] | None
    windows: int
    divergences: tuple[Divergence, ...] = ()
    at_rest: bool = False

    def plain(self) -> dict[str, object]:
        """Return everything as plain values for JSON; what needs a remark only where there is."""
        found: dict[str, object] = {
            "standard": self.standard,
            "starts": self.starts,
            "pit": self.pit,
        }
        if self.divergences:
            found["diverged"] = {
                "windows": len(self.divergences),
                "of": self.windows,
                "after_ps": min(one.after_ps for one in self.divergences),
                "share": max(one.share for one in self.divergences),
            }
        return found | ({"at_rest": True} if self.at_rest else {})


@dataclass(frozen=True, kw_only=True)
class Sparing:
    """How much of a scoring is left out for a forecaster that takes long; 0 for nothing.

    Attributes:
        starts: So many of the starts of each recording, evenly spread, at most.
        frames: So many of the frames after the standard start, evenly spread, at most.
        samples: So many futures at most, at least 2.
        sample_starts: So many starts of samples, at most.
    """

    starts: int = 0
    frames: int = 0
    samples: int = 0
    sample_starts: int = 0

    def __post_init__(self) -> None:
        for name in ("starts", "frames", "samples", "sample_starts"):
            if getattr(self, name) < 0 or (name == "samples" and self.samples == 1):
                raise UsageError(
                    f"sparing.{name} is 0 for all, or at least {1 + (name == 'samples')}, not "
                    f"{getattr(self, name)}"
                )

    def of(self, scoring: MotionScoring) -> MotionScoring:
        """Return a scoring with as few samples, from as few starts."""
        return replace(
            scoring,
            samples=min(self.samples or scoring.samples, scoring.samples),
            sample_starts=min(self.sample_starts or scoring.sample_starts, scoring.sample_starts),
        )


def spread_over(count: int, most: int) -> list[int]:
    """Return which of so many things are taken if at most some are, evenly spread; all for 0."""
    if most == 0 or most >= count:
        return list(range(count))
    return sorted(set(torch.linspace(0, count - 1, most).round().long().tolist()))


def scored(
    forecaster: AtomForecaster,
    source: Recordings,
    recording: Recording,
    ranges: PaperRanges,
    scoring: MotionScoring,
    *,
    observed: int,
    window: int,
    horizon: int,
    sparing: Sparing | None = None,
    atoms: Int[Tensor, " chosen"] | None = None,
) -> Scored:
    """Score a forecaster on a test recording, from the standard start and from many others.

    Args:
        forecaster: A model or a trivial row.
        source: The system.
        recording: Of the test.
        ranges: Of the training recordings.
        scoring: How.
        observed: Frames seen at the standard start, whose now is frame ``observed`` − 1.
        window: Frames seen from the other starts.
        horizon: Frames ahead.
        sparing: What is left out; its numbers are none.
        atoms: Those that count; all if there are none.
    """
    [found] = scored_together(
        lambda seen, lags_ps: [forecaster.forecast(seen, lags_ps)],
        source,
        recording,
        ranges,
        scoring,
        observed=observed,
        window=window,
        horizon=horizon,
        sparing=sparing,
        atoms=atoms,
    )
    return found


def scored_together(
    forecasts: Forecasts,
    source: Recordings,
    recording: Recording,
    ranges: PaperRanges,
    scoring: MotionScoring,
    *,
    observed: int,
    window: int,
    horizon: int,
    sparing: Sparing | None = None,
    atoms: Int[Tensor, " chosen"] | None = None,
) -> list[Scored]:
    """Score forecasters that forecast each window together; see `scored`.

    Args:
        forecasts: Returns the forecast of each of them, always as many.
        source: The system.
        recording: Of the test.
        ranges: Of the training recordings.
        scoring: How.
        observed: Frames seen at the standard start.
        window: Frames seen from the other starts.
        horizon: Frames ahead.
        sparing: What is left out.
        atoms: Those that count.
    """
    left = sparing or Sparing()
    score = partial(_scores, forecasts, recording=recording, ranges=ranges, atoms=atoms)
    first = window_at(source, recording, observed - 1, observed)
    lags = scoring.standard_lags(horizon)
    places = spread_over(len(lags), left.frames)
    standard = score(first, now=observed - 1, lags=[lags[place] for place in places])
    asked = scoring.lags_within(horizon)
    every = starts_of(recording, window, scoring.starts)
    taken = spread_over(len(every), left.starts)
    windows: list[list[_WindowScores] | None] = []
    for number, now in enumerate(every):
        if number not in taken:
            windows.append(None)
            continue
        reached = [lag for lag in asked if now + lag < len(recording)]
        windows.append(score(window_at(source, recording, now, window), now=now, lags=reached))
    return [
        _collected(
            one,
            [None if some is None else some[which] for some in windows],
            places,
            len(lags),
            len(asked),
        )
        for which, one in enumerate(standard)
    ]


def _collected(
    standard: _WindowScores,
    windows: Sequence[_WindowScores | None],
    places: Sequence[int],
    standard_lags: int,
    asked: int,
) -> Scored:
    """Put the scores of one forecaster's windows together; none of those that are left out.

    Args:
        standard: Of the standard start.
        windows: Of the others.
        places: Of the scored times among those of the standard start.
        standard_lags: How many those are.
        asked: How many lags are asked for from the other starts.
    """
    starts: dict[str, list[list[float | None]]] = {name: [] for name in MEASURES}
    counts: list[Int[Tensor, " bins"]] = [
        torch.zeros(PIT_BINS, dtype=torch.long) for _ in range(asked)
    ]
    spread_known = True
    for one in windows:
        for name in MEASURES:
            values = [] if one is None else one.scores[name]
            starts[name].append(_scattered(values, range(len(values)), asked))
        if one is None:
            continue
        spread_known = spread_known and one.pits is not None
        for place, count in enumerate(one.pits or []):
            counts[place] += count
    divergences = [one.divergence for one in (standard, *windows) if one is not None]
    return Scored(
        standard={
            name: _scattered(values, places, standard_lags)
            for name, values in standard.scores.items()
        },
        starts=starts,
        pit=[count.tolist() for count in counts] if spread_known else None,
        windows=len(divergences),
        divergences=tuple(one for one in divergences if one is not None),
        at_rest=standard.at_rest,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _WindowScores:
    """The scores of one window, and where the truth lies in its normal distributions."""

    scores: dict[str, list[float | None]]
    pits: list[Int[Tensor, " bins"]] | None
    divergence: Divergence | None
    at_rest: bool


def _scores(
    forecasts: Forecasts,
    window: Window,
    *,
    recording: Recording,
    now: int,
    lags: Sequence[int],
    ranges: PaperRanges,
    atoms: Int[Tensor, " chosen"] | None,
) -> list[_WindowScores]:
    """Score one window, as each forecaster has it."""
    made = forecasts(window, torch.tensor(lags) * window.frame_ps)
    truth = later(recording, now, lags)
    return [_window_scores(one, truth, window, ranges, atoms) for one in made]


def _window_scores(
    forecast: AtomForecast,
    truth: Later,
    window: Window,
    ranges: PaperRanges,
    atoms: Int[Tensor, " chosen"] | None,
) -> _WindowScores:
    pits = None
    if forecast.spread is not None:
        wide = forecast.spread[..., None].expand_as(forecast.mean)
        pits = [
            normal_pit(mean, spread, true, PIT_BINS)
            for mean, spread, true in zip(forecast.mean, wide, truth.motion.positions, strict=True)
        ]
    return _WindowScores(
        scores=point_scores(forecast, truth, window.system, window.box, ranges, atoms),
        pits=pits,
        divergence=forecast.divergence,
        at_rest=ranges.velocity is not None and forecast.velocities is None,
    )


def _scattered(
    values: Sequence[float | None], places: Sequence[int], count: int
) -> list[float | None]:
    """Put values at some of so many places, none at the others."""
    found: list[float | None] = [None] * count
    for place, value in zip(places, values, strict=True):
        found[place] = value
    return found


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the numbers there are; none if there are none."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def target_frames(lags: Sequence[int], last: int) -> list[int]:
    """Return which of some frames belong to the target window that ends at ``last``."""
    return [place for place, lag in enumerate(lags) if last - TARGET_FRAMES < lag <= last]
