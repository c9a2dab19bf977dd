"""A study from its protocol to its scores: train what is missing, score what is not scored yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from undula import atomic
from undula.errors import InputError, UsageError
from undula.io.datasets import Dataset, read_json
from undula.learn.progress import Progress
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
from undula.surface.studies.stage import FLOOR, MAJORITY, Scores, Stage, stage
from undula.surface.trained import WEIGHTS
from undula.surface.trained_mixture import TrainedMixture

Means = dict[str, float]
"""Measure → mean over the frames and replicas of one protein."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RowResult:
    """What became of a row.

    Attributes:
        row: The row.
        training: Its configuration, of the first seed.
        seeds: Those that were trained, in order.
        means: For each seed, protein → measure → mean.
        routings: For each seed, which expert every protein gets, training proteins first.
        parameters: All weights, those that answer for one protein, and those of the router.
    """

    row: StudyRow
    training: Training
    seeds: tuple[int, ...]
    means: tuple[dict[str, Means], ...]
    routings: tuple[Routing, ...]
    parameters: tuple[int, int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyResult:
    """All that the tables of a study are made of.

    Attributes:
        protocol: What was asked.
        roles: Which data set served for what.
        rows: Row name → result, of those that were trained, in the protocol's order.
        still: Trivial rows: name → protein → measure → mean.
        oracles: The same of rows that have seen the truth's later frames.
        halves: Test proteins whose noise floor is the other half of the one replica there is.
        relatives: Training proteins similar to test proteins.
        skipped: Row name → why it could not be trained.
    """

    protocol: Protocol
    roles: Roles
    rows: dict[str, RowResult]
    still: dict[str, dict[str, Means]]
    oracles: dict[str, dict[str, Means]]
    halves: tuple[str, ...]
    relatives: tuple[Relative, ...]
    skipped: dict[str, str]

    @property
    def systems(self) -> tuple[str, ...]:
        """Names of the test proteins."""
        return tuple(dataset.structure.name for dataset in self.roles.test)


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

    Raises:
        UsageError: There is no such row; a run folder holds another configuration.
        InputError: A test protein is trained on; no row could be trained.
    """
    chosen = _chosen(protocol, only)
    plans = [(row, {seed: training_of(row, seed) for seed in protocol.seeds}) for row in chosen]
    place = _Workplace(runs=runs, out=out, progress=progress, say=say)
    similar = relatives(roles.test, roles.training)
    stages = _Stages(protocol, roles.test)
    rows: dict[str, RowResult] = {}
    skipped: dict[str, str] = {}
    first: TrainedMixture | None = None
    for row, trainings in plans:
        try:
            rows[row.name], model = _row(row, trainings, roles, stages, place)
        except InputError as error:
            skipped[row.name] = str(error)
            say(f"{row.name} is left out: {error}")
        else:
            first = first or model
    if first is None:
        raise InputError(f"no row could be trained: {'; '.join(skipped.values())}")
    still, oracles = _rows_without_training(first, stages, place)
    return StudyResult(
        protocol=protocol,
        roles=roles,
        rows=rows,
        still=still,
        oracles=oracles,
        halves=tuple(d.structure.name for d in roles.test if len(d.trajectories) < 2),
        relatives=similar,
        skipped=skipped,
    )


class _Stages:
    """The test proteins, each set up when it is first needed."""

    def __init__(self, protocol: Protocol, datasets: Sequence[Dataset]) -> None:
        self.scoring = protocol.scoring
        self.datasets = datasets
        self._made: dict[str, list[Stage]] = {}

    def of(self, dataset: Dataset) -> list[Stage]:
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
    stages: _Stages,
    place: _Workplace,
) -> tuple[RowResult, TrainedMixture]:
    """Train and score a row with every seed."""
    means: list[dict[str, Means]] = []
    routings: list[Routing] = []
    datasets = [*roles.training, *roles.test]
    model: TrainedMixture | None = None
    for seed, training in trainings.items():
        folder = run_folder(place.runs, row.name, seed)
        place.say(f"{row.name}, seed {seed}: {folder}")
        model, seconds = trained_run(training, roles.training, folder, place.progress())
        if seconds is not None:
            place.timed(f"train {row.name} seed {seed}", seconds)
        means.append(_model_means(model, folder, f"{row.name}/seed-{seed}", stages, place))
        routings.append(routing(model, [dataset.structure for dataset in datasets]))
    assert model is not None
    return (
        RowResult(
            row=row,
            training=next(iter(trainings.values())),
            seeds=tuple(trainings),
            means=tuple(means),
            routings=tuple(routings),
            parameters=(
                parameters(model.model),
                active_parameters(model.model),
                router_parameters(model.model),
            ),
        ),
        model,
    )


def _model_means(
    model: TrainedMixture, folder: Path, name: str, stages: _Stages, place: _Workplace
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


def _rows_without_training(
    model: TrainedMixture, stages: _Stages, place: _Workplace
) -> tuple[dict[str, dict[str, Means]], dict[str, dict[str, Means]]]:
    still: dict[str, dict[str, Means]] = {}
    oracles: dict[str, dict[str, Means]] = {FLOOR: {}, MAJORITY: {}}
    for dataset in stages.datasets:
        protein = dataset.structure.name

        def trivial(dataset: Dataset = dataset) -> dict[str, Scores]:
            return _joined_rows([one.trivial_scores(model) for one in stages.of(dataset)])

        def oracle(dataset: Dataset = dataset) -> dict[str, Scores]:
            return _joined_rows([one.oracle_scores() for one in stages.of(dataset)])

        key = {"blur": asdict(model.blur)}
        for name, scores in _kept(
            dataset, key, f"trivial/{protein}", trivial, stages, place
        ).items():
            still.setdefault(name, {})[protein] = _means(scores)
        for name, scores in _kept(dataset, {}, f"oracle/{protein}", oracle, stages, place).items():
            oracles[name][protein] = _means(scores)
    return dict(sorted(still.items(), key=_place_of)), oracles


def _place_of(row: tuple[str, object]) -> int:
    """Return where a trivial row stands: the copy first, then what is a little less trivial."""
    known = ("copied first frame", "blurred first frame", "best ellipsoid")
    return known.index(row[0]) if row[0] in known else len(known)


def _kept(
    dataset: Dataset,
    key: Mapping[str, object],
    name: str,
    scores: Callable[[], dict[str, Scores]],
    stages: _Stages,
    place: _Workplace,
) -> dict[str, Scores]:
    """Return scores from their file if it is of the same weights, data and rules; or make it."""
    path = place.out / "scores" / f"{name}.json"
    asked = {**key, "data": dataset.sha256, "scoring": asdict(stages.scoring)}
    if path.is_file():
        known = read_json(path)
        if known.get("of") == asked:
            found: dict[str, Scores] = known["scores"]
            return found
    began = time.perf_counter()
    made = scores()
    place.timed(f"score {name}", time.perf_counter() - began)
    atomic.write_json(path, {"of": asked, "scores": made})
    # As it will be read the next time, in the same order.
    again: dict[str, Scores] = read_json(path)["scores"]
    return again


def _joined(each: Sequence[Scores]) -> Scores:
    """Put the frames of several replicas behind each other."""
    return {name: [value for one in each for value in one[name]] for name in each[0]}


def _joined_rows(each: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    return {name: _joined([one[name] for one in each]) for name in each[0]}


def _means(scores: Scores) -> Means:
    return {name: float(np.mean(values)) for name, values in scores.items()}
