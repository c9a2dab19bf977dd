"""The test recordings of one system, set up once and the same for every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from undula.errors import InputError, MachineError
from undula.io.recordings import Recording
from undula.motion.baselines.trivial import ObservedMean, trivial_forecasters
from undula.motion.climatology import knot_frames
from undula.motion.climatology_fit import Example
from undula.motion.evaluation import (
    MotionScoring,
    Scored,
    Sparing,
    ranges_of,
    scored_together,
    starts_of,
    window_at,
)
from undula.motion.studies.energies import Energies, energies_of
from undula.motion.studies.protocol import Opened
from undula.motion.studies.sampled import (
    Course,
    Drawn,
    Truth,
    drawn,
    sample_scores,
    still_course,
    true_courses,
)
from undula.motion.windows import AtomForecaster, Forecasts, OfSomeAtoms

FITTED_WINDOWS = 40
"""Windows of each training recording that trivial rows are fitted on."""
ENERGY_FRAMES = 10
"""Frames of samples, and of the truth, whose energies are computed."""
FLOOR = "other recordings"
"""The row of what training recordings measure against the test: the floor of the noise."""
STILL = "frozen (now)"
MEAN = "mean structure"
_NOT_DRAWN: dict[str, Any] = {"samples": None, "measured": None}


class Arena:
    """Where every forecaster of one system is scored.

    Args:
        system: The system with its recordings.
        scoring: How.
    """

    def __init__(self, system: Opened, scoring: MotionScoring) -> None:
        self.system, self.scoring = system, scoring
        self.asked, self.source = system.asked, system.source
        self.tests = [self.source.named(name) for name in system.test]
        self.training = [self.source.named(name) for name in system.train]
        self.ranges = ranges_of(self.source, system.train, self.asked.observed)
        self.course = Course.of(scoring, self.asked.horizon)
        self.energy_note = ""
        self._truths: dict[str, Truth] = {}
        self._trivial: list[AtomForecaster] = []
        self._energies: Energies | None = None
        if self.asked.forces is not None:
            box = self.tests[0].box(0)
            try:
                self._energies = energies_of(self.asked.forces, self.source.system, box)
            except (InputError, MachineError) as error:
                self.energy_note = f"no energies: {error}"

    @property
    def has_energies(self) -> bool:
        """Whether samples get energies, on which their scores depend."""
        return self._energies is not None

    def trivial(self) -> list[AtomForecaster]:
        """Fit the trivial rows on windows of the training recordings, once."""
        if not self._trivial:
            self._trivial = self._fitted()
        return self._trivial

    def _fitted(self) -> list[AtomForecaster]:
        asked, source = self.asked, self.source
        knots = knot_frames(asked.horizon)
        frames = None
        if source.reference is not None:
            frames = torch.cat([one.slice(0, len(one))[0] for one in self.training])
        rows = trivial_forecasters(self._examples(knots), knots, frames)
        if self.tests[0].boxes is not None:
            rows.insert(2, ObservedMean(wrapped=True, name="observed mean, wrapped"))
        return rows

    def _examples(self, knots: tuple[int, ...]) -> Iterator[Example]:
        for recording in self.training:
            last = len(recording) - 1 - self.asked.horizon
            for now in starts_of(recording, self.asked.window, FITTED_WINDOWS):
                if now <= last:
                    future = torch.from_numpy(recording.positions[[now + knot for knot in knots]])
                    window = window_at(self.source, recording, now, self.asked.window)
                    yield Example(window=window, future=future)

    def scores(
        self,
        forecaster: AtomForecaster,
        *,
        samples: bool = True,
        sparing: Sparing | None = None,
    ) -> dict[str, Any]:
        """Score a forecaster on every test recording; the same chance for every forecaster.

        Args:
            forecaster: A model or a trivial row. One that forecasts some of the atoms is scored
                on these, and what trivial rows score on them stands ``beside``.
            samples: Whether futures are drawn, where it has a distribution.
            sparing: What is left out.
        """
        return self.scores_together([forecaster], None, samples=[samples], sparing=sparing)[0]

    def scores_together(
        self,
        forecasters: Sequence[AtomForecaster],
        forecasts: Forecasts | None,
        *,
        samples: Sequence[bool],
        sparing: Sparing | None = None,
    ) -> list[dict[str, Any]]:
        """Score forecasters that forecast each window together; the same numbers as one by one.

        Args:
            forecasters: Of the same atoms.
            forecasts: Of all of them; one by one by default.
            samples: For each, whether futures are drawn.
            sparing: What is left out.
        """
        left = sparing or Sparing()
        atoms = self.atoms_of(forecasters[0])
        found: list[dict[str, Any]] = [{} for _ in forecasters]
        for number, recording in enumerate(self.tests):
            points = self._points(forecasts or one_by_one(forecasters), recording, left, atoms)
            for which, point in enumerate(points):
                futures = _NOT_DRAWN
                if samples[which]:
                    futures = self._sampled(forecasters[which], recording, number, left)
                found[which][recording.name] = point.plain() | futures
            if atoms is not None:
                rows = self.trivial()
                beside = {
                    row.name: point.plain()["starts"]
                    for row, point in zip(
                        rows, self._points(one_by_one(rows), recording, left, atoms), strict=True
                    )
                }
                for one in found:
                    one[recording.name]["beside"] = beside
        return found

    def atoms_of(self, forecaster: AtomForecaster) -> Int[Tensor, " chosen"] | None:
        """Return which atoms a forecaster forecasts; none for all."""
        if not isinstance(forecaster, OfSomeAtoms):
            return None
        chosen = forecaster.forecast_atoms(self.source.system)
        return None if len(chosen) == len(self.source.system) else chosen

    def _points(
        self,
        forecasts: Forecasts,
        recording: Recording,
        sparing: Sparing,
        atoms: Int[Tensor, " chosen"] | None,
    ) -> list[Scored]:
        return scored_together(
            forecasts,
            self.source,
            recording,
            self.ranges,
            self.scoring,
            observed=self.asked.observed,
            window=self.asked.window,
            horizon=self.asked.horizon,
            sparing=sparing,
            atoms=atoms,
        )

    def references(self) -> dict[str, dict[str, Any]]:
        """Measure what stands beside samples: other recordings, no change, no shape."""
        rows: dict[str, dict[str, Any]] = {FLOOR: {}, STILL: {}}
        for recording in self.tests:
            now = recording.slice(self.asked.observed - 1, self.asked.observed)[0][0]
            others = true_courses(
                self.training, self.asked.observed, self.course, self.scoring.samples
            )
            rows[FLOOR][recording.name] = self._measured(recording, others)
            still = still_course(now, self.course, now)
            rows[STILL][recording.name] = self._measured(recording, still)
            if self.source.reference is not None:
                mean = torch.stack(
                    [one.slice(0, len(one))[0].mean(dim=0) for one in self.training]
                ).mean(dim=0)
                course = still_course(now, self.course, mean)
                rows.setdefault(MEAN, {})[recording.name] = self._measured(recording, course)
        return rows

    def true_curves(self) -> dict[str, dict[str, Any]]:
        """Return what is measured on the truth itself: curves, and energies where they exist."""
        found: dict[str, dict[str, Any]] = {}
        for recording in self.tests:
            truth = self._truth(recording)
            found[recording.name] = {
                "rdf": None if truth.radial is None else truth.radial.tolist(),
                "msd": truth.displacement.tolist(),
                "vacf": truth.correlation.tolist(),
                "diffusion": truth.diffusion,
                **self._own(recording, truth),
                "angles": None if truth.torsions is None else truth.torsions[::4].tolist(),
            }
            energy = self._energy(truth.even)
            if energy is not None:
                found[recording.name]["energy"] = energy
        return found

    def _own(self, recording: Recording, truth: Truth) -> dict[str, Any]:
        """Return what the truth has as one sample of itself: how near atoms come, its bonds."""
        itself = true_courses([recording], self.asked.observed, self.course, 1)
        found = truth.measured(itself)
        return {key: found[key] for key in ("minimum_distance", "bond_error") if key in found}

    def _sampled(
        self, forecaster: AtomForecaster, recording: Recording, number: int, sparing: Sparing
    ) -> dict[str, Any]:
        asked, scoring = self.asked, sparing.of(self.scoring)
        chance = torch.Generator().manual_seed(1000 * scoring.seed + number)
        window = window_at(self.source, recording, asked.observed - 1, asked.observed)
        course = drawn(forecaster, window, self.course, scoring.samples, chance)
        if course is None:
            return _NOT_DRAWN
        judged = sample_scores(
            forecaster,
            self.source,
            recording,
            scoring,
            window=asked.window,
            horizon=asked.horizon,
            generator=chance,
        )
        return {"samples": judged, "measured": self._measured(recording, course)}

    def _measured(self, recording: Recording, course: Drawn) -> dict[str, Any]:
        values = self._truth(recording).measured(course)
        energy = self._energy(course.frames(course.course.even))
        return values if energy is None else values | {"energy": energy}

    def _truth(self, recording: Recording) -> Truth:
        if recording.name not in self._truths:
            self._truths[recording.name] = Truth(
                self.source, recording, self.asked.observed, self.course, self.asked.linear_ps
            )
        return self._truths[recording.name]

    def _energy(self, frames: Tensor) -> float | None:
        """Return the median energy of a few of some frames per atom, kJ/mol, where it is known."""
        if self._energies is None:
            return None
        few = frames[:: max(1, len(frames) // ENERGY_FRAMES)][:ENERGY_FRAMES]
        middle = float(self._energies(few).median()) / len(self.source.system)
        return middle if abs(middle) < float("inf") else None


def one_by_one(forecasters: Sequence[AtomForecaster]) -> Forecasts:
    """Return what forecasts with each of some forecasters that share nothing."""
    return lambda window, lags_ps: [one.forecast(window, lags_ps) for one in forecasters]
