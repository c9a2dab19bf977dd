"""``undula inspect``: what is in a file, what would be used, dropped or assumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from undula.cli.options import parse, parser


def run(words: Sequence[str]) -> int:
    """Inspect files; the first one that cannot serve ends the command with exit code 3."""
    p = parser("inspect", "Say what is in files and what undula would use, drop or assume.")
    p.add_argument("files", nargs="+", help="structures or trajectories")
    p.add_argument("--for", dest="purpose", choices=["surface", "motion"], help="exit 3 if unfit")
    p.add_argument("--topology", help="structure file that names the atoms of a trajectory")
    p.add_argument("--json", action="store_true", help="print JSON")
    options = parse(p, words)

    from undula.io.inspection import inspect

    topology = Path(options.topology) if options.topology else None
    found = [inspect(Path(f), purpose=options.purpose, topology=topology) for f in options.files]
    if options.json:
        print(json.dumps([inspection.as_dict() for inspection in found], indent=1))
    else:
        print("\n\n".join(str(inspection) for inspection in found))
    return 0
