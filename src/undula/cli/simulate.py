"""``undula simulate``: molecular dynamics by OpenMM to a folder of recordings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from undula.cli.options import parse, parser, seed

_CHANGED = ("trajectories", "frames", "every_ps", "equilibration_ps", "checkpoint_frames")


def run(words: Sequence[str]) -> int:
    """Simulate one system, or go on where an earlier call was killed."""
    p = parser(
        "simulate",
        "Simulate argon, water (tip3p, tip4p), alanine dipeptide (ala2) or the protein of a "
        "structure file with OpenMM; a killed run goes on when the command is repeated.",
    )
    p.add_argument("system", help="argon, tip3p, tip4p, ala2, or a PDB or mmCIF file")
    p.add_argument("-o", "--out", required=True, help="the folder of recordings to make")
    p.add_argument(
        "--preset",
        default="clean",
        help="clean (default): equilibrated, nothing drifts; paper: as the public scripts of "
        "DoMiNO, faults included; tiny: seconds",
    )
    p.add_argument("--solvent", choices=["implicit", "explicit"], default="implicit")
    for name, what in {
        "trajectories": "how many",
        "frames": "of each trajectory",
        "checkpoint-frames": "after how many frames a killed run can go on",
    }.items():
        p.add_argument(f"--{name}", type=int, help=f"{what} (default: the preset's)")
    for name, what in {"every-ps": "between frames", "equilibration-ps": "before frame 0"}.items():
        p.add_argument(f"--{name}", type=float, help=f"{what}, ps (default: the preset's)")
    p.add_argument("--seed", type=seed, default=0, help="of all starts and velocities")
    p.add_argument(
        "--platform", default="auto", help="auto (fastest), CPU, CUDA, OpenCL or Reference"
    )
    p.add_argument(
        "--threads", type=int, default=1, help="of the CPU platform; only 1 repeats to the byte"
    )
    p.add_argument("--xtc", action="store_true", help="write an XTC of each trajectory too")
    options = parse(p, words)

    from dataclasses import replace

    from undula.data.simulation.settings import SYSTEMS, preset
    from undula.data.simulation.simulate import simulate

    given = {name: value for name in _CHANGED if (value := getattr(options, name)) is not None}
    config = replace(
        preset(options.system, options.preset, solvent=options.solvent),
        seed=options.seed,
        platform=options.platform,
        threads=options.threads,
        **given,
    )
    made = simulate(
        config,
        Path(options.out),
        structure=None if options.system in SYSTEMS else Path(options.system),
        xtc=options.xtc,
        say=lambda line: print(line, file=sys.stderr),
    )
    for recording in made.recordings:
        lasts = f"{(len(recording) - 1) * recording.frame_ps:g} ps"
        print(f"{options.out}: {recording.name}, {len(recording)} frames, {lasts}")
    return 0
