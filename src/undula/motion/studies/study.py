"""A study of moving atoms from its protocol to its scores: train what is missing, then score."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from undula import atomic
from undula.errors import InputError, UsageError
from undula.io.datasets import read_json
from undula.learn.progress import Progress
from undula.motion.evaluation import MotionScoring
from undula.motion.studies.arena import FITTED_WINDOWS, Arena
from undula.motion.studies.protocol import MotionProtocol, MotionRow, Opened
from undula.motion.studies.runs import MotionTraining, parameters, run_folder, trained_run
from undula.motion.trained import WEIGHTS, TrainedMotion
from undula.motion.windows import AtomForecaster

TRIVIAL = "trivial"
"""The folder of the trivial rows' scores; no row of a protocol can have files there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RowScores:
    """The scores of one forecaster on one system.

    Attributes:
        name: Of the protocol's row, with @LEVEL where it is decoded at one; or the trivial row.
        label: In the tables.
        kind: A model, or a trivial row.
        seeds: For each seed, recording → what `Arena.scores` returns.
        parameters: Weights of the model; 0 for a trivial row.
    """

    name: str
    label: str
    kind: Literal["model", "trivial"]
    seeds: tuple[Mapping[str, Any], ...]
    parameters: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class SystemScores:
    """All that the tables of one system are made of.

    Attributes:
        opened: The system.
        rows: Models first, in the protocol's order, then trivial rows.
        references: Row → recording → what is measured in place of samples.
        truth: Recording → curves of the truth.
        positions_only: Whether the published error counts no velocities here.
        energy_note: Why there are no energies, if so.
    """

    opened: Opened
    rows: tuple[RowScores, ...]
    references: Mapping[str, Mapping[str, Any]]
    truth: Mapping[str, Any]
    positions_only: bool
    energy_note: str

    @property
    def trivial(self) -> tuple[RowScores, ...]:
        """The trivial rows."""
        return tuple(row for row in self.rows if row.kind == "trivial")

    @property
    def models(self) -> tuple[RowScores, ...]:
        """The others."""
        return tuple(row for row in self.rows if row.kind == "model")


@dataclass(frozen=True, eq=False, kw_only=True)
class MotionStudy:
    """The scores of a study.

    Attributes:
        protocol: What was asked.
        systems: Those that were scored, in the protocol's order.
        skipped: System/row → why it could not be trained.
    """

    protocol: MotionProtocol
    systems: tuple[SystemScores, ...]
    skipped: Mapping[str, str]


@dataclass(eq=False, kw_only=True)
class _Workplace:
    """Folders, and how long things took."""

    runs: Path
    out: Path
    progress: Callable[[], Progress]
    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, what: str, seconds: float) -> None:
        self.seconds[what] = round(seconds, 3)
        path = self.out / "times.json"
        known = read_json(path)["seconds"] if path.is_file() else {}
        atomic.write_json(path, {"seconds": known | self.seconds})


def run_motion_study(
    protocol: MotionProtocol,
    systems: Sequence[Opened],
    training_of: Callable[[MotionRow, Opened, int], MotionTraining],
    *,
    runs: Path,
    out: Path,
    only: Sequence[str],
    progress: Callable[[], Progress],
    say: Callable[[str], None],
) -> MotionStudy:
    """Train the rows of a protocol that have no finished run, and score all on test recordings.

    Trivial rows are always there, fitted on the training recordings. Test recordings are read
    for scores alone; nothing is chosen on them. What is finished is not done again: run folders
    and score files are kept, the latter under the SHA-256 of weights and data. How long things
    took is in ``times.json`` alone, so that everything else repeats.

    Args:
        protocol: Rows, seeds, scoring.
        systems: Those to score on.
        training_of: The configuration of a row, a system and a seed.
        runs: Where the run folders lie.
        out: Where the scores go.
        only: Names of the rows to take, "trivial" for none; all of the protocol if it is empty.
        progress: Makes a listener for each training.
        say: Told which row comes next, in one line.

    Raises:
        UsageError: There is no such row; a run folder holds another configuration.
    """
    chosen = _chosen(protocol, only)
    place = _Workplace(runs=runs, out=out, progress=progress, say=say)
    plans = [
        [
            (row, _trainings(row, protocol.rows, system, protocol.seeds, training_of))
            for row in chosen
        ]
        for system in systems
    ]
    skipped: dict[str, str] = {}
    found = [
        _system(system, plan, system.asked.scoring(protocol.scoring), place, skipped)
        for system, plan in zip(systems, plans, strict=True)
    ]
    return MotionStudy(protocol=protocol, systems=tuple(found), skipped=skipped)


def _chosen(protocol: MotionProtocol, only: Sequence[str]) -> list[MotionRow]:
    known = [*(row.name for row in protocol.rows), TRIVIAL]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"there is no row {unknown[0]} in {protocol.name}: {', '.join(known)}")
    return [row for row in protocol.rows if not only or row.name in only]


def _trainings(
    row: MotionRow,
    rows: Sequence[MotionRow],
    system: Opened,
    seeds: Sequence[int],
    training_of: Callable[[MotionRow, Opened, int], MotionTraining],
) -> dict[int, MotionTraining]:
    """Resolve the trainings of a row before anything runs; none on systems it is not meant for."""
    if row.systems and system.name not in row.systems:
        return {}
    found = {seed: training_of(row, system, seed).first_levels(row.levels) for seed in seeds}
    other = next((one for one in rows if one.name == row.as_large_as), None)
    if other is None:
        return found
    kinds = len(set(system.source.system.kinds.tolist()))
    return {
        seed: training.as_large_as(
            training_of(other, system, seed).first_levels(other.levels), kinds
        )
        for seed, training in found.items()
    }


def _system(
    system: Opened,
    plan: Sequence[tuple[MotionRow, Mapping[int, MotionTraining]]],
    scoring: MotionScoring,
    place: _Workplace,
    skipped: dict[str, str],
) -> SystemScores:
    arena = Arena(system, scoring)
    rows: list[RowScores] = []
    for row, trainings in plan:
        try:
            rows += _model_rows(row, trainings, arena, place)
        except InputError as error:
            skipped[f"{system.name}/{row.name}"] = str(error)
            place.say(f"{system.name}/{row.name} is left out: {error}")
    rows += _trivial_rows(arena, place)
    name = f"{system.name}/{TRIVIAL}"
    rules = {"energies": arena.has_energies}
    references = _kept(arena, rules, f"{name}/references", arena.references, place)
    truth = _kept(arena, rules, f"{name}/truth", arena.true_curves, place)
    return SystemScores(
        opened=system,
        rows=tuple(rows),
        references=references,
        truth=truth,
        positions_only=arena.ranges.velocity is None,
        energy_note=arena.energy_note,
    )


def _model_rows(
    row: MotionRow, trainings: Mapping[int, MotionTraining], arena: Arena, place: _Workplace
) -> list[RowScores]:
    """Train and score a row with every seed, and decoded at the levels that are asked for."""
    if not trainings:
        return []
    system = arena.system
    variants: dict[str, tuple[str, list[Mapping[str, Any]]]] = {}
    count = 0
    for seed, training in trainings.items():
        folder = run_folder(place.runs, system.name, row.name, seed)
        place.say(f"{system.name}/{row.name}, seed {seed}: {folder}")
        model, seconds = trained_run(training, system, folder, place.progress())
        if seconds is not None:
            place.timed(f"train {system.name}/{row.name} seed {seed}", seconds)
        count = parameters(model)
        key = {"weights": atomic.sha256(folder / WEIGHTS)}
        for name, label, forecaster in _variants(row, model):
            scores = _scores(
                arena, forecaster, key, f"{name}/seed-{seed}", place, samples="@" not in name
            )
            variants.setdefault(name, (label, []))[1].append(scores)
    return [
        RowScores(name=name, label=label, kind="model", seeds=tuple(seeds), parameters=count)
        for name, (label, seeds) in variants.items()
    ]


def _variants(row: MotionRow, model: TrainedMotion) -> list[tuple[str, str, AtomForecaster]]:
    """List a model and, without samples, what it says when only coarser levels are decoded."""
    found: list[tuple[str, str, AtomForecaster]] = [(row.name, row.label, model)]
    for level in row.decoded:
        label = f"{row.label}, decoded at level {level}"
        found.append((f"{row.name}@{level}", label, model.at_level(level)))
    return found


def _trivial_rows(arena: Arena, place: _Workplace) -> list[RowScores]:
    place.say(f"{arena.system.name}: trivial rows")
    return [
        RowScores(
            name=forecaster.name,
            label=forecaster.name,
            kind="trivial",
            seeds=(
                _scores(
                    arena,
                    forecaster,
                    {"fitted windows": FITTED_WINDOWS},
                    f"{TRIVIAL}/{'-'.join(re.findall('[a-z]+', forecaster.name))}",
                    place,
                ),
            ),
        )
        for forecaster in arena.trivial()
    ]


def _scores(
    arena: Arena,
    forecaster: AtomForecaster,
    key: Mapping[str, Any],
    name: str,
    place: _Workplace,
    *,
    samples: bool = True,
) -> dict[str, Any]:
    """Score a forecaster, with or without the samples, which take most of the time."""
    rules = {**key, "energies": arena.has_energies}
    return _kept(
        arena,
        rules,
        f"{arena.system.name}/{name}",
        lambda: arena.scores(forecaster, samples=samples),
        place,
    )


def _kept(
    arena: Arena,
    key: Mapping[str, Any],
    name: str,
    made: Callable[[], Mapping[str, Any]],
    place: _Workplace,
) -> dict[str, Any]:
    """Return scores from their file if it is of the same weights, data and rules; or make it."""
    path = place.out / "scores" / f"{name}.json"
    asked = {
        **key,
        "data": arena.source.sha256,
        "system": asdict(arena.asked),
        "scoring": asdict(arena.scoring),
    }
    for part in ("preset", "set"):
        del asked["system"][part]
    asked["system"]["linear_ps"] = list(arena.asked.linear_ps)
    if path.is_file():
        known = read_json(path)
        if known.get("of") == asked:
            found: dict[str, Any] = known["scores"]
            return found
    began = time.perf_counter()
    values = made()
    place.timed(f"score {name}", time.perf_counter() - began)
    atomic.write_json(path, {"of": asked, "scores": values})
    # As it will be read the next time, in the same order.
    again: dict[str, Any] = read_json(path)["scores"]
    return again
