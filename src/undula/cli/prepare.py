"""``undula prepare``: a structure and its trajectories to a data set folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from undula.cli.options import STRUCTURE_OPTIONS, parse, parser


def run(words: Sequence[str]) -> int:
    """Prepare a data set; a run that was killed goes on where it was."""
    p = parser("prepare", "Make a data set of a structure and its trajectories; resumes by itself.")
    p.add_argument("topology", help="structure file that names the atoms")
    p.add_argument("trajectories", nargs="+", help="XTC, TRR, DCD or multi-model files")
    p.add_argument("-o", "--out", required=True, help="the folder to make")
    p.add_argument(
        "--holdout", nargs="+", default=[], help="those trajectories that training must not read"
    )
    for flag, options in STRUCTURE_OPTIONS.items():
        p.add_argument(flag, **options)
    p.add_argument("--stride", type=int, default=1, help="keep every n-th frame")
    p.add_argument("--probe", type=float, default=1.4, help="solvent probe radius, Å")
    p.add_argument("--spacing", type=float, default=1.0, help="of surface points, Å")
    p.add_argument(
        "--storage",
        choices=["full", "compact"],
        default="full",
        help="compact: a third of the size, lengths to 0.001 Å and directions to 1°",
    )
    p.add_argument("--seed", type=int, default=0)
    options = parse(p, words)

    from undula.data.prepare import PrepareConfig, prepare

    known = {f.name for f in fields(PrepareConfig)}
    config = PrepareConfig(**{k: v for k, v in vars(options).items() if k in known})
    dataset = prepare(
        Path(options.topology),
        [Path(path) for path in options.trajectories],
        Path(options.out),
        config,
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
