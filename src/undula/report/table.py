"""Tables of scores that always carry the trivial rows, a skill and a verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from undula.errors import UsageError
from undula.report.appendix import Appendix
from undula.report.latex import latex_table
from undula.report.markdown import markdown_table, markdown_text

Kind = Literal["model", "trivial", "oracle"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column.

    Attributes:
        key: Its name in the data.
        label: Its heading.
        higher_is_better: Which way is up.
        digits: Decimals to print.
    """

    key: str
    label: str
    higher_is_better: bool = True
    digits: int = 3

    def skill(self, own: float, best: float) -> float:
        """Return which part of another score's error this one removes; 0 where that is perfect."""
        if self.higher_is_better:
            return (own - best) / (1 - best) if best < 1 else 0.0
        return 1 - own / best if best > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One forecaster and its scores.

    Attributes:
        name: What it is called.
        kind: A model; a trivial forecast, which a model must beat; or an oracle, which has seen
            the truth and shows what there is to reach.
        values: For each metric one number per frame.
    """

    name: str
    kind: Kind
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of scores over the same frames.

    The first metric is the one by which rows are judged. The skill of a row is the part of the
    best trivial row's error that it removes,

        skill = (m − m_best) / (1 − m_best)    for metrics whose perfect value is 1,
        skill = 1 − m / m_best                 for metrics whose perfect value is 0,

    so it is 0 for the best trivial row, 1 for a perfect forecast, and negative for worse.

    Attributes:
        title: Above the table.
        metrics: Columns, the judging one first.
        rows: At least one trivial row.
        times_ps: Of the frames.
        appendices: Small tables that stand below.
        notes: Sentences below the verdicts.
    """

    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    times_ps: tuple[float, ...]
    appendices: tuple[Appendix, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(row.kind == "trivial" for row in self.rows):
            raise UsageError("a table needs at least one trivial row")
        for row in self.rows:
            for metric in self.metrics:
                if len(row.values[metric.key]) != len(self.times_ps):
                    raise UsageError(f"{row.name} has no {metric.key} for some frames")

    def mean(self, row: Row, metric: Metric) -> float:
        """Return a row's mean over the frames."""
        return float(np.mean(row.values[metric.key]))

    def deviation(self, row: Row, metric: Metric) -> float:
        """Return a row's standard deviation over the frames."""
        return float(np.std(row.values[metric.key]))

    @property
    def best_trivial(self) -> Row:
        """The trivial row with the best mean of the judging metric."""
        judge = self.metrics[0]
        sign = 1 if judge.higher_is_better else -1
        trivial = [row for row in self.rows if row.kind == "trivial"]
        return max(trivial, key=lambda row: sign * self.mean(row, judge))

    def skill(self, row: Row) -> float:
        """Return the skill of a row in the judging metric; 0 where the best trivial is perfect."""
        judge = self.metrics[0]
        own, best = self.mean(row, judge), self.mean(self.best_trivial, judge)
        return judge.skill(own, best)

    def verdicts(self) -> list[str]:
        """Say of each model in one sentence which trivial rows it beats and which it does not."""
        judge, best = self.metrics[0], self.best_trivial
        sign = 1 if judge.higher_is_better else -1
        sentences = []
        for row in self.rows:
            if row.kind != "model":
                continue
            own = self.mean(row, judge)
            beaten: list[str] = []
            unbeaten: list[str] = []
            for other in self.rows:
                if other.kind == "trivial":
                    theirs = self.mean(other, judge)
                    place = beaten if sign * (own - theirs) > 0 else unbeaten
                    place.append(f"{other.name} ({theirs:.{judge.digits}f})")
            difference = np.subtract(row.values[judge.key], best.values[judge.key]) * sign
            sentences.append(
                f"{row.name} ({judge.label} {own:.{judge.digits}f}) beats "
                f"{', '.join(beaten) or 'no trivial row'}"
                + (f"; it does not beat {', '.join(unbeaten)}" if unbeaten else "")
                + f". Against the best of them it is better in {int((difference > 0).sum())} of "
                f"{len(difference)} frames (one system: too few to judge in general)."
            )
        return sentences

    def cells(self, metrics: Sequence[Metric] | None = None) -> list[list[str]]:
        """Return headings and rows as text.

        Args:
            metrics: Columns; by default all.
        """
        chosen = self.metrics if metrics is None else metrics
        headings = [f"{m.label} {'↑' if m.higher_is_better else '↓'}" for m in chosen]
        lines = [["forecast", *headings, "skill"]]
        for row in self.rows:
            name = row.name if row.kind == "model" else f"{row.name} ({row.kind})"
            scores = [
                f"{self.mean(row, m):.{m.digits}f} ± {self.deviation(row, m):.{m.digits}f}"
                for m in chosen
            ]
            lines.append([name, *scores, f"{self.skill(row):+.3f}"])
        return lines

    def markdown(self) -> str:
        """Return the table as Markdown, with its verdicts below."""
        below = [small.markdown() for small in self.appendices]
        return "\n".join(
            [
                f"**{markdown_text(self.title)}**",
                "",
                markdown_table(self.cells()),
                "",
                *map(markdown_text, (*self.verdicts(), *self.notes)),
                "",
                *below,
            ]
        )

    def terminal(self, columns: int = 5) -> str:
        """Return the table as aligned text, with its verdicts below.

        Args:
            columns: At most so many metrics side by side; the others follow below.
        """
        blocks = [self.title]
        for start in range(0, len(self.metrics), columns):
            lines = self.cells(self.metrics[start : start + columns])
            widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
            lines.insert(1, ["-" * width for width in widths])
            blocks.append(
                "\n".join(
                    "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
                    for line in lines
                )
            )
        below = [small.terminal() for small in self.appendices]
        return "\n\n".join([*blocks, "\n".join([*self.verdicts(), *self.notes]), *below])

    def latex(self) -> str:
        """Return the table and those below it as LaTeX, with verdicts and notes."""
        below = [small.latex() for small in self.appendices]
        own = latex_table(self.cells(), self.title, [*self.verdicts(), *self.notes])
        return "\n".join([own, *below])

    def csv(self) -> str:
        """Return every score of every frame, one line each row, time and metric.

        Appendices have files of their own (`Appendix.csv`).
        """
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["forecast", "kind", "time_ps", "metric", "value"])
        for row in self.rows:
            for metric in self.metrics:
                for time, value in zip(self.times_ps, row.values[metric.key], strict=True):
                    writer.writerow([row.name, row.kind, f"{time:g}", metric.key, f"{value:.6g}"])
        return out.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "title": self.title,
            "judged_by": self.metrics[0].key,
            "frames": len(self.times_ps),
            "times_ps": list(self.times_ps),
            "best_trivial": self.best_trivial.name,
            "verdicts": self.verdicts(),
            "notes": list(self.notes),
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "skill": self.skill(row),
                    "mean": {m.key: self.mean(row, m) for m in self.metrics},
                    "std": {m.key: self.deviation(row, m) for m in self.metrics},
                    "values": {m.key: list(row.values[m.key]) for m in self.metrics},
                }
                for row in self.rows
            ],
        } | {small.key: dict(small.values) for small in self.appendices}
