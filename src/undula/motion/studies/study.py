"""A study of moving atoms from its protocol to its scores: train what is missing, then score."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from undula import atomic
from undula.errors import InputError, UsageError
from undula.learn.progress import Progress
from undula.learn.study_folder import StudyFolder
from undula.locks import claims
from undula.motion.evaluation import MotionScoring, Sparing
from undula.motion.studies.arena import FITTED_WINDOWS, Arena
from undula.motion.studies.protocol import MotionProtocol, MotionRow, Opened
from undula.motion.studies.runs import (
    MotionFitting,
    MotionTraining,
    parameters,
    run_folder,
    trained_run,
)
from undula.motion.trained import WEIGHTS
from undula.motion.windows import AtomForecaster, Forecasts, Remarked

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
        parameters: Weights of the model; 0 for a row that is not trained.
        steps: Of the training, for each seed; none for a row that is not trained.
        remarks: What a reader of the tables should know of it: sentences without a first capital
            and a stop.
    """

    name: str
    label: str
    kind: Literal["model", "trivial"]
    seeds: tuple[Mapping[str, Any], ...]
    parameters: int = 0
    steps: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()


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


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process of several does of a study.

    Attributes:
        system: Its name.
        row: Of the protocol, or `TRIVIAL`.
        seed: Of its training; none for the trivial rows.
    """

    system: str
    row: str
    seed: int | None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.left_out + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def left_out(self) -> str:
        """What is left out of the study where it fails."""
        return f"{self.system}/{self.row}"


Elsewhere = Callable[[Sequence[Part]], tuple[Mapping[str, float], Mapping[str, str]]]
"""Does parts of a study in other processes, each with `run_part`. Returns what took how long, s,
and system/row → why it could not be trained."""
_Plan = tuple[MotionRow, Mapping[int, MotionTraining | MotionFitting]]
"""A row with its trainings on a system, by seed."""


def run_part(
    part: Part,
    protocol: MotionProtocol,
    system: Opened,
    training_of: Callable[[MotionRow, Opened, int], MotionTraining | MotionFitting],
    *,
    runs: Path,
    out: Path,
    progress: Callable[[], Progress],
) -> dict[str, float]:
    """Do one part of a study: its files are then there for `run_motion_study`, byte by byte.

    The process that asks for it holds ``out``.

    Args:
        part: Which.
        protocol: Rows, seeds, scoring.
        system: Of the part.
        training_of: As of `run_motion_study`.
        runs: Where the run folders lie.
        out: Where the scores go.
        progress: Makes a listener for a training.

    Returns:
        What took how long, s.

    Raises:
        InputError: It cannot be trained.
    """
    place = StudyFolder(runs=runs, out=out, progress=progress, keeps_times=False)
    arena = Arena(system, system.asked.scoring(protocol.scoring))
    if part.row == TRIVIAL:
        _trivial_rows(arena, place)
        _beside(arena, place)
    else:
        [row] = _chosen(protocol, [part.row])
        every = _trainings(row, protocol.rows, system, protocol.seeds, training_of)
        _model_rows(
            row, {seed: one for seed, one in every.items() if seed == part.seed}, arena, place
        )
    return place.seconds


@claims("out")
def run_motion_study(
    protocol: MotionProtocol,
    systems: Sequence[Opened],
    training_of: Callable[[MotionRow, Opened, int], MotionTraining | MotionFitting],
    *,
    runs: Path,
    out: Path,
    only: Sequence[str],
    progress: Callable[[], Progress],
    say: Callable[[str], None],
    elsewhere: Elsewhere | None = None,
) -> MotionStudy:
    """Train the rows of a protocol that have no finished run, and score all on test recordings.

    Trivial rows are always there, fitted on the training recordings. Test recordings are read
    for scores alone; nothing is chosen on them. What is finished is not done again: run folders
    and score files are kept, the latter under the SHA-256 of weights and data. How long things
    took is in ``times.json`` alone, so that everything else repeats.

    Args:
        protocol: Rows, seeds, scoring.
        systems: Those to score on.
        training_of: The configuration of a row, a system and a seed; what is fitted in each
            window has one seed.
        runs: Where the run folders lie.
        out: Where the scores go.
        only: Names of the rows to take, "trivial" for none; all of the protocol if it is empty.
        progress: Makes a listener for each training.
        say: Told which row comes next, in one line.
        elsewhere: Where to do first what other processes can do, the last rows, which take
            longest, first; by default it is done here. What fails there is not tried again.

    Raises:
        UsageError: There is no such row; a run folder holds another configuration.
    """
    chosen = _chosen(protocol, only)
    place = StudyFolder(runs=runs, out=out, progress=progress, say=say)
    plans: list[tuple[Opened, list[_Plan]]] = [
        (
            system,
            [
                (row, _trainings(row, protocol.rows, system, protocol.seeds, training_of))
                for row in chosen
            ],
        )
        for system in systems
    ]
    seconds, failed = ({}, {}) if elsewhere is None else elsewhere(_parts(plans))
    place.took(seconds)
    skipped = dict(failed)
    found = [
        _system(system, plan, system.asked.scoring(protocol.scoring), place, skipped)
        for system, plan in plans
    ]
    return MotionStudy(protocol=protocol, systems=tuple(found), skipped=skipped)


def _parts(plans: Sequence[tuple[Opened, Sequence[_Plan]]]) -> list[Part]:
    """Return what other processes can do: the last row of every system first."""
    rows = zip(*(plan for _, plan in plans), strict=True)
    trained = [
        Part(system=system.name, row=row.name, seed=seed)
        for same_row in reversed(list(rows))
        for (system, _), (row, trainings) in zip(plans, same_row, strict=True)
        for seed in trainings
    ]
    return [*trained, *(Part(system=one.name, row=TRIVIAL, seed=None) for one, _ in plans)]


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
    training_of: Callable[[MotionRow, Opened, int], MotionTraining | MotionFitting],
) -> dict[int, MotionTraining | MotionFitting]:
    """Resolve the trainings of a row before anything runs; none on systems it is not meant for."""
    if row.systems and system.name not in row.systems:
        return {}
    kinds = len(set(system.source.system.kinds.tolist()))
    larger = next((one for one in rows if one.name == row.as_large_as), None)
    found: dict[int, MotionTraining | MotionFitting] = {}
    for seed in seeds[: row.seeds or None][: system.asked.seeds or None]:
        asked = training_of(row, system, seed)
        if isinstance(asked, MotionFitting):
            return {seed: asked}
        asked = asked.first_levels(row.levels)
        other = None if larger is None else training_of(larger, system, seed)
        if larger is not None and isinstance(other, MotionTraining):
            asked = asked.as_large_as(other.first_levels(larger.levels), kinds)
        found[seed] = asked
    return found


def _system(
    system: Opened,
    plan: Sequence[_Plan],
    scoring: MotionScoring,
    place: StudyFolder,
    skipped: dict[str, str],
) -> SystemScores:
    arena = Arena(system, scoring)
    rows: list[RowScores] = []
    for row, trainings in plan:
        if f"{system.name}/{row.name}" in skipped:
            place.say(
                f"{system.name}/{row.name} is left out: {skipped[f'{system.name}/{row.name}']}"
            )
            continue
        try:
            rows += _model_rows(row, trainings, arena, place)
        except InputError as error:
            skipped[f"{system.name}/{row.name}"] = str(error)
            place.say(f"{system.name}/{row.name} is left out: {error}")
    rows += _trivial_rows(arena, place)
    references, truth = _beside(arena, place)
    return SystemScores(
        opened=system,
        rows=tuple(rows),
        references=references,
        truth=truth,
        positions_only=arena.ranges.velocity is None,
        energy_note=arena.energy_note,
    )


def _beside(arena: Arena, place: StudyFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the references and the curves of the truth."""
    name, rules = f"{arena.system.name}/{TRIVIAL}", {"energies": arena.has_energies}
    return (
        _kept(arena, rules, f"{name}/references", arena.references, place),
        _kept(arena, rules, f"{name}/truth", arena.true_curves, place),
    )


def _model_rows(
    row: MotionRow,
    trainings: Mapping[int, MotionTraining | MotionFitting],
    arena: Arena,
    place: StudyFolder,
) -> list[RowScores]:
    """Train and score a row with every seed, and in the other ways that are asked for."""
    scores: dict[str, list[Mapping[str, Any]]] = {}
    last: dict[str, _Contender] = {}
    steps: list[int] = []
    sparing = row.spared(arena.system.name)
    for seed, asked in trainings.items():
        if isinstance(asked, MotionFitting):
            contenders = [_fitted(row, asked)]
        else:
            contenders = _trained(row, asked, seed, arena, place)
            steps.append(contenders[0].steps)
        ways = _Ways(contenders=contenders, arena=arena, sparing=sparing)
        for one in contenders:
            made = _kept(
                arena,
                _rules(arena, one.key, sparing),
                f"{arena.system.name}/{one.name}/seed-{seed}",
                partial(ways.scores, one.name),
                place,
            )
            scores.setdefault(one.name, []).append(made)
            last[one.name] = one
    return [
        RowScores(
            name=name,
            label=one.label,
            kind="model",
            seeds=tuple(scores[name]),
            parameters=one.parameters,
            steps=tuple(steps),
            remarks=remarks(one.forecaster, row, arena, scores[name]),
        )
        for name, one in last.items()
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Contender:
    """A forecaster of a row, and what its scores depend on beside the data."""

    name: str
    label: str
    forecaster: AtomForecaster
    key: Mapping[str, Any]
    samples: bool = True
    parameters: int = 0
    steps: int = 0
    together: Callable[[Sequence[Any]], Forecasts] | None = None


@dataclass(eq=False, kw_only=True)
class _Ways:
    """Scores of the ways to ask one model, made together where that takes less time."""

    contenders: Sequence[_Contender]
    arena: Arena
    sparing: Sparing
    made: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def scores(self, name: str) -> Mapping[str, Any]:
        """Return the scores of a way, and make those of the ways after it with them."""
        if name not in self.made:
            first = [one.name for one in self.contenders].index(name)
            together = self.contenders[first].together
            some = self.contenders[first:] if together else self.contenders[first : first + 1]
            forecasters = [one.forecaster for one in some]
            found = self.arena.scores_together(
                forecasters,
                together(forecasters) if together else None,
                samples=[one.samples for one in some],
                sparing=self.sparing,
            )
            self.made = {one.name: scores for one, scores in zip(some, found, strict=True)}
        return self.made.pop(name)


def _trained(
    row: MotionRow, training: MotionTraining, seed: int, arena: Arena, place: StudyFolder
) -> list[_Contender]:
    """Train a row, or read what was trained; with it come the other ways to ask it."""
    system = arena.system
    folder = run_folder(place.runs, system.name, row.name, seed)
    place.say(f"{system.name}/{row.name}, seed {seed}: {folder}")
    model, seconds = trained_run(training, system, folder, place.progress())
    if seconds is not None:
        place.took({f"train {system.name}/{row.name} seed {seed}": seconds})
    first = _Contender(
        name=row.name,
        label=row.label,
        forecaster=model,
        key={"weights": atomic.sha256(folder / WEIGHTS)},
        parameters=parameters(model),
        steps=int(model.provenance["steps"]),
    )
    way = training.kind.other_way
    if way is None:
        return [first]
    first = replace(first, together=way.together)
    others = [
        replace(
            first,
            name=f"{row.name}@{number}",
            label=f"{row.label}, {way.said.format(number)}",
            forecaster=way.forecaster(model, number),
            samples=way.samples,
        )
        for number in row.decoded
    ]
    return [first, *others]


def _fitted(row: MotionRow, fitting: MotionFitting) -> _Contender:
    return _Contender(
        name=row.name,
        label=row.label,
        forecaster=fitting.kind.make(fitting.settings),
        key={"fitted": fitting.described()},
    )


def remarks(
    forecaster: AtomForecaster,
    row: MotionRow,
    arena: Arena,
    seeds: Sequence[Mapping[str, Any]],
) -> tuple[str, ...]:
    """Say of a row what its numbers do not: how it was asked, what was left out, what went wrong.

    Args:
        forecaster: Of any seed.
        row: Of the protocol.
        arena: Where it was scored.
        seeds: Its scores.
    """
    said = [forecaster.remark] if isinstance(forecaster, Remarked) else []
    atoms, system = arena.atoms_of(forecaster), arena.source.system
    if atoms is not None:
        said.append(
            f"forecasts and is scored on {len(atoms)} of {len(system)} atoms, as are the trivial "
            "rows of its skill"
        )
    left = row.spared(arena.system.name)
    if left.starts:
        said.append(f"scored from {_starts(left.starts)} of each recording at most")
    if left.frames:
        said.append(f"scored at {left.frames} frames after the standard start at most")
    if left.samples:
        said.append(f"its distribution by {left.samples} samples at most")
    if left.sample_starts:
        said.append(f"its samples from {_starts(left.sample_starts)} at most")
    each = [one for scores in seeds for one in scores.values()]
    if any(one.get("at_rest") for one in each):
        said.append("forecasts no velocities, which count as 0 in the published error")
    gone = [one["diverged"] for one in each if "diverged" in one]
    if gone:
        share = max(one["share"] for one in gone)
        some = "" if share == 1 else f", of at most {share:.0%} of its samples"
        said.append(
            f"diverged in {sum(one['windows'] for one in gone)} of "
            f"{gone[0]['of'] * len(each)} windows{some}, first after "
            f"{min(one['after_ps'] for one in gone):g} ps; from there on the last possible frame "
            "counts"
        )
    return tuple(said)


def _starts(count: int) -> str:
    return f"{count} start{'' if count == 1 else 's'}"


def _trivial_rows(arena: Arena, place: StudyFolder) -> list[RowScores]:
    place.say(f"{arena.system.name}: trivial rows")
    name = f"{arena.system.name}/{TRIVIAL}"
    return [
        RowScores(
            name=forecaster.name,
            label=forecaster.name,
            kind="trivial",
            seeds=(
                _kept(
                    arena,
                    _rules(arena, {"fitted windows": FITTED_WINDOWS}),
                    f"{name}/{'-'.join(re.findall('[a-z]+', forecaster.name))}",
                    partial(arena.scores, forecaster),
                    place,
                ),
            ),
        )
        for forecaster in arena.trivial()
    ]


def _rules(arena: Arena, key: Mapping[str, Any], sparing: Sparing | None = None) -> dict[str, Any]:
    """Return what scores depend on beside data and scoring."""
    rules = {**key, "energies": arena.has_energies}
    left = {} if sparing is None else {n: v for n, v in asdict(sparing).items() if v}
    return rules | {"sparing": left} if left else rules


def _kept(
    arena: Arena,
    key: Mapping[str, Any],
    name: str,
    made: Callable[[], Mapping[str, Any]],
    place: StudyFolder,
) -> dict[str, Any]:
    """Return scores of a system, kept under what they depend on, data and rules."""
    asked = {
        **key,
        "data": arena.source.sha256,
        "system": asdict(arena.asked),
        "scoring": asdict(arena.scoring),
    }
    for part in ("preset", "set", "seeds"):
        del asked["system"][part]
    asked["system"]["linear_ps"] = list(arena.asked.linear_ps)
    return place.kept(name, asked, made)
