"""Tables as Markdown, in which names from files are text and never markup."""

from __future__ import annotations

from collections.abc import Sequence

_SPECIAL = {"\\": "\\\\", "|": "\\|", "<": "&lt;", "[": "\\[", "`": "\\`"}


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a Markdown table.

    Args:
        lines: Headings first.
    """
    headings, *rows = (
        "| " + " | ".join(markdown_text(cell) for cell in line) + " |" for line in lines
    )
    return "\n".join([headings, "|" + " --- |" * len(lines[0]), *rows])


def markdown_text(text: str) -> str:
    """Return text on one line, without what Markdown takes for a cell's end, HTML or a link."""
    return " ".join("".join(_SPECIAL.get(letter, letter) for letter in text).split())
