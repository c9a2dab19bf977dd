"""The files of a study: every table as Markdown, JSON, CSV and LaTeX, and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undula import atomic
from undula.report.appendix import Appendix
from undula.report.studies import (
    distributions_table,
    experts_series,
    experts_table,
    models_table,
    routers_table,
    rows_table,
    specialisation_tables,
)
from undula.surface.forecasters import BLURRED, COPIED
from undula.surface.studies.protocol import StudyTable
from undula.surface.studies.study import StudyResult
from undula.viz.expert_figure import expert_figure

_REFERENCES = (COPIED, BLURRED)


def write_study(
    study: StudyResult, out: Path, ecod: Path | None = None
) -> tuple[str, dict[str, Any]]:
    """Write the tables of a study; the same scores give the same bytes.

    Args:
        study: The scores.
        out: Receives ``NAME.md``, ``.json``, ``.csv``, ``.tex`` for each table and for that of
            the rows, ``rows``, and ``NAME.png`` for a figure.
        ecod: ECOD's domain file, if it is there.

    Returns:
        All tables as text for a terminal, and as plain values. A table of whose rows none was
        trained is left out, and its files of an earlier study in the folder go.
    """
    texts, values = [], {}
    for asked in study.protocol.tables:
        if not any(name in study.rows for name in asked.rows):
            texts.append(f"{asked.title}: left out, none of its rows was trained")
            for path in out.glob(f"{asked.name}.*"):
                path.unlink()  # of an earlier study, of other rows
            continue
        text, values[asked.name] = _write(study, asked, out, ecod)
        texts.append(text)
    rows = rows_table(study)
    _write_appendices(rows.key, [rows], dict(rows.values), out)
    texts.append(rows.terminal())
    values[rows.key] = dict(rows.values)
    return "\n\n\n".join(texts), values


def _write(
    study: StudyResult, asked: StudyTable, out: Path, ecod: Path | None
) -> tuple[str, dict[str, Any]]:
    if asked.kind in ("models", "distributions"):
        make = models_table if asked.kind == "models" else distributions_table
        table = make(study, asked)
        described = table.as_dict()
        atomic.write(out / f"{asked.name}.md", table.markdown())
        atomic.write(out / f"{asked.name}.tex", table.latex())
        atomic.write(out / f"{asked.name}.csv", table.csv())
        atomic.write_json(out / f"{asked.name}.json", described)
        return table.terminal(), described
    if asked.kind == "routers":
        tables = [routers_table(study, asked)]
    elif asked.kind == "experts":
        tables = [experts_table(study, asked)]
        _figure(study, asked, out)
    else:
        tables = specialisation_tables(study, asked, ecod)
    described = {table.key: dict(table.values) for table in tables}
    _write_appendices(asked.name, tables, described, out)
    return "\n\n".join(table.terminal() for table in tables), described


def _write_appendices(
    name: str, tables: Sequence[Appendix], described: dict[str, Any], out: Path
) -> None:
    atomic.write(out / f"{name}.md", "\n".join(table.markdown() for table in tables))
    atomic.write(out / f"{name}.tex", "\n".join(table.latex() for table in tables))
    atomic.write(out / f"{name}.csv", "\n".join(table.csv() for table in tables))
    atomic.write_json(out / f"{name}.json", described)


def _figure(study: StudyResult, asked: StudyTable, out: Path) -> None:
    series = experts_series(study, asked)
    still = {name: study.still[name] for name in _REFERENCES}
    expert_figure(
        out / f"{asked.name}.png",
        series,
        {
            name: sum(one["iou"] for one in means.values()) / len(means)
            for name, means in still.items()
        },
        {
            study.rows[name].training.model.gate.experts: told.iou
            for name, told in asked.published.items()
            if told.iou is not None and name in study.rows
        },
        "IoU, mean over test proteins",
    )
