"""``undula inspect``: what is in a file or a folder, what would be used, dropped or assumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from undula.cli.options import STRICT, parse, parser
from undula.errors import printable
from undula.notices import refuse


def run(words: Sequence[str]) -> int:
    """Inspect files; the first one that cannot serve ends the command with exit code 3."""
    p = parser("inspect", "Say what is in files and what undula would use, drop or assume.")
    p.add_argument(
        "files",
        nargs="+",
        help="structures, trajectories, data sets, recordings, runs, results, weights, YAML files",
    )
    p.add_argument("--for", dest="purpose", choices=["surface", "motion"], help="exit 3 if unfit")
    p.add_argument("--topology", help="structure file that names the atoms of a trajectory")
    p.add_argument("--strict", **STRICT)
    p.add_argument("--json", action="store_true", help="print JSON")
    options = parse(p, words)

    from undula.cli.expected import estimate_for, told
    from undula.cli.stored import Stored, inspect_stored, is_stored
    from undula.io.inspection import Inspection, inspect

    topology = Path(options.topology) if options.topology else None
    found: list[Inspection | Stored] = []
    for path in map(Path, options.files):
        if is_stored(path):
            found += inspect_stored(path, options.purpose)
        else:
            found.append(inspect(path, purpose=options.purpose, topology=topology))
    refuse([notice for one in found for notice in one.notices], strict=options.strict)
    expected = [estimate_for(one) if isinstance(one, Inspection) else {} for one in found]
    if options.json:
        each = [
            one.as_dict() | {"estimates": {name: asdict(cost) for name, cost in costs.items()}}
            for one, costs in zip(found, expected, strict=True)
        ]
        print(json.dumps(each, indent=1))
    else:
        texts = [
            "\n".join([str(one), *told(costs)]) for one, costs in zip(found, expected, strict=True)
        ]
        print("\n".join(printable(line) for line in "\n\n".join(texts).split("\n")))
    return 0
