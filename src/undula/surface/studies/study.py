"""A study from its protocol to its scores: train what is missing, score what is not scored yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from undula import atomic
from undula.errors import InputError, UsageError
from undula.io.datasets import Dataset
from undula.learn.progress import Progress
from undula.learn.study_folder import StudyFolder
from undula.locks import claims
from undula.surface.forecasters import (
    BLURRED,
    COPIED,
    DILATED,
    ELLIPSOID,
    ERODED,
    OTHERS,
    fitted_numbers,
)
from undula.surface.specialisation import Routing, routing
from undula.surface.studies.protocol import Protocol, Roles, StudyRow
from undula.surface.studies.relatives import Relative, relatives
from undula.surface.studies.runs import (
    Training,
    active_parameters,
    parameters,
    router_parameters,
    run_folder,
    trained_run,
)
from undula.surface.studies.stage import FLOOR, Scores, Stage, stage
from undula.surface.trained import WEIGHTS
from undula.surface.trained_mixture import TrainedMixture

Means = dict[str, float]
"""Measure → mean over the frames and replicas of one protein."""
Rows = dict[str, dict[str, Means]]
"""Row name → protein → measure → mean."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RowResult:
    """What became of a row.

    Attributes:
        row: The row.
        training: Its configuration, of the first seed.
        seeds: Those that were trained, in order.
        means: For each seed, protein → measure → mean.
        spreads: For each seed, what it is worth as a distribution: of its samples and of its
            typical surface; empty where no table asks.
        routings: For each seed, which expert every protein gets, training proteins first.
        parameters: All weights, those that answer for one protein, and those of the router.
        steps: That the kept weights of each seed were trained for.
        plateaus: What `undula.learn.plateau.Plateau.plain` said at the end of each seed's
            training; none of one that had so many steps and no more.
    """

    row: StudyRow
    training: Training
    seeds: tuple[int, ...]
    means: tuple[dict[str, Means], ...]
    spreads: tuple[Rows, ...]
    routings: tuple[Routing, ...]
    parameters: tuple[int, int, int]
    steps: tuple[int, ...]
    plateaus: tuple[Mapping[str, Any] | None, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyResult:
    """All that the tables of a study are made of.

    Attributes:
        protocol: What was asked.
        roles: Which data set served for what.
        rows: Row name → result, of those that were trained, in the protocol's order.
        still: Trivial rows.
        oracles: Rows that have seen the truth's later frames.
        still_spreads: Trivial rows as distributions, where a table asks.
        oracle_spreads: Oracles as distributions, of the proteins that have one.
        fitted: How the trivial rows came by their numbers.
        halves: Test proteins whose noise floor is the other half of the one replica there is.
        relatives: Training proteins similar to test proteins.
        skipped: Row name → why it could not be trained.
    """

    protocol: Protocol
    roles: Roles
    rows: dict[str, RowResult]
    still: Rows
    oracles: Rows
    still_spreads: Rows
    oracle_spreads: Rows
    fitted: str
    halves: tuple[str, ...]
    relatives: tuple[Relative, ...]
    skipped: dict[str, str]

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the test proteins."""
        return tuple(dataset.structure.name for dataset in self.roles.test)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one process of several does of a study: it trains and scores a row with one seed.

    Attributes:
        row: Of the protocol.
        seed: Of its training.
    """

    row: str
    seed: int

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.row}, seed {self.seed}"

    @property
    def left_out(self) -> str:
        """What is left out of the study where it fails."""
        return self.row


Elsewhere = Callable[[Sequence[Part]], tuple[Mapping[str, float], Mapping[str, str]]]
"""Does parts of a study in other processes, each with `run_part`. Returns what took how long, s,
and row → why it could not be trained."""


def run_part(
    part: Part,
    protocol: Protocol,
    roles: Roles,
    training_of: Callable[[StudyRow, int], Training],
    stages: Stages,
    *,
    runs: Path,
    out: Path,
    progress: Callable[[], Progress],
) -> dict[str, float]:
    """Do one part of a study: its files are then there for `run_study`, byte by byte.

    The process that asks for it holds ``out``.

    Args:
        part: Which.
        protocol: Rows, seeds, scoring.
        roles: The data sets.
        training_of: As of `run_study`.
        stages: The test proteins; the next part of the same process may use them again.
        runs: Where the run folders lie.
        out: Where the scores go.
        progress: Makes a listener for a training.

    Returns:
        What took how long, s.

    Raises:
        InputError: It cannot be trained.
    """
    place = StudyFolder(runs=runs, out=out, progress=progress, keeps_times=False)
    [row] = _chosen(protocol, [part.row])
    _row(row, {part.seed: training_of(row, part.seed)}, roles, stages, place)
    return place.seconds


@claims("out")
def run_study(
    protocol: Protocol,
    roles: Roles,
    training_of: Callable[[StudyRow, int], Training],
    *,
    runs: Path,
    out: Path,
    only: Sequence[str],
    progress: Callable[[], Progress],
    say: Callable[[str], None],
    elsewhere: Elsewhere | None = None,
) -> StudyResult:
    """Train the rows of a protocol that have no finished run, and score all on test proteins.

    The data sets of test proteins are handed to no training. What is finished is not done
    again: run folders and score files are kept, the latter under the SHA-256 of weights and
    data. How long things took is in ``times.json`` alone, so that everything else repeats.

    Args:
        protocol: Rows, seeds, scoring.
        roles: The data sets.
        training_of: The configuration of a row and a seed, without ``batch.validation``.
        runs: Where the run folders lie.
        out: Where the scores go.
        only: Names of the rows to take; all of the protocol if it is empty.
        progress: Makes a listener for each training.
        say: Told which row comes next, in one line.
        elsewhere: Where to do first what other processes can do; by default it is done here.

    Raises:
        UsageError: There is no such row; a run folder holds another configuration.
        InputError: A test protein is trained on; no row could be trained.
    """
    chosen = _chosen(protocol, only)
    plans = [
        (row, {seed: training_of(row, seed) for seed in row.of(protocol.seeds)}) for row in chosen
    ]
    place = StudyFolder(runs=runs, out=out, progress=progress, say=say)
    similar = relatives(roles.test, roles.training)
    seconds, failed = ({}, {}) if elsewhere is None else elsewhere(_parts(plans))
    place.took(seconds)
    stages = Stages(protocol, roles.test)
    rows: dict[str, RowResult] = {}
    skipped: dict[str, str] = {}
    first: TrainedMixture | None = None
    for row, trainings in plans:
        try:
            if row.name in failed:
                raise InputError(failed[row.name])
            rows[row.name], model = _row(row, trainings, roles, stages, place)
        except InputError as error:
            skipped[row.name] = str(error)
            say(f"{row.name} is left out: {error}")
        else:
            first = first or model
    if first is None:
        raise InputError(f"no row could be trained: {'; '.join(skipped.values())}")
    still, oracles = _rows_without_training(first, stages, place)
    asked = bool(protocol.distributions & rows.keys())
    spreads = _spreads_without_training(first, stages, place) if asked else ({}, {})
    return StudyResult(
        protocol=protocol,
        roles=roles,
        rows=rows,
        still=still,
        oracles=oracles,
        still_spreads=spreads[0],
        oracle_spreads=spreads[1],
        fitted=fitted_numbers(first),
        halves=tuple(d.structure.name for d in roles.test if len(d.trajectories) < 2),
        relatives=similar,
        skipped=skipped,
    )


def _parts(plans: Sequence[tuple[StudyRow, Mapping[int, Training]]]) -> list[Part]:
    """Return what other processes can do; what starts from another run may have to wait for it."""
    return [
        Part(row=row.name, seed=seed)
        for row, trainings in plans
        for seed, training in trainings.items()
        if training.start_from is None
    ]


class Stages:
    """The test proteins of a study, each set up when it is first needed.

    Args:
        protocol: How to score.
        datasets: The test proteins.
    """

    def __init__(self, protocol: Protocol, datasets: Sequence[Dataset]) -> None:
        self.scoring = protocol.scoring
        self.distributions = protocol.distributions
        self.datasets = datasets
        self._made: dict[str, list[Stage]] = {}

    def of(self, dataset: Dataset) -> list[Stage]:
        """Return a stage for each replica of a protein."""
        name = dataset.structure.name
        if name not in self._made:
            count = min(self.scoring.replicas, len(dataset.trajectories))
            self._made[name] = [stage(dataset, i, self.scoring) for i in range(count)]
        return self._made[name]


def _chosen(protocol: Protocol, only: Sequence[str]) -> list[StudyRow]:
    known = [row.name for row in protocol.rows]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"there is no row {unknown[0]} in {protocol.name}: {', '.join(known)}")
    return [row for row in protocol.rows if not only or row.name in only]


def _row(
    row: StudyRow,
    trainings: Mapping[int, Training],
    roles: Roles,
    stages: Stages,
    place: StudyFolder,
) -> tuple[RowResult, TrainedMixture]:
    """Train and score a row with every seed."""
    means: list[dict[str, Means]] = []
    spreads: list[Rows] = []
    routings: list[Routing] = []
    provenances: list[Mapping[str, Any]] = []
    datasets = [*roles.training, *roles.test]
    model: TrainedMixture | None = None
    for seed, training in trainings.items():
        folder = run_folder(place.runs, row.name, seed)
        place.say(f"{row.name}, seed {seed}: {folder}")
        model, seconds = trained_run(training, roles.training, folder, place.progress())
        if seconds is not None:
            place.took({f"train {row.name} seed {seed}": seconds})
        provenances.append(model.provenance)
        means.append(_model_means(model, folder, f"{row.name}/seed-{seed}", stages, place))
        if row.name in stages.distributions:
            spreads.append(_model_spreads(model, folder, f"{row.name}/seed-{seed}", stages, place))
        routings.append(routing(model, [dataset.structure for dataset in datasets]))
    assert model is not None
    return (
        RowResult(
            row=row,
            training=next(iter(trainings.values())),
            seeds=tuple(trainings),
            means=tuple(means),
            spreads=tuple(spreads),
            routings=tuple(routings),
            parameters=(
                parameters(model.model),
                active_parameters(model.model),
                router_parameters(model.model),
            ),
            steps=tuple(int(one["steps"]) for one in provenances),
            plateaus=tuple(one.get("plateau") for one in provenances),
        ),
        model,
    )


def _model_means(
    model: TrainedMixture, folder: Path, name: str, stages: Stages, place: StudyFolder
) -> dict[str, Means]:
    weights = atomic.sha256(folder / WEIGHTS)
    found: dict[str, Means] = {}
    for dataset in stages.datasets:
        protein = dataset.structure.name

        def scores(dataset: Dataset = dataset) -> dict[str, Scores]:
            each = [one.model_scores(model) for one in stages.of(dataset)]
            return {"model": _joined(each)}

        kept = _kept(dataset, {"weights": weights}, f"{name}/{protein}", scores, stages, place)
        found[protein] = _means(kept["model"])
    return found


def _model_spreads(
    model: TrainedMixture, folder: Path, name: str, stages: Stages, place: StudyFolder
) -> Rows:
    key = {"weights": atomic.sha256(folder / WEIGHTS)}
    return _rows_of(lambda one: one.model_spread(model), key, name, "-spread", stages, place)


def _rows_without_training(
    model: TrainedMixture, stages: Stages, place: StudyFolder
) -> tuple[Rows, Rows]:
    """Return the trivial rows and the oracles."""
    still = _rows_of(
        lambda one: one.trivial_scores(model), _fitted(model), "trivial", "", stages, place
    )
    oracles = _rows_of(lambda one: one.oracle_scores(), {}, "oracle", "", stages, place)
    return (
        dict(sorted(still.items(), key=_place_of)),
        {name: oracles[name] for name in (FLOOR, OTHERS)},
    )


def _spreads_without_training(
    model: TrainedMixture, stages: Stages, place: StudyFolder
) -> tuple[Rows, Rows]:
    """Return the trivial rows and the oracles as distributions."""
    still = _rows_of(
        lambda one: one.trivial_spread(model), _fitted(model), "trivial", "-spread", stages, place
    )
    oracles = _rows_of(lambda one: one.oracle_spread(), {}, "oracle", "-spread", stages, place)
    return dict(sorted(still.items(), key=_place_of)), oracles


def _fitted(model: TrainedMixture) -> dict[str, object]:
    """Return the numbers of the trivial rows, all fitted on training proteins."""
    return {"blur": asdict(model.blur), "shifts": model.shifts and asdict(model.shifts)}


def _rows_of(
    scores: Callable[[Stage], dict[str, Scores]],
    key: Mapping[str, object],
    name: str,
    ending: str,
    stages: Stages,
    place: StudyFolder,
) -> Rows:
    """Return the rows that every stage gives, by name and protein, kept under a name."""
    found: Rows = {}
    for dataset in stages.datasets:
        protein = dataset.structure.name

        def joined(dataset: Dataset = dataset) -> dict[str, Scores]:
            return _joined_rows([scores(one) for one in stages.of(dataset)])

        kept = _kept(dataset, key, f"{name}/{protein}{ending}", joined, stages, place)
        for row, measured in kept.items():
            found.setdefault(row, {})[protein] = _means(measured)
    return found


def _place_of(row: tuple[str, object]) -> int:
    """Return where a trivial row stands: the copy first, then what is a little less trivial."""
    known = (COPIED, DILATED, ERODED, BLURRED, ELLIPSOID)
    return known.index(row[0]) if row[0] in known else len(known)


def _kept(
    dataset: Dataset,
    key: Mapping[str, object],
    name: str,
    scores: Callable[[], dict[str, Scores]],
    stages: Stages,
    place: StudyFolder,
) -> dict[str, Scores]:
    """Return the scores of a protein, kept under weights or numbers, data and rules."""
    asked = {**key, "data": dataset.sha256, "scoring": asdict(stages.scoring)}
    return place.kept(name, asked, scores)


def _joined(each: Sequence[Scores]) -> Scores:
    """Put the frames of several replicas behind each other; a measure may lack in some."""
    names = dict.fromkeys(name for one in each for name in one)
    return {name: [value for one in each for value in one.get(name, ())] for name in names}


def _joined_rows(each: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    names = dict.fromkeys(name for one in each for name in one)
    return {name: _joined([one[name] for one in each if name in one]) for name in names}


def _means(scores: Scores) -> Means:
    return {name: float(np.mean(values)) for name, values in scores.items()}
