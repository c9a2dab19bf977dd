"""Train every row of both studies on real data and print their tables: ``make reproduce``.

    python tools/reproduce.py [--studies atoms surfaces] [--data FOLDER] [--work FOLDER]

Recordings of atoms come from the shared data (``../shared/data``) where they are there, else from
``undula simulate``; proteins from ``ensembles/``. Rows are trained until they reach their plateau
(`undula.learn.plateau`) on validation windows or on whole proteins kept for validation. It takes
days on two cores, has no time limit, and goes on where it was stopped; scores that are there are
kept. The tables of each system of atoms lie in ``atoms/SYSTEM``, those of surfaces in
``surfaces``: the folders that ``tools/published.py --take`` wants. Other words go to
``undula evaluate``: ``--only domino lg-ode --jobs 2``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from train_atoms import PATTERNS, ROOT, recorded, run
from train_bundled import ENSEMBLES

STUDIES = ("atoms", "surfaces")


def atoms(data: Path, work: Path, words: list[str]) -> None:
    """Train and score the rows of the study of DoMiNO, one system after another."""
    for system in PATTERNS:
        folder = recorded(system, data, work)
        out = work / "atoms" / system
        places = ["--data", str(folder), "--runs", str(work / "runs"), "-o", str(out)]
        run(["evaluate", "--protocol", "domino", *places, "--until-plateau", *words])


def surfaces(work: Path, words: list[str]) -> None:
    """Prepare the ensembles, then train and score the rows of the study of MoE-DSR."""
    names = sorted(path.stem for path in ENSEMBLES.glob("*.pdb"))
    for name in names:
        replicas = [str(path) for path in sorted(ENSEMBLES.glob(f"{name}_R*.xtc"))]
        topology, out = ENSEMBLES / f"{name}.pdb", work / "proteins" / name
        run(["prepare", str(topology), *replicas, "-o", str(out)])
    given = [str(work / "proteins" / name) for name in names]
    places = ["--runs", str(work / "surface-runs"), "-o", str(work / "surfaces")]
    study = ["evaluate", "--protocol", "moe-dsr", "--data", *given, *places]
    run([*study, "--until-plateau", *words])


def main() -> None:
    """Reproduce the studies that are asked for, by default both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reproduce")
    options, words = parser.parse_known_args()
    if "atoms" in options.studies:
        atoms(options.data, options.work, words)
    if "surfaces" in options.studies:
        surfaces(options.work, words)


if __name__ == "__main__":
    main()
