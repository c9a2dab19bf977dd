"""Take the results of studies into the repository: their tables, and the weights that were scored.

`tools/published.py` does it with ``--take``, and makes a page of what lies there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undula import atomic
from undula.cli.configured import read_motion_protocol, read_protocol
from undula.errors import InputError
from undula.motion.studies.protocol import MotionProtocol
from undula.report.studies import METRICS, SPREAD_METRICS, rows_notes
from undula.report.systems import SystemRow, SystemsTable
from undula.surface.studies.protocol import Protocol, StudyTable

_TIMES = "times.json"
_ROWS_NOTE = re.compile(r"\d+ test proteins.* on (\d+) proteins, validation among them\.")
_ROWS_NOTES = re.compile(rf"{_ROWS_NOTE.pattern}|Left out: .*")
_OTHER_SCORES = "the rows before cannot stay: the trivial rows beside them have other scores"
_SCORED = {"models": METRICS, "distributions": SPREAD_METRICS}
"""Kinds of tables of surfaces that have trivial rows, and their measures."""
_PLACE = re.compile(r"^[/~]|\s/(tmp|home|root|work|Users)/")
Tables = Mapping[str, Any]
"""File name → what it holds."""


def take(folder: Path, results: Path, *, keep: bool = False) -> Path:
    """Copy the tables of a study, and return where they lie.

    Args:
        folder: Of the study.
        results: Of all results.
        keep: Whether rows that were taken before and are not in the folder stay.

    Raises:
        InputError: It is no folder of a study, or a table names a place on this machine; rows
            cannot stay beside the new ones.
    """
    if not (folder / "table-1.json").is_file():
        raise InputError(f"{folder} holds no study with a table-1.json")
    tables = {path.name: atomic.read_json(path) for path in sorted(folder.glob("*.json"))}
    tables.pop(_TIMES, None)
    for name, table in tables.items():
        for text in places_named(table):
            raise InputError(f"{folder / name} names a place of a machine: {text}")
    named = systems_of(tables["table-1.json"])
    protocol = "domino" if named else "moe-dsr"
    out = results / protocol / (named[0] if len(named) == 1 else "all")
    if keep:
        if len(named) > 1:
            raise InputError(f"{folder}: rows are kept beside those of one system of atoms alone")
        before = {path.name: atomic.read_json(path) for path in sorted(out.glob("*.json"))}
        tables = (
            motion_beside(before, tables, read_motion_protocol("domino"))
            if named
            else surfaces_beside(before, tables, read_protocol("moe-dsr"))
        )
    for path in out.glob("*.json") if out.is_dir() else ():
        path.unlink()
    for name, table in tables.items():
        atomic.write_json(out / name, table)
    return out


def take_weights(
    folder: Path, runs: Path, out: Path, largest: int = 4_000_000
) -> tuple[list[Path], list[Path]]:
    """Copy the weights that the scores of a study are of.

    Args:
        folder: Of the study.
        runs: Its run folders.
        out: A folder of run folders that hold nothing but their weights.
        largest: What a file may have to be kept in a repository, bytes.

    Returns:
        Where they lie, and the run folders whose weights are too large.

    Raises:
        InputError: A run has other weights than were scored.
    """
    scored = {}
    for path in sorted((folder / "scores").rglob("*.json")):
        weights = atomic.read_json(path)["of"].get("weights")
        if weights is not None:
            parts = path.relative_to(folder / "scores").with_suffix("").parts
            seed = next(place for place, one in enumerate(parts) if one.startswith("seed-"))
            row = parts[seed - 1].partition("@")[0]
            scored[Path(*parts[: seed - 1], row, parts[seed])] = weights
    taken, left = [], []
    for place, weights in scored.items():
        files = sorted((runs / place).glob("*.safetensors"))
        found = [path for path in files if atomic.sha256(path) == weights]
        if not found:
            raise InputError(f"{runs / place} has not the weights that {folder} has the scores of")
        if found[0].stat().st_size > largest:
            left.append(runs / place)
            continue
        atomic.write(out / place / found[0].name, found[0].read_bytes())
        taken.append(out / place)
    return taken, left


def motion_beside(before: Tables, now: Tables, protocol: MotionProtocol) -> dict[str, Any]:
    """Return the tables of a system of atoms with the rows that they lack from those before.

    Rows that the protocol no longer asks for there do not stay.

    Raises:
        InputError: The trivial rows differ, so that rows were not scored alike.
    """
    [system] = systems_of(now["table-1.json"])
    order = [row.name for row in protocol.rows]

    def row_of(name: str) -> str:
        """Return the row that a name is of: one with a system before it, or a label, too."""
        for row in protocol.rows:
            if f"{name}, ".startswith(f"{row.label}, "):
                return row.name
        return name.removeprefix(f"{system}/").partition("@")[0]

    means = [tables.get("table-1.json", {}).get("mean", {}) for tables in (before, now)]
    trivial = [{n: one for n, one in mean.items() if row_of(n) not in order} for mean in means]
    if trivial[0] != trivial[1]:
        raise InputError(_OTHER_SCORES)
    gone = {row.name for row in protocol.rows if row.systems and system not in row.systems}
    gone |= {row_of(name) for name in means[1]}

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: kept(one) for name, one in value.items() if row_of(name) not in gone}
        if isinstance(value, list) and _by_row(value):
            return [one for one in value if row_of(one["row"]) not in gone]
        return value

    def joined(old: Any, new: Any) -> Any:
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            both = {name: joined(old[name], new[name]) for name in old if name in new}
            return {**old, **new, **both}
        if isinstance(old, list) and isinstance(new, list) and _by_row(new):
            return sorted(old + new, key=place)
        return new

    def place(entry: Mapping[str, Any]) -> tuple[int, int]:
        """Row by row; where there are lags, as in the table of calibration, lag by lag."""
        name = row_of(entry["row"])
        return entry.get("lag", 0), order.index(name) if name in order else len(order)

    return joined(kept(before), now)


def surfaces_beside(before: Tables, now: Tables, protocol: Protocol) -> dict[str, Any]:
    """Return the tables of a study of surfaces with the rows that they lack from those before.

    They are what one study of all these rows would have written.

    Raises:
        InputError: Rows that are not trained differ, so that rows were not scored alike, or there
            are none in both; rows were trained on another number of proteins.
    """
    shared = {f"{asked.name}.json" for asked in protocol.tables if asked.kind in _SCORED}
    if not shared & before.keys() & now.keys():
        raise InputError(f"no table has trivial rows in both: {', '.join(sorted(shared))}")
    rows = {**before["rows.json"], **now["rows.json"]}
    found: dict[str, Any] = {**before, **now, "rows.json": rows}
    for asked in protocol.tables:
        name = f"{asked.name}.json"
        if name not in before or name not in now:
            continue
        if asked.kind in _SCORED:
            found[name] = _systems_beside(before[name], now[name], rows, protocol, asked)
        else:
            found[name] = _appendices_beside(before[name], now[name])
    return found


def _appendices_beside(before: Tables, now: Tables) -> dict[str, Any]:
    """Return the tables of a file, or those that have the rows of both."""
    found = {**before, **now}
    for key in before.keys() & now.keys():
        if "rows" in now[key]:
            found[key] = {**now[key], "rows": {**before[key]["rows"], **now[key]["rows"]}}
    return found


def _systems_beside(
    before: Tables, now: Tables, rows: Tables, protocol: Protocol, asked: StudyTable
) -> dict[str, Any]:
    """Return a table of models × proteins with the rows of both."""
    others = [[one for one in table["rows"] if one["kind"] != "model"] for table in (before, now)]
    notes = [[n for n in t["notes"] if not _ROWS_NOTES.fullmatch(n)] for t in (before, now)]
    if others[0] != others[1] or notes[0] != notes[1]:
        raise InputError(_OTHER_SCORES)
    training = [_ROWS_NOTE.fullmatch(table["notes"][0]) for table in (before, now)]
    counts = {int(one[1]) for one in training if one is not None}
    if len(counts) != 1:
        raise InputError("the rows before cannot stay: they were trained on other proteins")
    known: dict[str, list[Any]] = {}
    for table in (before, now):
        for name in (one for one in asked.rows if one in rows):
            entries = [one for one in table["rows"] if _is(one, rows[name]["label"])]
            known[name] = entries or known.get(name, [])
    table = SystemsTable(
        title=now["title"],
        metrics=_SCORED[asked.kind],
        rows=tuple(
            SystemRow(
                name=one["name"],
                kind=one["kind"],
                values=one["values"],
                published=one["published"],
            )
            for one in [*(e for row in asked.rows for e in known.get(row, ())), *others[1]]
        ),
        systems=tuple(now["proteins"]),
        notes=(
            *rows_notes(
                protocol,
                asked,
                {name: (one["seeds"], one["steps"]) for name, one in rows.items()},
                proteins=len(now["proteins"]),
                training=counts.pop(),
                skipped={},
            ),
            *notes[1],
        ),
    )
    return table.as_dict()


def _is(entry: Mapping[str, Any], label: str) -> bool:
    """Tell whether an entry of a table is of a row; one as a distribution has several."""
    return entry["kind"] == "model" and entry["name"].partition(": ")[0] == label


def _by_row(table: list[Any]) -> bool:
    return bool(table) and all(isinstance(one, Mapping) and "row" in one for one in table)


def places_named(value: Any) -> list[str]:
    """Return the texts of a table, keys among them, that name a place of a machine."""
    if isinstance(value, Mapping):
        return [text for one in (*value, *value.values()) for text in places_named(one)]
    if isinstance(value, list):
        return [text for one in value for text in places_named(one)]
    return [value] if isinstance(value, str) and _PLACE.search(value) else []


def systems_of(table: Mapping[str, Any]) -> list[str]:
    """Return the names of the systems of atoms that a table has; none of one of surfaces."""
    mean = table.get("mean")
    return sorted({name for row in mean.values() for name in row}) if mean else []
