"""``undula prepare``: trajectories to data set folders."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from undula.cli.options import STRUCTURE_OPTIONS, parse, parser

if TYPE_CHECKING:
    from undula.data.prepare import PrepareConfig


def run(words: Sequence[str]) -> int:
    """Prepare a data set, or one for each protein of ATLAS; goes on where it was killed."""
    if words and words[0] == "atlas":
        return _run_atlas(words[1:])
    p = parser(
        "prepare",
        "Make a data set of a structure and its trajectories; resumes by itself. "
        "undula prepare atlas FOLDER makes one for each protein of ATLAS in a folder.",
    )
    p.add_argument("topology", help="structure file that names the atoms")
    p.add_argument("trajectories", nargs="+", help="XTC, TRR, DCD or multi-model files")
    p.add_argument("-o", "--out", required=True, help="the folder to make")
    p.add_argument(
        "--holdout", nargs="+", default=[], help="those trajectories that training must not read"
    )
    _add_rules(p, stride=1)
    options = parse(p, words)

    from undula.data.prepare import prepare

    dataset = prepare(
        Path(options.topology),
        [Path(path) for path in options.trajectories],
        Path(options.out),
        _config(options),
        holdout=[Path(path) for path in options.holdout],
        say=lambda line: print(line, file=sys.stderr),
    )
    for notice in dataset.manifest["notices"]:
        print(f"notice: {notice['message']}", file=sys.stderr)
    for trajectory in dataset.trajectories:
        held = ", held out" if trajectory.holdout else ""
        end = f"{trajectory.times_ps[-1]:g} ps"
        print(f"{options.out}: {trajectory.name}, {len(trajectory)} frames, {end}{held}")
    return 0


def _run_atlas(words: Sequence[str]) -> int:
    p = parser(
        "prepare atlas",
        "Make a data set of each protein of ATLAS in a folder, replicas apart; resumes by itself.",
    )
    p.add_argument("folder", help="what undula data fetch atlas made, or files named like it")
    p.add_argument("-o", "--out", required=True, help="the folder of data set folders to make")
    p.add_argument("--names", nargs="+", help="which proteins (default: all)")
    p.add_argument(
        "--holdout-replica", type=int, help="the replica that training must not read, such as 3"
    )
    _add_rules(p, stride=300)
    options = parse(p, words)

    from undula.data.atlas import prepare_atlas

    made = prepare_atlas(
        Path(options.folder),
        Path(options.out),
        _config(options),
        names=options.names,
        holdout_replica=options.holdout_replica,
        say=lambda line: print(line, file=sys.stderr),
    )
    for dataset in made.datasets.values():
        frames = ", ".join(
            f"{len(t)} frames of {t.name}{' (held out)' if t.holdout else ''}"
            for t in dataset.trajectories
        )
        print(f"{dataset.folder}: {frames}")
    for name, why in made.skipped.items():
        print(f"undula: {name} was skipped: {why}", file=sys.stderr)
    return 6 if made.skipped else 0


def _add_rules(p: ArgumentParser, stride: int) -> None:
    for flag, options in STRUCTURE_OPTIONS.items():
        p.add_argument(flag, **options)
    p.add_argument("--stride", type=int, default=stride, help="keep every n-th frame")
    p.add_argument("--probe", type=float, default=1.4, help="solvent probe radius, Å")
    p.add_argument("--spacing", type=float, default=1.0, help="of surface points, Å")
    p.add_argument(
        "--storage",
        choices=["full", "compact"],
        default="full",
        help="compact: a third of the size, lengths to 0.001 Å and directions to 1°",
    )
    p.add_argument("--seed", type=int, default=0)


def _config(options: Namespace) -> PrepareConfig:
    from undula.data.prepare import PrepareConfig

    known = {f.name for f in fields(PrepareConfig)}
    return PrepareConfig(**{k: v for k, v in vars(options).items() if k in known})
