"""A small table of its own below a table of scores: text in cells, with a sentence or two."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undula.errors import UsageError
from undula.report.latex import latex_table
from undula.report.markdown import markdown_table, markdown_text


@dataclass(frozen=True, kw_only=True)
class Appendix:
    """What belongs beside the scores but has other columns.

    Attributes:
        title: Above it.
        key: Its name in the data.
        headings: Of the columns; the first is that of the rows' names.
        rows: Ready text, a cell per heading.
        sentences: Below it.
        values: The numbers, as plain values for JSON.
    """

    title: str
    key: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    sentences: Sequence[str]
    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headings):
                raise UsageError(
                    f"the table {self.title!r} has {len(self.headings)} columns but "
                    f"{len(row)} cells in the row {row[0] if row else ''!r}"
                )

    def markdown(self) -> str:
        """Return the table as Markdown with its sentences below."""
        body = markdown_table([self.headings, *self.rows])
        below = map(markdown_text, self.sentences)
        return "\n".join([f"**{markdown_text(self.title)}**", "", body, "", *below, ""])

    def latex(self) -> str:
        """Return the table as LaTeX with its sentences below."""
        return latex_table([self.headings, *self.rows], self.title, self.sentences)

    def csv(self) -> str:
        """Return the cells as CSV."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.headings, *self.rows])
        return out.getvalue()

    def terminal(self) -> str:
        """Return the table as aligned text with its sentences below."""
        lines = [list(self.headings), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        body = [
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([self.title, "", *body, "", *self.sentences])
