"""``undula sweep``: search a space of training configurations, judged on validation proteins."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undula.cli.configured import bundled_or_file, merged, read_yaml, training
from undula.cli.options import flush_denormals, made, parse, parse_values, parser, seed
from undula.errors import InputError, UsageError
from undula.learn.sweep import Dimension


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """A space of training configurations.

    Attributes:
        name: Of the space.
        space: Axis → keys and values.
        preset: What all trials start from.
        set: Keys of the configuration, nested, that differ from the preset in all trials.
        measure: Of the evaluation on validation proteins, such as ``skill`` or ``iou``.
        minimise: Whether less of it is better.
    """

    name: str
    space: dict[str, Dimension]
    preset: str = "default"
    set: dict[str, Any] = field(default_factory=dict)
    measure: str = "skill"
    minimise: bool = False


def run(words: Sequence[str]) -> int:
    """Search a space; several processes may share the folder, and a killed search goes on."""
    p = parser("sweep", "Search a space of training configurations on validation proteins.")
    p.add_argument("config", help="table-2 (the paper's space), default, or a YAML file")
    p.add_argument("--data", nargs="+", required=True, help="data set folders, one per protein")
    p.add_argument("-o", "--out", required=True, help="the folder, shared by several processes")
    p.add_argument("--test", nargs="+", help="proteins that no trial may read")
    p.add_argument("--split", help="a file of undula data split: its test part is never read")
    p.add_argument("--validation", nargs="+", help="proteins that judge; by default two, evenly")
    p.add_argument("--trials", type=int, default=20, help="in all (default: 20)")
    p.add_argument("--sampler", choices=["random", "tpe"], default="random")
    p.add_argument("--seed", type=seed, default=0, help="of the search and of every training")
    p.add_argument("--steps", type=int, help="of every training, in place of the preset's")
    p.add_argument("--json", action="store_true", help="print JSON")
    options = parse(p, words)

    from undula.io.datasets import open_dataset
    from undula.learn.progress import SilentProgress
    from undula.learn.sweep import SweepConfig, best_trial, sweep
    from undula.surface.studies.protocol import StudyProteins, readable
    from undula.surface.studies.runs import trained_run

    flush_denormals()
    space = read_space(bundled_or_file("spaces", options.config))
    proteins = StudyProteins(
        test=options.test or [], validation=options.validation or 2, split=options.split
    )
    datasets, kept = readable(
        proteins, [open_dataset(Path(folder), verify=True) for folder in options.data]
    )

    def measure(choices: Mapping[str, Any], folder: Path) -> float | None:
        changes = space.set
        for key, value in choices.items():
            changes = merged(changes, _nested(key, value))
        asked = training(
            space.preset,
            changes,
            place=f"space {space.name}",
            seed=options.seed,
            steps=options.steps,
            validation=kept,
        )
        trained, _ = trained_run(asked, datasets, folder, SilentProgress())
        if not trained.provenance["validation"]:
            raise UsageError("a search needs validation proteins: too few are left for training")
        measures = trained.provenance["measures"]
        if space.measure not in measures:
            raise InputError(f"a training measures no {space.measure}: {', '.join(measures)}")
        value = measures[space.measure]
        return None if value is None else float(value)

    config = SweepConfig(
        trials=options.trials,
        sampler=options.sampler,
        seed=options.seed,
        minimise=space.minimise,
    )
    trials = sweep(
        space.space,
        measure,
        config,
        Path(options.out),
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    best = best_trial(trials, space.minimise)
    told = {"measure": space.measure, "best": vars(best), "trials": len(trials)}
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        print(
            f"{options.out}: {len(trials)} trials; the best is number {best.number} with "
            f"{space.measure} {best.value:.4f}: {json.dumps(best.choices)}"
        )
    return 0


def read_space(path: Path) -> SpaceConfig:
    """Read the space of a search from a YAML file.

    Raises:
        UsageError: A key or value in it cannot be meant.
        InputError: The file is not readable.
    """
    p = parser("sweep", "A space.")
    p.add_class_arguments(SpaceConfig, as_group=False)
    return made(SpaceConfig, p, parse_values(p, read_yaml(path), str(path)), str(path))


def _nested(key: str, value: Any) -> dict[str, Any]:
    """Return a dotted key and its value as nested keys."""
    for part in reversed(key.split(".")):
        value = {part: value}
    found: dict[str, Any] = value
    return found
