"""``undula evaluate``: a forecast against what really happened, beside the trivial forecasts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from undula.cli.options import (
    MEMORY_LIMIT,
    STRICT,
    flush_denormals,
    parse,
    parser,
    seed,
    tell_estimate,
)
from undula.cli.processes import AnyPart, in_processes
from undula.errors import InputError, Notice, UsageError
from undula.estimates import asked_bytes, memory_limit
from undula.notices import merged, refuse, tell, write_report

if TYPE_CHECKING:
    from undula.io.datasets import Dataset
    from undula.motion.studies.protocol import MotionProtocol, MotionRow, Opened
    from undula.motion.studies.runs import MotionFitting, MotionTraining
    from undula.motion.studies.study import Part as MotionPart
    from undula.surface.studies.protocol import Protocol, Roles, StudyRow
    from undula.surface.studies.runs import Training
    from undula.surface.studies.study import Part, Stages
    from undula.types import Structure, Trajectory


def run(words: Sequence[str]) -> int:
    """Score a forecast, or run a study; write tables, plots and pages."""
    if any(word == "--protocol" or word.startswith("--protocol=") for word in words):
        from undula.cli.configured import protocol_kind

        kind = protocol_kind(_protocol_name(words))
        return _run_motion_study(words) if kind == "motion" else _run_study(words)
    return _run_result(words)


def _protocol_name(words: Sequence[str]) -> str:
    """Return the protocol that the words name.

    Raises:
        UsageError: The flag stands at the end.
    """
    for index, word in enumerate(words):
        if word.startswith("--protocol="):
            return word.split("=", 1)[1]
        if word == "--protocol" and index + 1 < len(words):
            return words[index + 1]
    raise UsageError("--protocol names a study: moe-dsr, domino, or the path of a protocol file")


def _run_result(words: Sequence[str]) -> int:
    """Score a forecast; write table, plots and a page that shows truth beside forecast."""
    p = parser(
        "evaluate",
        "Score a forecast against a trajectory, beside the trivial forecasts. undula evaluate "
        "--protocol NAME|FILE trains and scores the rows of a study; add --help to it.",
    )
    p.add_argument("result", help="result folder of undula forecast")
    p.add_argument(
        "--truth",
        required=True,
        help="the trajectory that starts at the structure or, for atoms, goes on after the window "
        "on its clock",
    )
    p.add_argument(
        "--topology", help="structure file of the truth, if its atoms are not the forecast's"
    )
    p.add_argument("--samples", type=int, default=20_000, help="per mesh, for the distances")
    p.add_argument("--spacing", type=float, default=1.0, help="of the lattice for IoU, Å")
    p.add_argument("--seed", type=seed, default=0, help="of the samples")
    p.add_argument("--memory-limit", **MEMORY_LIMIT)
    p.add_argument("--strict", **STRICT)
    p.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parse(p, words)
    asked_bytes(options.memory_limit)

    from undula.motion.forecast import holds_atoms

    if holds_atoms(Path(options.result)):
        return _run_atoms(options)
    from undula.surface.estimates import fitted
    from undula.surface.evaluation import EvaluationConfig, evaluate
    from undula.surface.forecast import MovingSurface
    from undula.viz.export import write_evaluation

    flush_denormals()
    moving = MovingSurface.load(Path(options.result))
    limit = memory_limit(asked_bytes(options.memory_limit))
    asked = replace(moving.work, spacing=options.spacing, times=1)
    work, expected = fitted(moving.size, asked, limit, moving.structure.name)
    tell_estimate(expected)
    moving = replace(moving, kept_bytes=work.kept_bytes)
    truth = _truth(options, moving.structure)
    config = EvaluationConfig(samples=options.samples, spacing=options.spacing, seed=options.seed)
    evaluation = evaluate(moving, truth, config)
    evaluation = replace(evaluation, notices=_told(options, truth, evaluation.notices))
    table = write_evaluation(moving, evaluation, Path(options.result))
    print(json.dumps(table.as_dict(), indent=1) if options.json else table.terminal())
    return 0


def _run_atoms(options: Namespace) -> int:
    """Score a forecast of atoms; write table, plot and a page that shows truth beside forecast."""
    from undula.motion.forecast import MovingAtoms
    from undula.motion.forecast_scores import evaluate_atoms
    from undula.viz.atoms_export import write_atom_evaluation

    folder = Path(options.result)
    moving = MovingAtoms.load(folder)
    truth = _truth(options, moving.system.structure)
    evaluation = evaluate_atoms(moving, truth)
    evaluation = replace(evaluation, notices=_told(options, truth, evaluation.notices))
    table = write_atom_evaluation(moving, evaluation, folder)
    print(json.dumps(table.as_dict(), indent=1) if options.json else table.terminal())
    return 0


def _truth(options: Namespace, structure: Structure) -> Trajectory:
    """Read the truth, of the forecast's atoms unless a topology names others."""
    from undula.data.observed import check_frames
    from undula.io.trajectories import check_moves, load_trajectory, open_trajectory

    path = Path(options.truth)
    frames = open_trajectory(path).frames
    check_frames(structure, path, frames, asked_bytes(options.memory_limit))
    truth = load_trajectory(options.topology or structure, path)
    check_moves(Path(options.truth), truth.positions)
    refuse(_of(options, truth, ()), strict=options.strict)
    return truth


def _told(options: Namespace, truth: Trajectory, notices: Sequence[Notice]) -> tuple[Notice, ...]:
    """Tell all notices of an evaluation, those of the truth's topology among them."""
    found = _of(options, truth, notices)
    refuse(found, strict=options.strict)
    tell(found)
    return found


def _of(options: Namespace, truth: Trajectory, notices: Sequence[Notice]) -> tuple[Notice, ...]:
    topology = truth.structure.notices if options.topology else ()
    return tuple(merged([*topology, *truth.notices, *notices]))


_STEPS: dict[str, Any] = {"type": int, "help": "of every training, in place of the presets'"}
_UNTIL_PLATEAU: dict[str, Any] = {
    "action": "store_true",
    "help": "go on with every training, in cycles of its steps, until one improves the "
    "validation too little",
}
_JOBS: dict[str, Any] = {
    "type": int,
    "default": 1,
    "help": "train and score so many rows at once, each in a process with the memory and the "
    "threads (OMP_NUM_THREADS) of one; the tables are the same (default: 1)",
}


def _study_parsed(p: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse the words of a study of either kind.

    Raises:
        UsageError: They cannot be meant.
    """
    options = parse(p, words)
    if options.jobs < 1:
        raise UsageError(f"--jobs is at least 1, not {options.jobs}")
    return options


def _study_options(words: Sequence[str]) -> Namespace:
    p = parser(
        "evaluate --protocol",
        "Train what has no finished run yet, score all on test proteins, print the tables.",
    )
    p.add_argument("--protocol", required=True, help="moe-dsr, or the path of a protocol file")
    p.add_argument("--data", nargs="+", required=True, help="data set folders, one per protein")
    p.add_argument("--runs", required=True, help="where the run folders lie, one per row and seed")
    p.add_argument("-o", "--out", required=True, help="the folder for scores and tables")
    p.add_argument("--test", nargs="+", help="test proteins, in place of the protocol's")
    p.add_argument("--split", help="a file of undula data split, in place of its proteins")
    p.add_argument("--seeds", nargs="+", type=int, help="in place of the protocol's")
    p.add_argument("--steps", **_STEPS)
    p.add_argument("--until-plateau", **_UNTIL_PLATEAU)
    p.add_argument("--only", nargs="+", default=[], help="rows to take; by default all")
    p.add_argument("--jobs", **_JOBS)
    p.add_argument("--frames", type=int, help="scored per trajectory, in place of the protocol's")
    p.add_argument("--ecod", help="ECOD's domain file, for its classes in the table of experts")
    p.add_argument("--strict", **STRICT)
    p.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    return _study_parsed(p, words)


class _Study(NamedTuple):
    """A study of surfaces as it is asked for: its data sets, and what trains its rows."""

    protocol: Protocol
    datasets: list[Dataset]
    roles: Roles
    training_of: Callable[[StudyRow, int], Training]


def _study_asked(options: Namespace, *, verify: bool) -> _Study:
    """Return the study with what the flags say in place of its protocol's own."""
    from undula.cli.configured import read_protocol, row_training
    from undula.io.datasets import open_dataset
    from undula.surface.studies.protocol import roles

    protocol = _changed(read_protocol(options.protocol), options)
    datasets = [open_dataset(Path(folder), verify=verify) for folder in options.data]
    chosen = roles(protocol.proteins, datasets)

    def training_of(row: StudyRow, seed: int) -> Training:
        return row_training(
            row, seed, options.steps, chosen.validation, until_plateau=options.until_plateau
        )

    return _Study(protocol, datasets, chosen, training_of)


def _run_study(words: Sequence[str]) -> int:
    """Train the rows of a protocol, score them on proteins they have not seen, print tables."""
    options = _study_options(words)

    from undula.learn.progress import progress_on
    from undula.surface.studies.study import run_study
    from undula.viz.study_export import write_study

    flush_denormals()
    asked = _study_asked(options, verify=True)
    told = [notice for dataset in asked.datasets for notice in dataset.notices]
    refuse(told, strict=options.strict)
    out = Path(options.out)
    study = run_study(
        asked.protocol,
        asked.roles,
        asked.training_of,
        runs=Path(options.runs),
        out=out,
        only=options.only,
        progress=lambda: progress_on(sys.stderr),
        say=lambda line: print(line, file=sys.stderr, flush=True),
        elsewhere=_elsewhere(_study_part, words, options.jobs),
    )
    text, values = write_study(study, out, None if options.ecod is None else Path(options.ecod))
    write_report(out, [*told, *_left_out(study.skipped)], protocol=asked.protocol.name)
    print(json.dumps(values, indent=1) if options.json else text)
    return 6 if study.skipped else 0


def _study_part(words: list[str], part: Part) -> tuple[dict[str, float], str | None]:
    """Do one part of a study of surfaces in a process of its own."""
    from undula.learn.progress import SilentProgress
    from undula.surface.studies.study import run_part

    options, asked, stages = _study_here(tuple(words))
    try:
        seconds = run_part(
            part,
            asked.protocol,
            asked.roles,
            asked.training_of,
            stages,
            runs=Path(options.runs),
            out=Path(options.out),
            progress=SilentProgress,
        )
    except InputError as error:
        return {}, str(error)
    return seconds, None


@lru_cache(maxsize=1)
def _study_here(words: tuple[str, ...]) -> tuple[Namespace, _Study, Stages]:
    """Return what all parts that a process does have in common, set up once."""
    from undula.surface.studies.study import Stages

    flush_denormals()
    options = _study_options(words)
    asked = _study_asked(options, verify=False)
    return options, asked, Stages(asked.protocol, asked.roles.test)


def _motion_options(words: Sequence[str]) -> Namespace:
    p = parser(
        "evaluate --protocol",
        "Train what has no finished run yet, score all on test recordings beside the trivial "
        "rows, print the tables.",
    )
    p.add_argument("--protocol", required=True, help="domino, or the path of a protocol file")
    p.add_argument(
        "--data",
        nargs="+",
        required=True,
        help="folders of recordings: SYSTEM=FOLDER, or a folder that is named like its system",
    )
    p.add_argument("--runs", required=True, help="where the run folders lie")
    p.add_argument("-o", "--out", required=True, help="the folder for scores, tables and figures")
    p.add_argument("--systems", nargs="+", help="in place of all that have a folder")
    p.add_argument("--seeds", nargs="+", type=int, help="in place of the protocol's")
    p.add_argument("--steps", **_STEPS)
    p.add_argument("--until-plateau", **_UNTIL_PLATEAU)
    p.add_argument(
        "--only", nargs="+", default=[], help='rows to take, "trivial" for no model; by default all'
    )
    p.add_argument("--jobs", **_JOBS)
    p.add_argument("--strict", **STRICT)
    p.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    return _study_parsed(p, words)


def _motion_asked(
    options: Namespace,
) -> tuple[MotionProtocol, Callable[[MotionRow, Opened, int], MotionTraining | MotionFitting]]:
    """Return the protocol with what the flags say in place of its own, and what trains its rows."""
    from undula.cli.configured import motion_contender, read_motion_protocol

    protocol = read_motion_protocol(options.protocol)
    protocol = replace(protocol, seeds=options.seeds or protocol.seeds)

    def training_of(row: MotionRow, system: Opened, seed: int) -> MotionTraining | MotionFitting:
        return motion_contender(
            row, system, seed, options.steps, until_plateau=options.until_plateau
        )

    return protocol, training_of


def _run_motion_study(words: Sequence[str]) -> int:
    """Train the rows of a protocol of moving atoms, score them on test recordings, print tables."""
    options = _motion_options(words)

    from undula.learn.progress import progress_on
    from undula.motion.studies.protocol import opened
    from undula.motion.studies.study import run_motion_study
    from undula.viz.motion_export import write_motion_study

    flush_denormals()
    protocol, training_of = _motion_asked(options)
    folders = _system_folders(options.data, options.systems)
    systems = opened(protocol, folders)
    for system in systems:
        system.source.verify()
    told = [notice for system in systems for notice in system.source.notices]
    refuse(told, strict=options.strict)
    study = run_motion_study(
        protocol,
        systems,
        training_of,
        runs=Path(options.runs),
        out=Path(options.out),
        only=options.only,
        progress=lambda: progress_on(sys.stderr),
        say=lambda line: print(line, file=sys.stderr, flush=True),
        elsewhere=_elsewhere(_motion_part, words, options.jobs),
    )
    text, values = write_motion_study(study, Path(options.out), Path(options.runs))
    write_report(Path(options.out), [*told, *_left_out(study.skipped)], protocol=protocol.name)
    print(json.dumps(values, indent=1) if options.json else text)
    return 6 if study.skipped else 0


def _motion_part(words: list[str], part: MotionPart) -> tuple[dict[str, float], str | None]:
    """Do one part of a study of moving atoms in a process of its own."""
    from undula.learn.progress import SilentProgress
    from undula.motion.studies.protocol import opened
    from undula.motion.studies.study import run_part

    flush_denormals()
    options = _motion_options(words)
    protocol, training_of = _motion_asked(options)
    folder = _system_folders(options.data, options.systems)[part.system]
    [system] = opened(protocol, {part.system: folder})
    try:
        seconds = run_part(
            part,
            protocol,
            system,
            training_of,
            runs=Path(options.runs),
            out=Path(options.out),
            progress=SilentProgress,
        )
    except InputError as error:
        return {}, str(error)
    return seconds, None


def _elsewhere(
    work: Callable[[list[str], AnyPart], tuple[dict[str, float], str | None]],
    words: Sequence[str],
    jobs: int,
) -> Callable[[Sequence[AnyPart]], tuple[dict[str, float], dict[str, str]]] | None:
    """Return what does the parts of a study in several processes; none for one process."""
    return None if jobs == 1 else lambda parts: in_processes(work, words, parts, jobs)


def _left_out(skipped: Mapping[str, str]) -> list[Notice]:
    """Return a notice for each row of a study that failed."""
    return [
        Notice(code="row-skipped", message=f"this row was left out: {why}", place=name)
        for name, why in skipped.items()
    ]


def _system_folders(data: Sequence[str], systems: Sequence[str] | None) -> dict[str, Path]:
    """Return the folder of each system.

    Raises:
        UsageError: A system has two folders, or one that is asked for has none.
    """
    found: dict[str, Path] = {}
    for word in data:
        named, equals, folder = word.partition("=")
        path = Path(folder if equals else word)
        name = named if equals else path.name
        if name in found:
            raise UsageError(f"--data has two folders of {name}: {found[name]} and {path}")
        found[name] = path
    missing = [name for name in systems or [] if name not in found]
    if missing:
        raise UsageError(f"--data has no folder of {missing[0]}; it has {', '.join(found)}")
    return found if systems is None else {name: found[name] for name in systems}


def _changed(protocol: Protocol, options: Namespace) -> Protocol:
    """Return a protocol with what the flags say in place of its own."""
    proteins = protocol.proteins
    if options.split is not None:
        proteins = replace(proteins, split=options.split, test=[], train=None)
    if options.test is not None:
        proteins = replace(proteins, test=options.test)
    scoring = protocol.scoring
    if options.frames is not None:
        scoring = replace(scoring, frames=options.frames)
    return replace(
        protocol,
        proteins=proteins,
        scoring=scoring,
        seeds=options.seeds or protocol.seeds,
    )
