"""``undula prepare``: trajectories to data set folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from undula.cli.options import MEMORY_LIMIT, STRICT, STRUCTURE_OPTIONS, parse, parser, seed
from undula.estimates import asked_bytes
from undula.notices import from_json, tell

if TYPE_CHECKING:
    from undula.data.prepare_config import PrepareConfig


def run(words: Sequence[str]) -> int:
    """Prepare surfaces of a system, of each protein of ATLAS, of structures; or moving atoms."""
    if words and words[0] in _SOURCES:
        return _SOURCES[words[0]](words[1:])
    p = parser(
        "prepare",
        "Make a data set of a structure and its trajectories; resumes by itself. "
        "undula prepare atlas FOLDER makes one for each protein of ATLAS in a folder, "
        "undula prepare static FILE one for each structure, of made-up motion, "
        "undula prepare atoms TOPOLOGY TRAJECTORY recordings of atoms to train a motion model on.",
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
        strict=options.strict,
        memory_limit=asked_bytes(options.memory_limit),
        say=lambda line: print(line, file=sys.stderr),
    )
    tell(from_json(dataset.manifest["notices"]))
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
        strict=options.strict,
        memory_limit=asked_bytes(options.memory_limit),
        say=lambda line: print(line, file=sys.stderr),
    )
    for dataset in made.datasets.values():
        frames = ", ".join(
            f"{len(t)} frames of {t.name}{' (held out)' if t.holdout else ''}"
            for t in dataset.trajectories
        )
        print(f"{dataset.folder}: {frames}")
    return _told(made.skipped)


def _run_static(words: Sequence[str]) -> int:
    p = parser(
        "prepare static",
        "Make a data set of each structure, of the pseudo-dynamics of an elastic network, to "
        "train on before there are simulations; resumes by itself.",
    )
    p.add_argument("structures", nargs="+", help="PDB, mmCIF or GRO files, packed or not")
    p.add_argument("-o", "--out", required=True, help="the folder of data set folders to make")
    p.add_argument("--frames", type=int, default=20, help="the structure itself is the first")
    p.add_argument("--shortest-ps", type=float, default=1.0, help="time of the second frame, ps")
    p.add_argument("--longest-ps", type=float, default=200.0, help="time of the last frame, ps")
    p.add_argument(
        "--amplitude",
        type=float,
        default=1.5,
        help="of the network, Å; the Cα move two thirds of it in the end",
    )
    _add_rules(p)
    options = parse(p, words)

    from undula.data.pseudo_dynamics import PseudoDynamicsConfig, prepare_static

    made = prepare_static(
        [Path(path) for path in options.structures],
        Path(options.out),
        _config(options),
        PseudoDynamicsConfig(
            frames=options.frames,
            shortest_ps=options.shortest_ps,
            longest_ps=options.longest_ps,
            amplitude=options.amplitude,
        ),
        strict=options.strict,
        say=lambda line: print(line, file=sys.stderr),
    )
    for dataset in made.datasets.values():
        print(f"{dataset.folder}: {len(dataset.trajectories[0])} frames of pseudo-dynamics")
    return _told(made.skipped)


def _run_atoms(words: Sequence[str]) -> int:
    p = parser(
        "prepare atoms",
        "Record moving atoms: whole, unwrapped, with velocities where they are known; resumes by "
        "itself. Without a topology, files are fluids in fixed point (.npz).",
    )
    p.add_argument("files", nargs="+", help="structure file, then its trajectories; or .npz files")
    p.add_argument("-o", "--out", required=True, help="the folder to make")
    p.add_argument(
        "--velocities", nargs="+", default=[], help="one .npz file for each trajectory, in order"
    )
    p.add_argument("--stride", type=int, default=1, help="keep every n-th frame")
    p.add_argument(
        "--frame-ps", type=float, help="time between the files' frames, ps (default: the files')"
    )
    p.add_argument("--select", choices=["all", "protein"], default="all", help="which residues")
    for flag, options in STRUCTURE_OPTIONS.items():
        keep = {"default": "keep", "help": "default: keep"} if "choices" in options else {}
        keep = {} if flag == "--length-unit" else keep
        p.add_argument(flag, **options | keep)
    p.add_argument(
        "--com", choices=["keep", "remove"], default="keep", help="of the centre of mass's motion"
    )
    p.add_argument(
        "--align",
        choices=["none", "mean"],
        default="none",
        help="superpose every frame of a single molecule on the mean structure",
    )
    p.add_argument(
        "--reference",
        nargs="+",
        default=[],
        help="names of the recordings (those that train) whose mean it is (default: the first)",
    )
    p.add_argument("--licence", default="", help="of the trajectories; kept with them")
    p.add_argument("--strict", **STRICT)
    p.add_argument("--memory-limit", **MEMORY_LIMIT)
    options = parse(p, words)

    from undula.data.fluids import is_archive
    from undula.data.recorded import RecordConfig, record

    files = [Path(file) for file in options.files]
    topology = None if is_archive(files[0]) else files[0]
    known = {f.name for f in fields(RecordConfig)} - {"reference"}
    made = record(
        files if topology is None else files[1:],
        Path(options.out),
        RecordConfig(
            reference=tuple(options.reference),
            **{k: v for k, v in vars(options).items() if k in known},
        ),
        topology=topology,
        velocities=[Path(file) for file in options.velocities],
        strict=options.strict,
        memory_limit=asked_bytes(options.memory_limit),
        say=lambda line: print(line, file=sys.stderr),
    )
    tell(from_json(made.manifest["notices"]))
    frames = sum(len(recording) for recording in made.recordings)
    moving = sum(recording.velocity_frames for recording in made.recordings)
    count = len(made.recordings)
    print(
        f"{options.out}: {count} recording{'s' * (count > 1)} of {made.system.structure.name}, "
        f"{len(made.system)} atoms, {frames} frames {made.frame_ps:g} ps apart, "
        f"velocities of {moving}"
    )
    return 0


_SOURCES = {"atlas": _run_atlas, "static": _run_static, "atoms": _run_atoms}
"""First words that name a source; a structure file of such a name is ``./atlas``."""


def _told(skipped: Mapping[str, str]) -> int:
    for name, why in skipped.items():
        print(f"undula: {name} was skipped: {why}", file=sys.stderr)
    return 6 if skipped else 0


def _add_rules(p: ArgumentParser, stride: int | None = None) -> None:
    for flag, options in STRUCTURE_OPTIONS.items():
        p.add_argument(flag, **options)
    if stride is not None:
        p.add_argument("--stride", type=int, default=stride, help="keep every n-th frame")
        p.add_argument("--memory-limit", **MEMORY_LIMIT)
    p.add_argument("--probe", type=float, default=1.4, help="solvent probe radius, Å")
    p.add_argument("--spacing", type=float, default=1.0, help="of surface points, Å")
    p.add_argument(
        "--storage",
        choices=["full", "compact"],
        default="full",
        help="compact: a third of the size, lengths to 0.001 Å and directions to 1°",
    )
    p.add_argument("--seed", type=seed, default=0)
    p.add_argument("--strict", **STRICT)


def _config(options: Namespace) -> PrepareConfig:
    from undula.data.prepare_config import PrepareConfig

    known = {f.name for f in fields(PrepareConfig)}
    return PrepareConfig(**{k: v for k, v in vars(options).items() if k in known})
