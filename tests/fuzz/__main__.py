"""Damage inputs by chance and read them: ``python -m tests.fuzz`` from the root of the checkout.

``python -m tests.fuzz --seconds 600`` goes on so long; ``--start 100000`` tries others than before;
``python -m tests.fuzz xtc dcd`` tries some readers, ``python -m tests.fuzz xtc:17`` repeats a case.
A line names each case before it is tried, so that one that kills the process is known; the last
line of each reader is JSON. The exit code is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from tests.fuzz.cases import forked, outcome
from tests.fuzz.readers import READERS

from undula.io import xtc

MOST_FAULTS = 5


def fuzz(name: str, folder: Path, *, start: int, seconds: float, only: bool = False) -> int:
    """Try cases of one reader, as many as its table says or for some seconds; return the faults."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    READERS[name].make(whole)
    found: Counter[str] = Counter()
    faults: dict[str, str] = {}
    began = time.monotonic()
    case = start
    while len(faults) < MOST_FAULTS:
        print(f"{name}:{case}", flush=True)
        verdict, said = outcome(name, case, whole, folder / "case")
        found[verdict] += 1
        if verdict == "fault":
            faults[f"{name}:{case}"] = said
        elif only:
            print(verdict, said)
        case += 1
        spent = time.monotonic() - began
        if only or (spent > seconds if seconds else found.total() >= READERS[name].cases):
            break
    told = {"reader": name, "outcomes": dict(found), "faults": faults}
    print(json.dumps(told | {"seconds": round(time.monotonic() - began, 1)}), flush=True)
    return len(faults)


def main() -> int:
    """Read the command line and try all readers that it names."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", default=list(READERS), help=", ".join(READERS))
    parser.add_argument("--seconds", type=float, default=0.0, help="for all readers together")
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    options = parser.parse_args()
    warnings.filterwarnings("error", category=RuntimeWarning, module=r"undula\.")
    xtc.subprocess.run = forked  # type: ignore[assignment]
    faults = 0
    with tempfile.TemporaryDirectory(prefix="undula-fuzz-") as folder:
        for name in options.readers:
            reader, only, case = name.partition(":")
            faults += fuzz(
                reader,
                Path(folder) / reader,
                start=int(case) if only else options.start,
                seconds=options.seconds / len(options.readers),
                only=bool(only),
            )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
