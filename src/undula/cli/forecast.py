"""``undula forecast``: a structure to its moving surface at any time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from undula import units
from undula.cli.options import STRUCTURE_OPTIONS, flush_denormals, parse, parser
from undula.errors import UsageError

FORMATS = ("html", "ply")


def run(words: Sequence[str]) -> int:
    """Forecast the moving surface of a structure and export it."""
    p = parser("forecast", "Forecast the moving surface of a structure with a trained model.")
    p.add_argument("structure", help="PDB, mmCIF or GRO file; may be gzipped")
    p.add_argument(
        "--model", required=True, help="run folder of undula train, or the bundled model: villin"
    )
    p.add_argument(
        "--time",
        required=True,
        help="START:STOP:STEP or t1,t2,… since the structure, for instance 0:100ns:2ns (bare: ps)",
    )
    p.add_argument("-o", "--out", required=True, help="the result folder")
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

    from undula.data.bundled import villin
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
    folder = villin()[2] if options.model == "villin" else Path(options.model)
    moving = forecast(structure, times_ps, load_trained(folder), spacing=options.spacing)
    notices = export(moving, Path(options.out), formats=formats, level=options.level)
    for notice in [*moving.notices, *notices]:
        print(f"notice: {notice}", file=sys.stderr)
    print(f"{options.out}: {structure.name} at {len(times_ps)} times")
    return 0
