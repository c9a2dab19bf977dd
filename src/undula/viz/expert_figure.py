"""The figure of a study: a score over the number of experts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from undula import atomic
from undula.report.studies import Series

_INK, _SOFT, _LINE = "#20262b", "#626b72", "#dddcd6"
_DASHES = ((0, (1.5, 2)), (0, (6, 3)), (0, (6, 2, 1.5, 2)))
_ROWS = ("#a1306f", "#2f7fa3", "#a9762a", "#5b8c4f")


def expert_figure(
    path: Path,
    series: Sequence[Series],
    references: Mapping[str, float],
    published: Mapping[int, float],
    ylabel: str,
) -> str:
    """Draw a score over the number of experts and write it as PNG.

    Args:
        path: The file to write.
        series: One line each, with bars of the deviation over seeds where there is one.
        references: Rows without experts, such as the copied first frame: dashed lines.
        published: Experts → what the publication says, on its own proteins: hollow squares.
        ylabel: What is measured.

    Returns:
        The SHA-256 of the file.
    """
    figure = Figure(figsize=(6.4, 3.6), dpi=200, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for index, one in enumerate(series):
        spread = [0.0 if deviation is None else deviation for deviation in one.deviations]
        axes.errorbar(
            one.experts,
            one.means,
            yerr=spread if any(spread) else None,
            color=_ROWS[index % len(_ROWS)],
            marker="o",
            capsize=3,
            linewidth=2,
            label=one.name,
        )
    for index, (name, value) in enumerate(references.items()):
        dash = _DASHES[index % len(_DASHES)]
        axes.axhline(value, color=_SOFT, linewidth=1.5, linestyle=dash, label=name)
    if published:
        axes.plot(
            list(published),
            list(published.values()),
            linestyle="",
            marker="s",
            markerfacecolor="none",
            color=_INK,
            label="published (other proteins)",
        )
    counts = sorted({count for one in series for count in one.experts} | set(published))
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("experts", color=_INK)
    axes.set_ylabel(ylabel, color=_INK)
    axes.tick_params(colors=_SOFT, length=0)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return atomic.write(path, out.getvalue())
