"""What samples of a forecaster look like beside the truth: their scores, structure and dynamics.

The mean of a forecast is no configuration, so radial distributions, diffusion, bonds and torsions
are measured on samples: whole courses drawn from the standard start of a test recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.geometry.periodic import inscribed_radius
from undula.io.recordings import Recording, Recordings
from undula.motion.climatology import knot_frames
from undula.motion.evaluation import MotionScoring, even_frames, starts_of, window_at
from undula.motion.observables import (
    backbone_torsions,
    bond_lengths,
    bonded_within,
    diffusion_coefficient,
    drift_free,
    mean_squared_displacement,
    minimum_distance,
    radial_distribution,
    ramachandran,
    ramachandran_divergence,
    rdf_error,
    velocity_autocorrelation,
)
from undula.motion.scores import crps_samples, sample_pit
from undula.motion.windows import AtomForecaster, Window
from undula.types import MolecularSystem

SHELL = 0.2
"""Width of the shells of a radial distribution, Å."""
_TRUE_FRAMES = 400
"""True frames, evenly spaced, in a radial distribution or a distribution of torsions."""
_TRUE_COURSE = 1000
"""True frames in a row whose velocities are correlated."""
_PER_DECADE = 4
"""Knots of the squared displacement."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """At which frames after now samples are drawn, together, and which serve for what.

    Attributes:
        lags: All of them.
        even: Those evenly spaced over the horizon.
        fine: The first ones, one by one.
        knots: Those at which the squared displacement is measured.
    """

    lags: tuple[int, ...]
    even: tuple[int, ...]
    fine: tuple[int, ...]
    knots: tuple[int, ...]

    @classmethod
    def of(cls, scoring: MotionScoring, horizon: int) -> Course:
        """Choose the frames of a horizon."""
        even = even_frames(horizon, scoring.sample_frames)
        fine = range(1, min(scoring.fine, horizon) + 1)
        knots = knot_frames(horizon, _PER_DECADE)
        every = {*even, *fine, *knots, *scoring.lags_within(horizon)}
        return cls(
            lags=tuple(sorted(every)), even=tuple(even), fine=tuple(fine), knots=tuple(knots)
        )

    def places(self, lags: Sequence[int]) -> list[int]:
        """Return where some of the frames stand among all."""
        return [self.lags.index(lag) for lag in lags]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Futures from the standard start of a test recording.

    Attributes:
        nows: Where the atoms of each were last observed, Å.
        course: Their frames.
        futures: Å, unwrapped.
    """

    nows: Float[Tensor, "samples atoms 3"]
    course: Course
    futures: Float[Tensor, "samples times atoms 3"]

    def frames(self, lags: Sequence[int]) -> Float[Tensor, "frames atoms 3"]:
        """Return all samples at some frames, one after the other."""
        return self.futures[:, self.course.places(lags)].flatten(0, 1)


def drawn(
    forecaster: AtomForecaster,
    window: Window,
    course: Course,
    count: int,
    generator: torch.Generator,
) -> Drawn | None:
    """Draw futures; none from a forecaster without a distribution."""
    lags = torch.tensor(course.lags) * window.frame_ps
    futures = forecaster.samples(window, lags, count, generator)
    if futures is None:
        return None
    return Drawn(nows=window.now.expand(count, -1, -1), course=course, futures=futures)


def true_courses(
    recordings: Sequence[Recording], observed: int, course: Course, count: int
) -> Drawn:
    """Return what happened in other recordings as if these were samples: the floor of the noise.

    Args:
        recordings: Of the training, in turn.
        observed: Frames before the last start; earlier starts share its course in part.
        course: Frames.
        count: How many courses.
    """
    turns = -(-count // len(recordings))
    starts = torch.linspace(observed - 1, (observed - 1) / 2, turns).long().tolist()
    chosen = [(one, start) for start in starts for one in recordings][:count]
    return Drawn(
        nows=torch.stack([one.slice(start, start + 1)[0][0] for one, start in chosen]),
        course=course,
        futures=torch.stack(
            [
                torch.from_numpy(one.positions[[start + lag for lag in course.lags]])
                for one, start in chosen
            ]
        ),
    )


def still_course(
    now: Float[Tensor, "atoms 3"], course: Course, positions: Float[Tensor, "atoms 3"]
) -> Drawn:
    """Return atoms that stay where they are put as if they were one sample."""
    futures = positions.expand(1, len(course.lags), -1, -1).clone()
    return Drawn(nows=now[None], course=course, futures=futures)


def sample_scores(
    forecaster: AtomForecaster,
    source: Recordings,
    recording: Recording,
    scoring: MotionScoring,
    *,
    window: int,
    horizon: int,
    generator: torch.Generator,
) -> dict[str, Any] | None:
    """Compute CRPS and ranks of samples from several starts of a test recording.

    Returns:
        ``crps``, for each start a number at each lag, Å; ``ranks``, at each lag the counts of
        `sample_pit`. None for a forecaster without a distribution.
    """
    lags = scoring.lags_within(horizon)
    crps: list[list[float | None]] = []
    ranks = torch.zeros(len(lags), scoring.samples + 1, dtype=torch.long)
    for now in starts_of(recording, window, scoring.sample_starts):
        reached = [lag for lag in lags if now + lag < len(recording)]
        seen = window_at(source, recording, now, window)
        at = torch.tensor(reached) * seen.frame_ps
        futures = forecaster.samples(seen, at, scoring.samples, generator)
        if futures is None:
            return None
        truth = torch.from_numpy(recording.positions[[now + lag for lag in reached]])
        score = crps_samples(futures, truth).mean(dim=(-1, -2))
        crps.append([*score.tolist(), *[None] * (len(lags) - len(reached))])
        for place in range(len(reached)):
            ranks[place] += sample_pit(futures[:, place], truth[place])
    return {"crps": crps, "ranks": ranks.tolist()}


class Truth:
    """What is measured on the true frames of a test recording, once for all forecasters.

    Args:
        source: The system.
        recording: Of the test, or of the training for the floor of the noise.
        observed: Frames before the first target.
        course: Frames of the samples.
        linear_ps: From which lag to which the squared displacement grows evenly.
    """

    def __init__(
        self,
        source: Recordings,
        recording: Recording,
        observed: int,
        course: Course,
        linear_ps: tuple[float, float],
    ) -> None:
        self.system, self.course, self.linear_ps = source.system, course, linear_ps
        self.frame_ps = source.frame_ps
        horizon = course.lags[-1]
        self.rows = [observed - 1 + lag for lag in even_frames(horizon, _TRUE_FRAMES)]
        self.even = torch.from_numpy(recording.positions[self.rows])
        self.box = recording.box(observed - 1)
        whole, _, _ = recording.slice(observed - 1, observed + horizon)
        knots = torch.tensor(course.knots)
        free = drift_free(whole, self.system.masses.to(whole))
        self.displacement = mean_squared_displacement(free, knots)
        self.diffusion = None if self.box is None else self._slope(self.displacement)
        self.correlation = _correlation(whole[: _TRUE_COURSE + 1], course)
        self.lengths = bond_lengths(self.even, self.system.bonds)
        self.torsions = _torsions(self.even, self.system)
        self.radial = None if self.box is None else _radial(self.even, self.box, self.system)

    def measured(self, found: Drawn) -> dict[str, Any]:
        """Compare samples, or anything that stands in for them, with the truth.

        Returns:
            The numbers by name; a measure that the system does not have is left out. ``rdf``,
            ``msd``, ``vacf`` are the curves.
        """
        return self._structure(found) | self._dynamics(found)

    def _structure(self, found: Drawn) -> dict[str, Any]:
        values: dict[str, Any] = {}
        frames = found.frames(found.course.even)
        if self.radial is not None and self.box is not None:
            radial = _radial(frames, self.box, self.system)
            values["rdf"] = radial.tolist()
            values["rdf_error"] = float(rdf_error(radial, self.radial))
        excluded = bonded_within(self.system.bonds, len(self.system))
        few = frames[:: max(1, len(frames) // 20)]
        if not bool(excluded.all()):
            nearest = minimum_distance(few, self.box, excluded)
            values["minimum_distance"] = float(nearest.mean())
        if self.system.bonds.numel():
            off = bond_lengths(frames, self.system.bonds) - self.lengths.mean(dim=0)
            values["bond_error"] = float(off.square().mean().sqrt())
        if self.torsions is not None:
            angles = _torsions(frames, self.system)
            assert angles is not None
            each = zip(angles.unbind(1), self.torsions.unbind(1), strict=True)
            apart = [float(ramachandran_divergence(one, true)) for one, true in each]
            values["ramachandran"] = sum(apart) / len(apart)
            values["angles"] = angles.round(decimals=4).tolist()
        return values

    def _dynamics(self, found: Drawn) -> dict[str, Any]:
        now = found.nows[:, None]
        places = found.course.places(found.course.knots)
        paths = torch.cat([now, found.futures[:, places]], dim=1)
        free = torch.stack([drift_free(path, self.system.masses.to(path)) for path in paths])
        moved = (free[:, 1:] - free[:, :1]).square().sum(dim=-1).mean(dim=(0, 2)).double()
        values: dict[str, Any] = {"msd": moved.tolist()}
        if self.box is not None:
            values["diffusion"] = self._slope(moved)
        fine = found.course.places(found.course.fine)
        courses = torch.cat([now, found.futures[:, fine]], dim=1)
        if not bool((courses.diff(dim=1) != 0).any()):
            return values
        curves = torch.stack([_correlation(path, found.course) for path in courses])
        mean = curves.mean(dim=0)
        values["vacf"] = mean.tolist()
        values["vacf_error"] = float((mean - self.correlation).square().mean().sqrt())
        return values

    def _slope(self, displacement: Float[Tensor, " knots"]) -> float | None:
        """Return the diffusion coefficient, Å²/ps; none where no two knots are in the range."""
        lags = torch.tensor(self.course.knots) * self.frame_ps
        low, high = self.linear_ps
        if int(((lags >= low) & (lags <= high)).sum()) < 2:
            return None
        return diffusion_coefficient(displacement, lags, self.linear_ps)


def _radial(
    frames: Float[Tensor, "frames atoms 3"], box: Float[Tensor, "3 3"], system: MolecularSystem
) -> Float[Tensor, " shells"]:
    """Compute the radial distribution of the heaviest atoms of different molecules."""
    edges = torch.arange(0, float(inscribed_radius(box[None])[0]), SHELL)
    heavy = heavy_atoms(system)
    return radial_distribution(
        frames, box, edges, first=heavy, second=heavy, molecules=system.molecules
    )


def heavy_atoms(system: MolecularSystem) -> Int[Tensor, " atoms"]:
    """Return the atoms of the largest mass: argon itself, or the oxygens of water."""
    masses = system.masses
    return (masses > 0.99 * masses.max()).nonzero().squeeze(-1)


def _correlation(path: Float[Tensor, "frames atoms 3"], course: Course) -> Float[Tensor, " lags"]:
    """Correlate the mean velocities from frame to frame, which forecasts and truth both have."""
    lags = torch.arange(len(course.fine) // 2 + 1)
    return velocity_autocorrelation(path.diff(dim=0), lags)


def _torsions(
    frames: Float[Tensor, "frames atoms 3"], system: MolecularSystem
) -> Float[Tensor, "frames residues 2"] | None:
    phi, psi = backbone_torsions(system)
    return ramachandran(frames, phi, psi) if phi.shape[1] else None
