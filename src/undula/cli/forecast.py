"""``undula forecast``: a structure to its moving surface at any time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from undula import units
from undula.cli.options import STRUCTURE_OPTIONS, flush_denormals, parse, parser
from undula.data.bundled import models
from undula.errors import InputError, UsageError

FORMATS = ("html", "ply")
SAMPLES = 32
"""Drawn by default where the model can: enough for a 90 % interval, and cheap."""


def run(words: Sequence[str]) -> int:
    """Forecast the moving surface of a structure and export it."""
    p = parser("forecast", "Forecast the moving surface of a structure with a trained model.")
    p.add_argument("structure", help="PDB, mmCIF or GRO file; may be gzipped")
    p.add_argument(
        "--model",
        default="any",
        help="run folder of undula train, or a bundled model: "
        f"{', '.join(models())} (default: any)",
    )
    p.add_argument(
        "--time",
        required=True,
        help="START:STOP:STEP or t1,t2,… since the structure, for instance 0:100ns:2ns (bare: ps)",
    )
    p.add_argument("-o", "--out", required=True, help="the result folder")
    p.add_argument(
        "--samples",
        type=int,
        help="to draw beside the typical surface: their spread is the forecast's own uncertainty "
        f"(default: {SAMPLES} of a model that can, 0 of one that cannot)",
    )
    p.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    p.add_argument("--spacing", type=float, default=1.0, help="of the meshes, Å (default: 1)")
    p.add_argument("--level", type=float, default=0.0, help="of the level set, Å (default: 0)")
    p.add_argument("--formats", default="html", help="html, ply, or both: html,ply")
    for flag, options in STRUCTURE_OPTIONS.items():
        p.add_argument(flag, **options)
    options = parse(p, words)
    formats = [name for name in options.formats.split(",") if name]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"there is no format {unknown[0]}; there are {', '.join(FORMATS)}")
    times_ps = units.times(options.time)
    if options.samples == 1:
        raise UsageError("one sample has no spread; draw at least 2, or 0 for the typical surface")

    from undula.io.structures import load_structure
    from undula.surface.forecast import forecast
    from undula.surface.trained_mixture import load_trained
    from undula.viz.export import export

    flush_denormals()
    structure = load_structure(
        Path(options.structure),
        chain=options.chain,
        altloc=options.altloc,
        hydrogens=options.hydrogens,
        heterogens=options.heterogens,
        length_unit=options.length_unit,
    )
    trained = load_trained(_model(options.model))
    samples = options.samples
    if samples is None:
        samples = SAMPLES if trained.distributional else 0
    moving = forecast(
        structure,
        times_ps,
        trained,
        spacing=options.spacing,
        samples=samples,
        seed=options.seed,
    )
    notices = export(moving, Path(options.out), formats=formats, level=options.level)
    for notice in [*moving.notices, *notices]:
        print(f"notice: {notice}", file=sys.stderr)
    drawn = f", {samples} samples" if samples else ""
    print(f"{options.out}: {structure.name} at {len(times_ps)} times{drawn}")
    return 0


def _model(name: str) -> Path:
    """Return the folder of a model; a run folder named like a bundled model is ``./name``."""
    bundled = models()
    if name in bundled:
        return bundled[name]
    if not Path(name).is_dir():
        near = get_close_matches(name, bundled, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(bundled)}"
        raise InputError(f"{name} is neither a run folder nor a bundled model{hint}")
    return Path(name)
