"""Set the published tables beside ours: writes the tables of docs/published.md.

    python tools/published.py [--take FOLDER … [--keep] [--runs FOLDER]] [--check]

``--take`` first copies the tables that ``undula evaluate --protocol`` wrote into a folder (one of
a whole study or of a single system) to ``results/PROTOCOL/NAME``: JSON alone, without scores of
single windows and without times. With ``--keep`` rows of a system of atoms, or of surfaces, that
lie there and not in the folder stay, if the trivial rows of both are the same to the last digit:
data, split and scoring were then the same. With ``--runs`` the weights that were scored are copied
from their run folders to ``checkpoints/PROTOCOL``, from which the same command gives the same
tables again. After that every table of the page is written anew from what lies in ``results`` and
from the published numbers of the protocols. ``--check`` writes nothing and fails where the page
says something else.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from committed import systems_of, take, take_weights

from undula import atomic
from undula.cli.configured import read_motion_protocol, read_protocol
from undula.errors import InputError
from undula.report.markdown import markdown_table

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "published.md"
CHECKPOINTS = ROOT / "checkpoints"
NOT_TRAINED, NOT_SCORED, NO_NUMBER = "not yet trained", "not yet scored", "–"
_STANDS_FOR = {"DESCINet": "scinet"}
"""Published rows whose place one of ours with another name takes."""
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_BINS = (("2–10", 2, 10), ("11–100", 11, 100), ("beyond", 101, 10**9))
"""Frames ahead, by the last frame of a part of the horizon."""


class Motion:
    """What there is of the study of DoMiNO.

    Args:
        results: The folder of all results.
    """

    def __init__(self, results: Path) -> None:
        self.protocol = read_motion_protocol("domino")
        self.folders: dict[str, Path] = {}
        for path in sorted((results / "domino").glob("*/table-1.json")):
            for name in systems_of(atomic.read_json(path)):
                # A study of one system is newer than one of all: it was taken for its own sake.
                if name not in self.folders or path.parent.name == name:
                    self.folders[name] = path.parent
        self.labels = {row.name: row.label for row in self.protocol.rows}

    @property
    def systems(self) -> list[str]:
        """All systems of the protocol."""
        return [system.name for system in self.protocol.systems]

    def values(self, system: str, name: str) -> dict[str, Any]:
        """Return a table of a system; empty where it is not there."""
        path = self.folders[system] / name if system in self.folders else None
        return atomic.read_json(path) if path is not None and path.is_file() else {}

    def mean(self, system: str, row: str, measure: str) -> float | None:
        """Return the error of a row over the whole horizon."""
        found = self.values(system, "table-1.json").get("mean", {}).get(row, {})
        value = found.get(system, {}).get(measure)
        return None if value is None else float(value)

    def rows(self) -> list[str]:
        """Return the names of the rows of the tables: as published, then ours alone."""
        told = [_STANDS_FOR.get(name, name) for name in self.protocol.published.full]
        first = ["domino", *(name for name in told if name != "domino")]
        return [*first, *(row for row in self.labels if row not in first)]

    def label(self, row: str) -> str:
        """Return what a row is called."""
        name, _, lag = row.partition("@")
        label = self.labels.get(name, name)
        return f"{label}, in lags of {lag} frames" if lag else label

    def trivial(self, system: str) -> list[str]:
        """Return the names of the trivial rows of a system."""
        mean = self.values(system, "table-1.json").get("mean", {})
        return [name for name in mean if name.split("@")[0] not in self.labels]

    def published(self, row: str, system: str) -> float | None:
        """Return what was published of a row."""
        full = self.protocol.published.full
        names = [row, *(name for name, ours in _STANDS_FOR.items() if ours == row)]
        return next((full[name][system] for name in names if name in full), None)


def _text(value: float | None, form: str = "{:.4f}") -> str:
    return NO_NUMBER if value is None else form.format(value)


def _error(value: float | None) -> str:
    return NO_NUMBER if value is None else f"{value:.4f}" if value < 10 else f"{value:.2g}"


def motion_full(motion: Motion) -> str:
    """Return DoMiNO's Table 1, system by system."""
    blocks = []
    for system in motion.systems:
        known = motion.values(system, "rows.json")
        rows = []
        for row in motion.rows():
            told = motion.published(row, system)
            ours = [motion.mean(system, row, one) for one in ("paper", "paper_expected")]
            about = known.get(f"{system}/{row}", {})
            if ours[0] is not None:
                seeds = str(about["seeds"]) if about else NO_NUMBER
                steps = ", ".join(f"{count:,}" for count in about.get("steps", []))
                cells = [*map(_error, ours), seeds, steps or NO_NUMBER]
            elif told is None and not _meant(motion, row, system):
                continue
            else:
                cells = [NOT_TRAINED, NO_NUMBER, NO_NUMBER, NO_NUMBER]
            rows.append([motion.label(row), _text(told), *cells])
        for row in motion.trivial(system):
            values = [motion.mean(system, row, one) for one in ("paper", "paper_expected")]
            cells = [NO_NUMBER, *map(_error, values), NO_NUMBER, NO_NUMBER]
            rows.append([f"{row} (trivial)", *cells])
        headings = ["forecast", "published", "ours, as it is", "ours, expected", "seeds", "steps"]
        blocks.append(f"**{system}**\n\n{markdown_table([headings, *rows])}")
    return "\n\n".join(blocks)


def _meant(motion: Motion, row: str, system: str) -> bool:
    found = next((one for one in motion.protocol.rows if one.name == row), None)
    return found is None or not found.systems or system in found.systems


def motion_windows(motion: Motion) -> str:
    """Return DoMiNO's Table 3, published and ours in turn."""
    told = motion.protocol.published.windows["argon"]
    found = motion.values("argon", "argon-windows-paper_expected.json")
    ends = sorted({end for one in told.values() for end in one})
    places = {end: place for place, end in enumerate(found.get("ends", []))}
    rows = []
    for name, one in told.items():
        ours = _STANDS_FOR.get(name, name)
        label = motion.label(ours)
        rows.append([f"{label}, published", *(_text(one.get(end)) for end in ends)])
        values = found.get("mean", {}).get(ours)
        cells = [NOT_TRAINED] * len(ends)
        if values is not None:
            cells = [_text(values[places[end]]) for end in ends]
        rows.append([f"{label}, ours", *cells])
    for name in motion.trivial("argon"):
        values = found["mean"][name]
        rows.append([f"{name} (trivial), ours", *(_text(values[places[end]]) for end in ends)])
    headings = ["argon", *(f"{end - 20}–{end}" for end in ends)]
    return markdown_table([headings, *rows])


def motion_margins(motion: Motion) -> str:
    """Return how far the best published row lies before the next one, and ours before a trivial."""
    rows = []
    for system in motion.systems:
        told = {row: motion.published(row, system) for row in motion.rows()}
        others = {row: value for row, value in told.items() if value and row != "domino"}
        nearest = min(others, key=lambda row: others[row] or 0.0)
        domino = told["domino"]
        assert domino is not None
        cells = [f"{(others[nearest] or 0.0) - domino:+.4f} over {motion.label(nearest)}"]
        trivial = {
            name: value
            for name in motion.trivial(system)
            if (value := motion.mean(system, name, "paper_expected")) is not None
        }
        ours = motion.mean(system, "domino", "paper_expected")
        if ours is None or not trivial:
            rows.append([system, *cells, NOT_TRAINED, NOT_TRAINED])
            continue
        best = min(trivial, key=lambda name: trivial[name])
        cells.append(f"{trivial['constant'] - ours:+.4f}")
        cells.append(f"{trivial[best] - ours:+.4f} over {best}")
        rows.append([system, *cells])
    headings = ["system", "DoMiNO's margin, published", "ours over the constant"]
    return markdown_table([[*headings, "ours over the best trivial row"], *rows])


def motion_skill(motion: Motion) -> str:
    """Return what rows remove of the best trivial row's error, by time ahead."""
    rows = []
    for system in motion.systems:
        found = motion.values(system, f"{system}-skill-physical.json").get("rows", [])
        for row in motion.rows():
            parts = [one for one in found if one["row"] == row]
            if not parts:
                if _meant(motion, row, system):
                    rows.append([system, motion.label(row), NOT_TRAINED, *[NO_NUMBER] * 2])
                continue
            cells = []
            for _, low, high in _BINS:
                within = [one["skill"] for one in parts if low <= one["last"] <= high]
                cells.append(f"{sum(within) / len(within):+.3f}" if within else NO_NUMBER)
            rows.append([system, motion.label(row), *cells])
    headings = ["system", "forecast", *(f"{name} frames" for name, _, _ in _BINS)]
    return markdown_table([headings, *rows])


def _ablated(motion: Motion, system: str) -> list[tuple[str, str]]:
    """Return name and label of the rows of a system's ablation, each decoded in all its ways."""
    names = []
    for row in motion.protocol.rows:
        if row.name in motion.protocol.ablation and _meant(motion, row.name, system):
            names.append((row.name, row.label))
            names += [
                (f"{row.name}@{level}", f"{row.label}, decoded at level {level}")
                for level in row.decoded
            ]
    return names


def motion_ablation(motion: Motion) -> str:
    """Return the ablation of the slides' figure, whose bars cannot be read."""
    rows = []
    for system in motion.systems:
        found = motion.values(system, "ablation.json")
        for name, label in _ablated(motion, system):
            one = found.get(f"{system}/{name}")
            if one is None:
                rows.append([system, label, NOT_TRAINED, *[NO_NUMBER] * 4])
                continue
            skill = [_text(one["skill"][part], "{:+.3f}") for part in ("near", "middle", "far")]
            weights = f"{one['weights']:,}"
            rows.append([system, label, weights, *skill, _text(one["paper_expected"])])
    headings = ["system", "forecast", "weights", *(f"skill, {name} frames" for name, _, _ in _BINS)]
    return markdown_table([[*headings, "published error, expected"], *rows])


class Surfaces:
    """What there is of the study of MoE-DSR.

    Args:
        results: The folder of all results.
    """

    def __init__(self, results: Path) -> None:
        self.protocol = read_protocol("moe-dsr")
        self.folder = results / "moe-dsr" / "all"
        self.labels = {row.name: row.label for row in self.protocol.rows}

    def values(self, name: str) -> dict[str, Any]:
        """Return a table; empty where it is not there."""
        path = self.folder / f"{name}.json"
        return atomic.read_json(path) if path.is_file() else {}

    def asked(self, name: str) -> Any:
        """Return what the protocol says of a table."""
        return next(one for one in self.protocol.tables if one.name == name)


_SURFACE_MEASURES = ("iou", "chamfer_paper", "normal_consistency_paper")
_SURFACE_HEADINGS = ["IoU", "CD", "NC"]


def _surface_steps(surfaces: Surfaces, row: str) -> str:
    """Return for how many steps each seed of a row was trained."""
    counts = surfaces.values("rows").get(row, {}).get("steps", [])
    return ", ".join(f"{count:,}" for count in counts) or NO_NUMBER


def _surface_cells(
    told: Any,
    mean: Mapping[str, float] | None,
    missing: str = NOT_TRAINED,
    steps: str = NO_NUMBER,
) -> list[str]:
    """Return published and our measures of a row, and the steps of its training."""
    published = {} if told is None else told.measures()
    cells = [_text(published.get(key)) for key in _SURFACE_MEASURES]
    if mean is None:
        return [*cells, missing, NO_NUMBER, NO_NUMBER, NO_NUMBER]
    return [*cells, *(_text(mean.get(key)) for key in _SURFACE_MEASURES), steps]


def _surface_table(first: str, rows: list[list[str]]) -> str:
    headings = [f"{whose} {name}" for whose in ("published", "our") for name in _SURFACE_HEADINGS]
    return markdown_table([[first, *headings, "steps"], *rows])


def surface_models(surfaces: Surfaces) -> str:
    """Return MoE-DSR's Table 1, means over proteins."""
    asked, found = surfaces.asked("table-1"), surfaces.values("table-1").get("rows", [])
    means = {one["name"]: one["mean"] for one in found}
    rows = []
    for name in asked.rows:
        label = surfaces.labels[name]
        told, steps = asked.published.get(name), _surface_steps(surfaces, name)
        rows.append([label, *_surface_cells(told, means.get(label), steps=steps)])
    for name, told in asked.published.items():
        if name not in asked.rows and name not in means:
            rows.append([f"{name} (trivial)", *_surface_cells(told, None, NOT_SCORED)])
    for one in found:
        if one["kind"] != "model":
            told = asked.published.get(one["name"])
            rows.append([f"{one['name']} ({one['kind']})", *_surface_cells(told, one["mean"])])
    return _surface_table("model", rows)


def surface_routers(surfaces: Surfaces) -> str:
    """Return MoE-DSR's Table 4."""
    asked = surfaces.asked("table-4")
    found = surfaces.values("table-4").get("table-4", {}).get("rows", {})
    rows = []
    for name in asked.rows:
        mean = found[name]["mean"] if name in found else None
        label = "Q-MPNN" if name == "default" else name
        told, steps = asked.published.get(name), _surface_steps(surfaces, name)
        rows.append([label, *_surface_cells(told, mean, steps=steps)])
    return _surface_table("router", rows)


def surface_experts(surfaces: Surfaces) -> str:
    """Return the numbers of MoE-DSR's Figure 3."""
    asked = surfaces.asked("figure-3")
    found = surfaces.values("figure-3").get("figure-3", {}).get("rows", {})
    rows = []
    for name in asked.rows:
        mean = found[name]["mean"] if name in found else None
        told, steps = asked.published.get(name), _surface_steps(surfaces, name)
        rows.append([surfaces.labels[name], *_surface_cells(told, mean, steps=steps)])
    return _surface_table("model", rows)


def surface_specialisation(surfaces: Surfaces) -> str:
    """Return MoE-DSR's Table 3: the mean identity of the proteins of an expert."""
    found = surfaces.values("table-3")
    rows = [["MoE-DSR, published", "42.05, 41.30, 43.75, 43.45", NO_NUMBER]]
    for name in surfaces.asked("table-3").rows:
        one = found.get(f"table-3-{name}")
        if one is None:
            rows.append([surfaces.labels[name], NOT_TRAINED, NO_NUMBER])
            continue
        values = [expert["identity"] for expert in one["experts"].values()]
        cells = ", ".join(NO_NUMBER if value is None else f"{value:.2%}" for value in values)
        rows.append([surfaces.labels[name], cells, f"{one['identity_of_all_pairs']:.2%}"])
    headings = ["model", "mean identity within each expert, %", "of all pairs"]
    return markdown_table([headings, *rows])


_MOTION: Mapping[str, Callable[[Motion], str]] = {
    "domino-1": motion_full,
    "domino-3": motion_windows,
    "domino-margins": motion_margins,
    "domino-skill": motion_skill,
    "domino-ablation": motion_ablation,
}
_SURFACES: Mapping[str, Callable[[Surfaces], str]] = {
    "moe-dsr-1": surface_models,
    "moe-dsr-3": surface_specialisation,
    "moe-dsr-4": surface_routers,
    "moe-dsr-figure-3": surface_experts,
}


def written(page: str, results: Path = RESULTS) -> str:
    """Return a page with all its tables written anew from the results.

    Raises:
        InputError: The page lacks a table, or has one that there is not.
    """
    motion, surfaces = Motion(results), Surfaces(results)
    tables = {name: make(motion) for name, make in _MOTION.items()}
    tables |= {name: make(surfaces) for name, make in _SURFACES.items()}
    found = [match.group(2) for match in _TABLE.finditer(page)]
    if sorted(found) != sorted(tables):
        raise InputError(f"the page should have the tables {', '.join(tables)}, not {found}")
    return _TABLE.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", page)


def main() -> int:
    """Take results, write the page or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--take", type=Path, nargs="+", default=[])
    parser.add_argument("--keep", action="store_true", help="rows that a folder lacks")
    parser.add_argument("--runs", type=Path, help="of the studies, for their weights")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for folder in options.take:
        taken = take(folder, RESULTS, keep=options.keep)
        print(taken.relative_to(ROOT))
        if options.runs is not None:
            kept, left = take_weights(folder, options.runs, CHECKPOINTS / taken.parent.name)
            for place in kept:
                print(place.relative_to(ROOT))
            for place in left:
                print(f"{place.relative_to(options.runs)}: its weights are too large to keep")
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if options.check:
        if after != before:
            print("docs/published.md is not what results/ gives: run python tools/published.py")
        return int(after != before)
    atomic.write(PAGE, after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
