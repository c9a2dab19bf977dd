"""What becomes of notices: all are told and stand in ``report.json``; ``--strict`` takes none.

A notice says that something of the input was dropped, assumed or guessed, or that a result lacks
something. Information that changes no result (a training went on, a damaged checkpoint was passed
over) is told while it happens and is not among them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from undula import atomic
from undula.errors import InputError, Notice, printable

REPORT = "report.json"


def placed(notices: Iterable[Notice], path: Path) -> tuple[Notice, ...]:
    """Return notices that name their file, and name it without its folder.

    Results are shared: where they were made is nobody's business.

    Args:
        notices: Of one file; a place that names none is taken to be all of it.
        path: The file.
    """

    def named(notice: Notice) -> Notice:
        place = notice.place or str(path)
        if place.startswith(str(path)):
            place = path.name + place[len(str(path)) :]
        return replace(notice, place=place)

    return tuple(named(notice) for notice in notices)


def merged(notices: Iterable[Notice]) -> list[Notice]:
    """Return the notices without exact repetitions, in their first order."""
    return list(dict.fromkeys(notices))


def refuse(notices: Iterable[Notice], *, strict: bool) -> None:
    """Raise where ``strict`` is asked for and there is anything to notice.

    Raises:
        InputError: The first notice with its place, and how many more there are.
    """
    found = merged(notices)
    if strict and found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InputError(f"{found[0]}{more}; --strict takes no notice")


def tell(notices: Iterable[Notice]) -> None:
    """Print each notice on one line of stderr."""
    for notice in merged(notices):
        print(f"notice: {printable(str(notice))}", file=sys.stderr)


def from_json(described: Iterable[Any]) -> list[Notice]:
    """Return notices that were stored by `undula.errors.Notice.as_dict`.

    Raises:
        TypeError: They are none.
    """
    parts = ("code", "message", "count", "place")
    found = []
    for notice in described:
        if not isinstance(notice, Mapping) or set(notice) != set(parts):
            raise TypeError(f"a notice has {', '.join(parts)}, not {notice!r}")
        found.append(Notice(**notice))
    return found


def write_report(folder: Path, notices: Iterable[Notice], **values: Any) -> str:
    """Write ``report.json``: what was done, and what was dropped, assumed or guessed.

    Args:
        folder: Of the result.
        notices: All of them.
        values: What else belongs there, plain values.

    Returns:
        The SHA-256 of the file.
    """
    described = [notice.as_dict() for notice in merged(notices)]
    return atomic.write_json(folder / REPORT, {**values, "notices": described})


def add_to_report(folder: Path, part: str, notices: Iterable[Notice], **values: Any) -> None:
    """Add what a later command noticed to the ``report.json`` of a result, in place of its last.

    Args:
        folder: Of the result.
        part: Such as ``evaluation``.
        notices: Of that command.
        values: What else belongs there, plain values.

    Raises:
        InputError: There is a report, but it is damaged.
    """
    path = folder / REPORT
    before: dict[str, Any] = {}
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            before.keys()
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is damaged: it is no JSON object") from error
    described = [notice.as_dict() for notice in merged(notices)]
    atomic.write_json(path, {**before, part: {**values, "notices": described}})
