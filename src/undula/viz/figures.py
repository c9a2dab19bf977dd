"""Figures for papers and reports: a score over time, and surfaces in a row."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from undula import atomic
from undula.errors import InputError
from undula.surface.spread import SampleScores
from undula.types import Mesh
from undula.viz.colours import colour_map, common_top
from undula.viz.rendering import common_view, render

_INK, _SOFT, _LINE = "#20262b", "#626b72", "#dddcd6"
_ROWS = (
    "#a1306f",
    "#5d6a75",
    "#2f7fa3",
    "#a9762a",
    "#5b8c4f",
    "#7a68b3",
    "#c2593f",
    "#20262b",
    "#3f8f8a",
)
_DASHES = ("-", (0, (5, 2.5)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
_DPI = 200
_CELL = 1.6
_FEWEST = 0.01
"""Bins with a smaller part of the places are not drawn."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.42, 0.1, 0.34, 0.66


def time_texts(times_ps: Sequence[float]) -> tuple[list[float], str]:
    """Return times in the unit they are best read in, and that unit: ps, or ns from 1,000 ps."""
    if max(map(abs, times_ps), default=0.0) >= 1000:
        return [time / 1000 for time in times_ps], "ns"
    return list(times_ps), "ps"


def score_figure(
    path: Path,
    times_ps: Sequence[float],
    series: Mapping[str, Sequence[float]],
    ylabel: str,
) -> str:
    """Draw a score over time, one line per row, and write it as PNG.

    Args:
        path: The file to write.
        times_ps: Strictly increasing.
        series: By row name, a number per time; NaN leaves a gap. The first row is ours and is
            drawn strongest, the trivial rows are dashed.
        ylabel: What is measured, with its unit.

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: A row has another length than the times, or there is nothing to draw.
        MachineError: The place is full, read-only or not allowed.
    """
    for name, values in series.items():
        if len(values) != len(times_ps):
            raise InputError(f"{path}: {len(times_ps)} times but {len(values)} of {name}")
    if not any(np.isfinite(np.asarray(values, dtype=float)).any() for values in series.values()):
        raise InputError(f"{path}: there is no score to draw")
    times, unit = time_texts(times_ps)
    figure = Figure(figsize=(6.4, 3.4), dpi=_DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for index, (name, values) in reversed(list(enumerate(series.items()))):
        axes.plot(
            times,
            values,
            label=_plain(name),
            color=_ROWS[index % len(_ROWS)],
            linestyle=_DASHES[0] if index == 0 else _DASHES[1 + (index - 1) % 3],
            linewidth=2.2 if index == 0 else 1.5,
            marker="o" if len(times) == 1 else "",
        )
    axes.set_xlabel(f"time, {unit}", color=_INK)
    axes.set_ylabel(_plain(ylabel), color=_INK)
    axes.tick_params(colors=_SOFT, length=0)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.margins(x=0.01)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1],
        names[::-1],
        loc="outside upper left",
        ncols=min(len(names), 2 if len(names) == 4 or max(map(len, names)) > 28 else 3),
        frameon=False,
        labelcolor=_INK,
        fontsize=9,
        handlelength=2.4,
    )
    return _write_png(path, figure)


def strip_figure(
    path: Path,
    times_ps: Sequence[float],
    truth: Sequence[Mesh] | None,
    forecast: Sequence[Mesh],
    *,
    scalar: str = "displacement",
    scalar_label: str = "displacement from the first frame, Å",
    truth_label: str = "simulation",
    forecast_label: str = "forecast",
) -> str:
    """Draw the truth above the forecast at a few times and write it as PNG.

    All pictures share the view, the scale and the range of colours. Where a mesh is empty the
    figure says so.

    Args:
        path: The file to write.
        times_ps: One per column; five or six fit a page.
        truth: A mesh per time; none leaves the row out.
        forecast: A mesh per time.
        scalar: The number that colours the surfaces.
        scalar_label: Its name for people, with the unit.
        truth_label: Name of the upper row.
        forecast_label: Name of the lower row.

    Returns:
        The SHA-256 of the file.

    Raises:
        InputError: There is no time, a row has another number of meshes than there are times,
            or a mesh lacks the scalar.
        MachineError: The place is full, read-only or not allowed.

    Source: MoE-DSR, figure 2. Differs from it: colour shows a number.
    """
    named = [(truth_label, truth)] if truth is not None else []
    named.append((forecast_label, forecast))
    if not times_ps:
        raise InputError(f"{path}: there is no time to draw")
    for name, meshes in named:
        if len(meshes) != len(times_ps):
            raise InputError(f"{path}: {len(times_ps)} times but {len(meshes)} of {name}")
    every = [mesh for _, meshes in named for mesh in meshes]
    view, top = common_view(every), common_top(every, scalar)
    shape = float((view.half[1] / view.half[0]).clamp(min=0.4))
    tall = _CELL * shape
    wide_inches = _LEFT + _CELL * len(times_ps) + _RIGHT
    high_inches = _TOP + tall * len(named) + _BOTTOM
    figure = Figure(figsize=(wide_inches, high_inches), dpi=_DPI, facecolor="white")
    times, unit = time_texts(times_ps)
    for row, (name, meshes) in enumerate(named):
        for column, mesh in enumerate(meshes):
            axes = figure.add_axes(
                (
                    (_LEFT + _CELL * column) / wide_inches,
                    1 - (_TOP + tall * (row + 1)) / high_inches,
                    _CELL / wide_inches,
                    tall / high_inches,
                )
            )
            axes.set_axis_off()
            if mesh.is_empty:
                axes.text(0.5, 0.5, "no surface", ha="center", va="center", color=_SOFT)
            else:
                width, height = round(_CELL * _DPI), round(tall * _DPI)
                picture = render(mesh, view, width=width, height=height, scalar=scalar, top=top)
                axes.imshow(picture, interpolation="none", aspect="auto")
            if row == 0:
                axes.set_title(f"{times[column]:.4g} {unit}", fontsize=10, color=_INK, pad=4)
        middle = 1 - (_TOP + tall * (row + 0.5)) / high_inches
        side = figure.text(0.2 / wide_inches, middle, _plain(name), fontsize=10, color=_INK)
        side.set(ha="center", va="center", rotation=90)
    _colour_bar(figure, top, _plain(scalar_label))
    return _write_png(path, figure)


def calibration_figure(path: Path, scores: SampleScores) -> str:
    """Draw whether the samples' spread means something, and write it as PNG.

    Left the ranks of the truth among the samples, level if it could be one of them. In the
    middle the occupancy over time that was forecast beside what happened, of the samples and
    the rows that say more than yes and no; right the surface-RMSF at each surface point beside
    the true one. On the dashed line is right.

    Args:
        path: The file to write.
        scores: The samples' scores; the first row is theirs.

    Returns:
        The SHA-256 of the file.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    figure = Figure(figsize=(9.6, 3.3), dpi=_DPI, layout="constrained", facecolor="white")
    left, middle, right = figure.subplots(1, 3)
    samples = scores.rows[0]
    counts = np.array(scores.ranks) / max(sum(scores.ranks), 1)
    left.bar(np.arange(len(counts)), counts * len(counts), width=0.9, color=_ROWS[0])
    left.axhline(1, color=_SOFT, linestyle=(0, (4, 3)), linewidth=1.2)
    left.set_xlabel("samples below the truth", color=_INK)
    left.set_ylabel("places, times the even share", color=_INK)
    least = _FEWEST * len(scores.occupancy)
    for index, row in enumerate(row for row in scores.rows if row.kind != "oracle"):
        reliability = scores.reliability(row)
        told = [] if reliability is None else [n >= least for n in reliability.places]
        if reliability is not None and (row is samples or sum(told) > 2):
            middle.plot(
                np.array(reliability.forecast)[told],
                np.array(reliability.happened)[told],
                label=_plain(row.name),
                color=_ROWS[index % len(_ROWS)],
                marker="o",
                markersize=3.5,
                linewidth=2.2 if row is samples else 1.3,
            )
    middle.plot([0, 1], [0, 1], color=_SOFT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
    middle.set_xlabel("inside: part of the time, forecast", color=_INK)
    middle.set_ylabel("part of the true frames", color=_INK)
    middle.legend(frameon=False, labelcolor=_INK, fontsize=8)
    assert samples.mobility is not None
    moved, true = samples.mobility.numpy(), scores.mobility.numpy()
    right.scatter(moved, true, s=5, color=_ROWS[0], alpha=0.35, linewidths=0)
    top = max(float(moved.max()), float(true.max()), 1e-6) * 1.03
    right.plot([0, top], [0, top], color=_SOFT, linestyle=(0, (4, 3)), linewidth=1.2, zorder=0)
    right.set_xlabel("surface-RMSF, forecast, Å", color=_INK)
    right.set_ylabel("true, Å", color=_INK)
    for axes, title in zip(
        (left, middle, right), ("rank of the truth", "occupancy", "surface-RMSF"), strict=True
    ):
        axes.set_title(title, fontsize=10, color=_INK)
        axes.tick_params(colors=_SOFT, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_LINE)
    return _write_png(path, figure)


def _colour_bar(figure: Figure, top: float, label: str) -> None:
    wide, high = figure.get_size_inches()
    length = min(2.6, 0.8 * wide)
    axes = figure.add_axes(((wide - length) / 2 / wide, 0.5 / high, length / wide, 0.08 / high))
    colours = ScalarMappable(Normalize(0, top), ListedColormap(colour_map()))
    bar = figure.colorbar(colours, cax=axes, orientation="horizontal")
    bar.outline.set_visible(False)
    bar.set_ticks([0, top / 2, top], labels=["0", f"{top / 2:.3g}", f"≥ {top:.3g}"])
    bar.ax.tick_params(length=0, labelsize=8, labelcolor=_SOFT, pad=3)
    bar.set_label(label, fontsize=9, color=_INK, labelpad=2)


def _plain(text: str) -> str:
    """Keep dollar signs from being read as mathematics."""
    return text.replace("$", r"\$")


def _write_png(path: Path, figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "undula"})
    return atomic.write(path, buffer.getvalue())
