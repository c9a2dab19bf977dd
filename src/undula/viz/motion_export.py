"""The files of a study of moving atoms: every table as Markdown, JSON and CSV, and the figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from undula import atomic
from undula.motion.studies.study import MotionStudy, SystemScores
from undula.report.appendix import Appendix
from undula.report.distributions import calibration_table, samples_table
from undula.report.horizons import (
    MEASURES,
    ablation_table,
    full_table,
    lags_table,
    regimes_table,
    rows_table,
    skill_table,
    windows_table,
)
from undula.viz.motion_figures import write_motion_figures

_COLUMNS = 9
"""At most so many cells beside a row's name on a terminal; the others follow below."""


def write_motion_study(study: MotionStudy, out: Path, runs: Path) -> tuple[str, dict[str, Any]]:
    """Write the tables and figures of a study; the same scores give the same bytes.

    Args:
        study: The scores.
        out: Receives ``tables.md``, and ``NAME.csv`` and ``NAME.json`` for each table; the
            figures of each system as ``SYSTEM-….png``.
        runs: Where the run folders lie, for the figure of one atom.

    Returns:
        All tables as text for a terminal, and as plain values.
    """
    tables = motion_tables(study)
    for table in tables:
        atomic.write(out / f"{table.key}.csv", _csv(table))
        atomic.write_json(out / f"{table.key}.json", dict(table.values))
    left_out = [f"{name} is left out: {why}" for name, why in study.skipped.items()]
    atomic.write(out / "tables.md", "\n".join([*(t.markdown() for t in tables), *left_out, ""]))
    for system in study.systems:
        write_motion_figures(system, study, out, runs)
    texts = [_terminal(table) for table in tables]
    return "\n\n\n".join([*texts, *left_out]), {table.key: dict(table.values) for table in tables}


def motion_tables(study: MotionStudy) -> list[Appendix]:
    """Return all tables of a study, that over all systems first."""
    tables = [full_table(study)]
    if any(one.models for one in study.systems):
        tables.append(rows_table(study))
    for system in study.systems:
        tables += _system_tables(system, study)
    if any(row.name in study.protocol.ablation for one in study.systems for row in one.models):
        tables.append(ablation_table(study))
    return tables


def _system_tables(system: SystemScores, study: MotionStudy) -> list[Appendix]:
    tables = [windows_table(system, study, measure) for measure in MEASURES]
    for measure in ("physical", "paper_expected"):
        tables += [lags_table(system, study, measure), skill_table(system, study, measure)]
    tables += [calibration_table(system, study), samples_table(system)]
    boxed = system.opened.source.recordings[0].boxes is not None
    # In Å² atoms of a liquid spread for ever, a constant too: only the wrapped error levels off.
    return [*tables, regimes_table(system, study, "paper_expected" if boxed else "physical")]


def _terminal(table: Appendix) -> str:
    """Return a table as text, a wide one in blocks of columns below each other."""
    blocks = []
    for start in range(1, len(table.headings), _COLUMNS):
        stop = start + _COLUMNS
        part = Appendix(
            title=table.title if start == 1 else "",
            key=table.key,
            headings=[table.headings[0], *table.headings[start:stop]],
            rows=[[row[0], *row[start:stop]] for row in table.rows],
            sentences=table.sentences if stop >= len(table.headings) else [],
            values={},
        )
        blocks.append(part.terminal().strip("\n"))
    return "\n\n".join(blocks)


def _csv(table: Appendix) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.headings, *table.rows])
    return out.getvalue()
