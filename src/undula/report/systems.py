"""Tables of models × proteins: mean ± deviation over seeds, interval over proteins, verdict."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from undula.errors import UsageError
from undula.report.latex import latex_table
from undula.report.markdown import markdown_table, markdown_text
from undula.report.table import Metric

Kind = Literal["model", "trivial", "oracle"]
ENOUGH = 20
"""With fewer proteins than this a table says that they are too few to judge."""
_DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class SystemRow:
    """One forecaster and its scores on every protein.

    Attributes:
        name: What it is called.
        kind: A model; a trivial forecast, which a model must beat; or an oracle, which has seen
            the truth and shows what there is to reach.
        values: For each metric and protein one number per seed. A metric of which a row says
            nothing may lack, and an oracle may lack for some proteins.
        published: What a publication says of it, by metric.
    """

    name: str
    kind: Kind
    values: Mapping[str, Mapping[str, Sequence[float]]]
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SystemsTable:
    """Rows of scores over the same proteins.

    The mean over proteins is taken for each seed; ± is the deviation over seeds (n − 1). The
    interval is a bootstrap of proteins, each with its mean over seeds (95 %, percentiles,
    always the same draws), so it says how far the mean of other proteins of the same kind may
    be; it does not know the chance of training. Skill is that of `undula.report.table.Table`.

    Attributes:
        title: Above the table.
        metrics: Columns, the judging one first.
        rows: At least one trivial row.
        systems: Names of the proteins, in order.
        notes: Sentences below.
    """

    title: str
    metrics: tuple[Metric, ...]
    rows: tuple[SystemRow, ...]
    systems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.systems:
            raise UsageError("a table over proteins needs at least one")
        if not any(row.kind == "trivial" for row in self.rows):
            raise UsageError("a table needs at least one trivial row")
        if not self._trivial:
            raise UsageError("a table needs a trivial row with the metric that judges")
        for row in self.rows:
            if row.kind == "model" and not self.has(row, self.metrics[0]):
                raise UsageError(f"{row.name} has no {self.metrics[0].key}")
            for metric in self.metrics:
                known = row.values.get(metric.key, {})
                seeds = {len(known.get(name, ())) for name in self.systems}
                if row.kind == "oracle" or not known:
                    seeds.discard(0)
                if len(seeds) > 1 or 0 in seeds:
                    raise UsageError(f"{row.name} has no {metric.key} for some protein and seed")

    def has(self, row: SystemRow, metric: Metric) -> bool:
        """Tell whether a row says anything of a metric."""
        return any(row.values.get(metric.key, {}).get(name) for name in self.systems)

    def scores(self, row: SystemRow, metric: Metric) -> np.ndarray:
        """Return a row's scores, proteins × seeds; proteins that an oracle lacks are left out."""
        known = row.values[metric.key]
        return np.array([known[name] for name in self.systems if known.get(name)])

    def name(self, row: SystemRow) -> str:
        """Return a row's name with what it is, and of how many proteins where not of all."""
        if row.kind == "model":
            return row.name
        present = max(len(self.scores(row, m)) for m in self.metrics if self.has(row, m))
        part = "" if present == len(self.systems) else f", {present} of {len(self.systems)}"
        return f"{row.name} ({row.kind}{part})"

    @property
    def _trivial(self) -> list[SystemRow]:
        """The trivial rows that the first metric can judge."""
        return [
            row for row in self.rows if row.kind == "trivial" and self.has(row, self.metrics[0])
        ]

    def mean(self, row: SystemRow, metric: Metric) -> float:
        """Return a row's mean over proteins and seeds."""
        return float(self.scores(row, metric).mean())

    def deviation(self, row: SystemRow, metric: Metric) -> float | None:
        """Return the deviation over seeds of the mean over proteins; none for one seed."""
        return _deviation(self.scores(row, metric).mean(axis=0))

    def interval(self, row: SystemRow, metric: Metric) -> tuple[float, float] | None:
        """Return the bootstrap interval of a row's mean over proteins; none for one protein."""
        return bootstrap_interval(self.scores(row, metric).mean(axis=1))

    @property
    def best_trivial(self) -> SystemRow:
        """The trivial row with the best mean of the judging metric."""
        judge = self.metrics[0]
        sign = 1 if judge.higher_is_better else -1
        return max(self._trivial, key=lambda row: sign * self.mean(row, judge))

    def advantage(self, row: SystemRow) -> np.ndarray:
        """Return how much better than the best trivial row it is, by the judge, per protein."""
        judge = self.metrics[0]
        sign = 1 if judge.higher_is_better else -1
        own, best = (self.scores(one, judge).mean(axis=1) for one in (row, self.best_trivial))
        return sign * (own - best)

    def skill(self, row: SystemRow) -> float:
        """Return the part of the best trivial row's error that a row removes."""
        judge = self.metrics[0]
        own, best = self.mean(row, judge), self.mean(self.best_trivial, judge)
        return judge.skill(own, best)

    def verdicts(self) -> list[str]:
        """Say of each model whether it beats the best trivial row, and if that can be judged."""
        judge, best, count = self.metrics[0], self.best_trivial, len(self.systems)
        said = []
        for row in self.rows:
            if row.kind != "model":
                continue
            better = self.advantage(row)
            won = "beats" if better.mean() > 0 else "does not beat"
            interval = bootstrap_interval(better)
            within = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
            said.append(
                f"{row.name} {won} the best trivial row, {best.name}: {judge.label} "
                f"{better.mean():+.{judge.digits}f}{within}, better on "
                f"{int((better > 0).sum())} of {count} proteins."
            )
        few = f"n = {count} proteins"
        said.append(few + (": too few to judge." if count < ENOUGH else "."))
        return said

    def cells(self) -> list[list[str]]:
        """Return the summary as text: the mean over proteins for every metric."""
        judge = self.metrics[0]
        published = [m for m in self.metrics if any(m.key in row.published for row in self.rows)]
        lines = [
            [
                "forecast",
                *(_heading(m) for m in self.metrics),
                f"95 % of {judge.label}",
                "skill",
                *(f"published {m.label}" for m in published),
            ]
        ]
        for row in self.rows:
            judged = self.has(row, judge)
            interval = self.interval(row, judge) if judged else None
            lines.append(
                [
                    self.name(row),
                    *(
                        _text(self.mean(row, m), self.deviation(row, m), m.digits)
                        if self.has(row, m)
                        else "–"
                        for m in self.metrics
                    ),
                    "–"
                    if interval is None
                    else f"{interval[0]:.{judge.digits}f}–{interval[1]:.{judge.digits}f}",
                    f"{self.skill(row):+.3f}" if judged else "–",
                    *(
                        f"{row.published[m.key]:.4f}" if m.key in row.published else "–"
                        for m in published
                    ),
                ]
            )
        return lines

    def system_cells(self, metric: Metric) -> list[list[str]]:
        """Return models × proteins of one metric as text, the mean of all last."""
        lines = [["forecast", *self.systems, "all"]]
        for row in self.rows:
            if not self.has(row, metric):
                continue
            known = [np.array(row.values[metric.key].get(name, ())) for name in self.systems]
            cells = [
                _text(float(seeds.mean()), _deviation(seeds), metric.digits) if len(seeds) else "–"
                for seeds in known
            ]
            total = _text(self.mean(row, metric), self.deviation(row, metric), metric.digits)
            lines.append([self.name(row), *cells, total])
        return lines

    def markdown(self) -> str:
        """Return the summary, then every metric by protein, then verdicts and notes."""
        blocks = [f"**{markdown_text(self.title)}**", "", markdown_table(self.cells())]
        for metric in self.metrics:
            blocks += ["", f"{markdown_text(_heading(metric))}, by protein", ""]
            blocks.append(markdown_table(self.system_cells(metric)))
        below = [f"- {markdown_text(line)}" for line in (*self.verdicts(), *self.notes)]
        return "\n".join([*blocks, "", *below, ""])

    def terminal(self, columns: int = 5) -> str:
        """Return the summary and the judging metric by protein as aligned text.

        Args:
            columns: At most so many proteins side by side; the others follow below.
        """
        blocks = [self.title, aligned_text(self.cells())]
        lines = self.system_cells(self.metrics[0])
        blocks.append(f"{_heading(self.metrics[0])}, by protein")
        for start in range(1, len(lines[0]), columns):
            blocks.append(
                aligned_text([[line[0], *line[start : start + columns]] for line in lines])
            )
        return "\n\n".join([*blocks, "\n".join([*self.verdicts(), *self.notes])])

    def _of(self, row: SystemRow) -> list[Metric]:
        """Return the metrics of which a row says something."""
        return [metric for metric in self.metrics if self.has(row, metric)]

    def latex(self) -> str:
        """Return the summary as LaTeX, with verdicts and notes."""
        return latex_table(self.cells(), self.title, [*self.verdicts(), *self.notes])

    def csv(self) -> str:
        """Return every score: one line for each row, protein, seed and metric."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["forecast", "kind", "protein", "seed_number", "metric", "value"])
        for row in self.rows:
            for metric in self.metrics:
                for name in self.systems:
                    for number, value in enumerate(row.values.get(metric.key, {}).get(name, ())):
                        writer.writerow(
                            [row.name, row.kind, name, number, metric.key, f"{value:.6g}"]
                        )
        return out.getvalue()

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "title": self.title,
            "judged_by": self.metrics[0].key,
            "proteins": list(self.systems),
            "best_trivial": self.best_trivial.name,
            "verdicts": self.verdicts(),
            "notes": list(self.notes),
            "rows": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "skill": self.skill(row) if self.has(row, self.metrics[0]) else None,
                    "mean": {m.key: self.mean(row, m) for m in self._of(row)},
                    "std_over_seeds": {m.key: self.deviation(row, m) for m in self._of(row)},
                    "interval": {
                        m.key: None if (found := self.interval(row, m)) is None else list(found)
                        for m in self._of(row)
                    },
                    "published": dict(row.published),
                    "values": {
                        m.key: {
                            name: list(row.values[m.key][name])
                            for name in self.systems
                            if name in row.values[m.key]
                        }
                        for m in self._of(row)
                    },
                }
                for row in self.rows
            ],
        }


def bootstrap_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean under redrawing of the values, by percentiles.

    Args:
        values: One per protein.

    Returns:
        Both ends, always the same for the same values; none for a single value, whose spread
        nobody knows. For few values it is too narrow.
    """
    if len(values) < 2:
        return None
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(values), (_DRAWS, len(values)), generator=generator).numpy()
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def aligned_text(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as aligned text, a rule below the first."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in ruled
    )


def _heading(metric: Metric) -> str:
    return f"{metric.label} {'↑' if metric.higher_is_better else '↓'}"


def _text(mean: float, deviation: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _deviation(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
