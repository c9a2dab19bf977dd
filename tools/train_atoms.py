"""Train the bundled models of moving atoms, score them on recordings they never saw, write cards.

    python tools/train_atoms.py [argon] [tip3p] [ala2] [--data FOLDER] [--work FOLDER]

Each model is the first row and seed of ``undula evaluate --protocol domino``: this prepares the
recordings, runs that, and copies weights and tables into the package. Recordings come from the
shared data (``../shared/data``) where they are there, else from ``undula simulate`` with the same
sizes. Each is trained until its plateau, about an hour of one core a system; it goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

from undula.cli.main import main as undula
from undula.motion.trained import WEIGHTS, TrainedMotion

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src" / "undula" / "data" / "bundled"
NAMES = {"argon": "argon", "tip3p": "water", "ala2": "alanine"}
"""System of the protocol → name of the bundled model."""
PATTERNS = {
    "argon": "argon_*.npz",
    "tip3p": "tip3p_*.npz",
    "tip4p": "tip4pew_*.npz",
    "ala2": "ala2_R?.xtc",
}
LICENCE = ("--licence", "CC0-1.0")
"""Of the shared data."""
USE = {
    "argon": "liquid argon near 100 K and 1.37 g/cm³ reduced density 0.5, frames 0.1 ps apart.",
    "tip3p": "rigid TIP3P water at 300 K and normal density, frames 0.1 ps apart, 80 ps ahead.",
    "ala2": "alanine dipeptide (22 atoms) in implicit solvent at 300 K, frames 0.5 ps apart.",
}
CARD = """# Model card: {name}

DoMiNO for {use}
{parameters:,} parameters, trained for {steps} steps on {recordings} by `tools/train_atoms.py`; the
last part of each recording told how much of the forecast to believe at each lag.
Horizon {horizon:g} ps.

**Use**: to try undula, and on systems like this one. Other densities, temperatures, force fields
or time between frames are not what it has seen; other kinds of atoms are refused. A classical
simulation of such a system is cheaper than you may think: see the documentation.

**Scores** on whole recordings it never saw, read once, by `undula evaluate --protocol domino`; one
seed, too few to judge.

{tables}
Weights: Apache-2.0. Recordings: {licence}.
"""
TABLES = (
    ("lags-physical", "Mean square error along an axis, Å², by lag in frames (many starts)"),
    ("skill-physical", "Skill over the best trivial row, with its 95 % interval"),
    ("samples", "Samples far ahead"),
)


def recorded(system: str, data: Path, out: Path) -> Path:
    """Prepare the recordings of a system, from shared data or by simulation."""
    folder = out / "recordings" / system
    files = sorted((data / system).glob(PATTERNS[system]))
    if not files:
        run(["simulate", system, "-o", str(folder), "--preset", "clean"])
    elif system == "ala2":
        speeds = [str(file.with_name(f"{file.stem}_velocities.npz")) for file in files]
        pose = ["--align", "mean", "--reference", "ala2_R1", "ala2_R2"]
        topology = str(data / system / "ala2.pdb")
        given = [topology, *map(str, files), "--velocities", *speeds]
        run(["prepare", "atoms", *given, *pose, *LICENCE, "-o", str(folder)])
    else:
        run(["prepare", "atoms", *map(str, files), *LICENCE, "-o", str(folder)])
    return folder


def bundle(system: str, folder: Path, work: Path) -> None:
    """Train and score by the protocol, then copy the weights and write the card."""
    runs, out = work / "runs", work / f"study-{system}"
    places = ["--data", str(folder), "--runs", str(runs), "-o", str(out)]
    row = ["--only", "domino", "--until-plateau"]
    run(["evaluate", "--protocol", "domino", *places, *row])
    home = BUNDLED / NAMES[system] / "motion"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(runs / system / "domino" / "seed-0" / WEIGHTS, home / WEIGHTS)
    trained = TrainedMotion.load(home)
    provenance = trained.provenance
    tables = [
        f"{title}:\n\n{markdown(out / f'{system}-{key}.csv')}\n"
        for key, title in TABLES
        if (out / f"{system}-{key}.csv").is_file()
    ]
    card = CARD.format(
        name=NAMES[system],
        use=USE[system],
        parameters=provenance["parameters"],
        steps=provenance["steps"],
        recordings=", ".join(provenance["recordings"]),
        horizon=trained.horizon_ps,
        tables="\n".join(tables),
        licence=provenance["data"]["origin"].get("licence") or "see their own",
    )
    (home / "card.md").write_text(card, encoding="utf-8")
    print(f"{home.relative_to(ROOT)}: {provenance['steps']} steps")


def markdown(path: Path) -> str:
    """Return a table of a study as Markdown, without the rows of the ablation."""
    with path.open(encoding="utf-8", newline="") as file:
        headings, *rows = list(csv.reader(file))
    whole = [row for row in rows if "decoded at" not in row[0]]
    lines = [headings, ["---"] * len(headings), *whole]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(words: list[str]) -> None:
    """Run a command of undula; stop where it fails."""
    code = undula(words)
    if code not in (0, None):
        raise SystemExit(code)


def main() -> None:
    """Bundle the models that are asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("systems", nargs="*", help=", ".join(NAMES))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "atoms")
    options = parser.parse_args()
    unknown = [system for system in options.systems if system not in NAMES]
    if unknown:
        parser.error(f"there is no system {unknown[0]}; there are {', '.join(NAMES)}")
    for system in options.systems or NAMES:
        bundle(system, recorded(system, options.data, options.work), options.work)


if __name__ == "__main__":
    main()
