"""Forecasts as files for people and programs: page, meshes, report, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from undula import atomic
from undula.errors import Notice, UsageError
from undula.io.meshes import write_ply
from undula.locks import claims
from undula.notices import add_to_report, refuse, write_report
from undula.report.samples import samples_table, sizes_table
from undula.report.table import Metric, Row, Table
from undula.surface.estimates import SHOWN_SAMPLES, SHOWN_VERTICES
from undula.surface.evaluation import Evaluation
from undula.surface.forecast import MovingSurface
from undula.surface.spread import with_spread
from undula.types import Mesh
from undula.viz.earlier import discard_earlier
from undula.viz.figures import calibration_figure, score_figure, strip_figure
from undula.viz.page import Page, write_page

FORMATS = ("html", "ply")
METRICS = (
    Metric(key="iou", label="IoU"),
    Metric(key="chamfer_angstrom", label="Chamfer Å", higher_is_better=False),
    Metric(key="hausdorff_95_angstrom", label="Hausdorff 95% Å", higher_is_better=False, digits=2),
    Metric(key="f_score_1A", label="F-score 1 Å"),
    Metric(key="normal_consistency_both", label="NC both ways"),
    Metric(key="iou_dsr", label="IoU (DSR)"),
    Metric(key="chamfer_dsr", label="CD (DSR)", higher_is_better=False, digits=4),
    Metric(key="chamfer_paper", label="CD (paper)", higher_is_better=False, digits=4),
    Metric(key="normal_consistency_dsr", label="NC (DSR)"),
    Metric(key="normal_consistency_paper", label="NC (paper)"),
    Metric(key="volume_error", label="volume error", higher_is_better=False),
    Metric(key="area_error", label="area error", higher_is_better=False),
)
"""Columns of a surface table; the first one judges."""
SCALAR_LABEL = "distance from the first frame's surface, Å"


@claims("folder")
def export(
    moving: MovingSurface,
    folder: Path,
    *,
    formats: Sequence[str] = ("html",),
    level: float = 0.0,
    strict: bool = False,
) -> list[Notice]:
    """Write a forecast and its exports into a folder.

    Args:
        moving: The forecast.
        folder: The result folder.
        formats: None of them to write no mesh; "html" for ``index.html``, "ply" for
            ``meshes/mesh-0000.ply`` and so on, with the displacement, and the spread of the
            samples if there are any, as vertex scalars.
        level: Of the level set, Å.
        strict: Refuse a forecast with any notice before anything is written.

    Returns:
        Notices about empty level sets; with those of the forecast they stand in ``report.json``.

    Raises:
        UsageError: An unknown format.
        InputError: There are notices, and none is allowed.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"there is no format {unknown[0]}; there are {', '.join(FORMATS)}")
    refuse(moving.notices, strict=strict)
    times_ps = moving.times_ps if formats else ()
    meshes = spread_meshes(moving, times_ps, [moving.mesh(time, level=level) for time in times_ps])
    notices = [
        Notice(
            code="empty-level-set",
            message=f"the level set {level:g} Å does not exist at {time:g} ps",
            place=f"{time:g} ps",
        )
        for time, mesh in zip(times_ps, meshes, strict=True)
        if mesh.is_empty
    ]
    refuse(notices, strict=strict)
    discard_earlier(folder)
    moving.save(folder)
    if "ply" in formats:
        for index, mesh in enumerate(meshes):
            write_ply(folder / "meshes" / f"mesh-{index:04d}.ply", mesh)
    if "html" in formats:
        shown = page(moving, times_ps, meshes, None, [*notices], level=level)
        write_page(folder / "index.html", shown)
    write_report(
        folder,
        [*moving.notices, *notices],
        structure=moving.structure.name,
        atoms=len(moving.structure),
        times_ps=list(moving.times_ps),
        samples=moving.samples,
        seed=moving.seed,
        empty_level_sets=len(notices),
    )
    return notices


def surface_table(moving: MovingSurface, evaluation: Evaluation) -> Table:
    """Return the table of an evaluation."""
    return Table(
        title=f"{moving.structure.name}: moving surface, {len(evaluation.times_ps)} frames "
        f"from {evaluation.times_ps[0]:g} to {evaluation.times_ps[-1]:g} ps, mean ± std",
        metrics=METRICS,
        rows=tuple(
            Row(name=name, kind=evaluation.kinds[name], values=scores)
            for name, scores in evaluation.scores.items()
        ),
        times_ps=evaluation.times_ps,
        appendices=()
        if evaluation.samples is None
        else (samples_table(evaluation.samples), sizes_table(evaluation.samples)),
        notes=evaluation.remarks,
    )


def spread_meshes(
    moving: MovingSurface, times_ps: Sequence[float], meshes: Sequence[Mesh]
) -> list[Mesh]:
    """Add the scalar ``spread`` to meshes that lack it; without two samples there is none."""
    if moving.samples < 2:
        return list(meshes)
    return [
        mesh if "spread" in mesh.scalars else with_spread(mesh, moving, time)
        for mesh, time in zip(meshes, times_ps, strict=True)
    ]


@claims("folder")
def write_evaluation(moving: MovingSurface, evaluation: Evaluation, folder: Path) -> Table:
    """Write an evaluation into a result folder and return its table.

    ``evaluation.json``, ``scores.csv``, ``scores.md``, ``scores.tex``, ``samples.csv`` and
    ``sizes.csv`` (the tables below), ``score.png`` (score over time), ``strip.png`` (truth above
    forecast, the paper's Figure 2), the page with truth beside forecast, and of samples
    ``calibration.png``.
    """
    table = surface_table(moving, evaluation)
    judge = table.metrics[0]
    series = _series(table)
    atomic.write_json(
        folder / "evaluation.json",
        table.as_dict() | {"notices": [notice.as_dict() for notice in evaluation.notices]},
    )
    atomic.write(folder / "scores.csv", table.csv())
    atomic.write(folder / "scores.md", table.markdown())
    atomic.write(folder / "scores.tex", table.latex())
    for small in table.appendices:
        atomic.write(folder / f"{small.key}.csv", small.csv())
    score_figure(folder / "score.png", list(evaluation.times_ps), series, judge.label)
    chosen = _evenly(len(evaluation.times_ps), 5)
    if evaluation.samples is not None and evaluation.samples.samples:
        calibration_figure(folder / "calibration.png", evaluation.samples)
    strip_figure(
        folder / "strip.png",
        [evaluation.times_ps[i] for i in chosen],
        [evaluation.truth[i] for i in chosen],
        [evaluation.forecast[i] for i in chosen],
        scalar_label=SCALAR_LABEL,
        truth_label="truth",
    )
    shown = page(
        moving, evaluation.times_ps, evaluation.forecast, evaluation.truth, [], table=table
    )
    write_page(folder / "index.html", shown)
    add_to_report(folder, "evaluation", evaluation.notices, frames=len(evaluation.times_ps))
    return table


def _series(table: Table) -> dict[str, list[float]]:
    """Return the judging score of each row over time, by name; oracles are told to be some."""
    return {
        f"{row.name} (oracle)" if row.kind == "oracle" else row.name: list(
            row.values[table.metrics[0].key]
        )
        for row in table.rows
    }


def page(
    moving: MovingSurface,
    times_ps: Sequence[float],
    forecast: list[Mesh],
    truth: list[Mesh] | None,
    notices: list[Notice],
    *,
    table: Table | None = None,
    spacing: float | None = None,
    level: float = 0.0,
) -> Page:
    """Return the page of a forecast; with samples also their spread and some of themselves.

    Args:
        moving: The forecast.
        times_ps: Of the meshes.
        forecast: Meshes.
        truth: True meshes at the same times, or none.
        notices: To tell beside those of the forecast.
        table: Scores, if there is a truth.
        spacing: Of the samples' meshes, Å; by default that of the forecast.
        level: Of the samples' level sets, Å.
    """
    forecast = spread_meshes(moving, times_ps, forecast)
    samples = _samples(moving, times_ps, forecast, spacing, level)
    notes = [
        *moving.trained.notes,
        *(str(notice) for notice in [*moving.notices, *notices]),
    ]
    scores: list[tuple[str, dict[str, str]]] = []
    series: dict[str, list[float]] | None = None
    if table is not None:
        below = [sentence for small in table.appendices for sentence in small.sentences]
        notes = [*table.verdicts(), *table.notes, *below, *notes]
        columns = [METRICS[0], METRICS[1], METRICS[4]]
        for line in table.cells(columns)[1:]:
            labels = [column.label for column in columns]
            scores.append((line[0], dict(zip([*labels, "skill"], line[1:], strict=True))))
        series = _series(table)
    return Page(
        title=f"{moving.structure.name}: moving surface",
        times_ps=list(times_ps),
        forecast=forecast,
        truth=truth,
        scalar="displacement",
        scalar_label=SCALAR_LABEL,
        further_scalars=_spread_label(moving),
        scores=scores,
        score_series=series,
        score_label=METRICS[0].label,
        notes=notes,
        truth_label="truth",
        others=samples,
    )


def _spread_label(moving: MovingSurface) -> dict[str, str]:
    if moving.samples < 2:
        return {}
    return {"spread": f"spread: standard deviation of {moving.samples} samples, Å"}


def _samples(
    moving: MovingSurface,
    times_ps: Sequence[float],
    forecast: Sequence[Mesh],
    spacing: float | None,
    level: float,
) -> dict[str, list[Mesh]]:
    """Return the meshes of some samples by name, as many as a page can carry."""
    vertices = max(sum(len(mesh.vertices) for mesh in forecast), 1)
    most = max(min(SHOWN_SAMPLES, SHOWN_VERTICES // vertices), 1)
    return {
        f"sample {sample + 1} of {moving.samples}": spread_meshes(
            moving,
            times_ps,
            [moving.mesh(time, spacing=spacing, level=level, sample=sample) for time in times_ps],
        )
        for sample in range(min(most, moving.samples))
    }


def _evenly(count: int, most: int) -> list[int]:
    """Return up to ``most`` indices, evenly spaced from the first to the last of ``count``."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
