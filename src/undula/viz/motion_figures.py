"""Figures of moving atoms: errors over the horizon, structure and dynamics of samples, levels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from undula import atomic
from undula.motion.evaluation import window_at
from undula.motion.scores import pit_histogram
from undula.motion.studies.runs import run_folder
from undula.motion.studies.sampled import SHELL, Course
from undula.motion.studies.study import MotionStudy, SystemScores
from undula.motion.trained import WEIGHTS, TrainedMotion
from undula.report.distributions import counts
from undula.report.horizons import curves, start_lags

_INK, _SOFT, _LINE = "#20262b", "#626b72", "#dddcd6"
_MODELS = ("#a1306f", "#2f7fa3", "#5b8c4f", "#7a68b3")
_TRIVIAL = ("#5d6a75", "#a9762a", "#8a9aa5", "#b58b5a", "#444c52", "#c0a060", "#777f85", "#9f8f7f")
_DASHES = ((0, (5, 2.5)), (0, (1.5, 2)), (0, (6, 2, 1.5, 2)))
_DPI = 160
_TIMES = 160
"""Times along which the levels' contributions for one atom are drawn."""
_FLOOR = "other recordings"


def write_motion_figures(
    system: SystemScores, study: MotionStudy, out: Path, runs: Path
) -> list[Path]:
    """Draw all figures of a system that its scores allow.

    Args:
        system: The scores.
        study: The study they belong to.
        out: Receives ``SYSTEM-NAME.png``.
        runs: Where run folders lie; from the first seed of the first DoMiNO comes the figure of
            one atom.

    Returns:
        What was written.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    name = system.opened.name
    written = []
    for measure, label in (
        ("physical", "mean square error per axis, Å²"),
        ("paper_expected", "published error, expected place"),
    ):
        lags, rows = curves(system, study, measure)
        path = out / f"{name}-{measure.replace('_', '-')}.png"
        error_figure(path, lags, rows, label, system.opened.source.frame_ps)
        written.append(path)
    written.append(out / f"{name}-samples.png")
    samples_figure(written[-1], system, study)
    written.append(out / f"{name}-calibration.png")
    calibration_figure(written[-1], system, study)
    if any(one.get("angles") for one in system.truth.values()):
        written.append(out / f"{name}-ramachandran.png")
        ramachandran_figure(written[-1], system)
    folder = _first_run(system, study, runs)
    if folder is not None:
        written.append(out / f"{name}-levels.png")
        levels_figure(written[-1], TrainedMotion.load(folder), system)
    return written


def error_figure(
    path: Path,
    lags: Sequence[int],
    rows: Mapping[str, Sequence[float | None]],
    label: str,
    frame_ps: float,
) -> str:
    """Draw errors over the horizon, and below as multiples of the best trivial row's.

    Args:
        path: The file to write.
        lags: Frames ahead.
        rows: Name → error at each; none leaves a gap. Trivial rows end with "(trivial)"; there
            is at least one.
        label: What is measured, with its unit.
        frame_ps: Time between frames, ps.

    Returns:
        The SHA-256 of the file.
    """
    figure = Figure(figsize=(8.0, 5.4), dpi=_DPI, layout="constrained", facecolor="white")
    axes, below = figure.subplots(2, 1, sharex=True)
    times = np.array(lags) * frame_ps
    known = {
        name: np.array([np.nan if value is None else value for value in values])
        for name, values in rows.items()
    }
    known = {name: numbers for name, numbers in known.items() if np.isfinite(numbers).any()}
    trivial = [name for name in known if name.endswith("(trivial)")]
    best = np.fmin.reduce([known[name] for name in trivial])
    models = [name for name in known if name not in trivial]
    for name, numbers in known.items():
        still = name in trivial
        place = (trivial if still else models).index(name)
        look: dict[str, Any] = {
            "color": _TRIVIAL[place % len(_TRIVIAL)] if still else _MODELS[place % len(_MODELS)],
            "linestyle": _DASHES[place % 3]
            if still
            else ("-", *_DASHES)[place // len(_MODELS) % 4],
            "linewidth": 1.3 if still else 2.2,
            "zorder": 2 if still else 3,
        }
        axes.plot(times, numbers, label=name, **look)
        below.plot(times, numbers / best, **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    below.set_ylim(0.4, 2.0)
    _dress(axes, "", label)
    _dress(below, "time ahead, ps", "÷ best trivial row")
    figure.legend(loc="outside right upper", frameon=False, labelcolor=_INK, fontsize=8)
    return _write_png(path, figure)


def samples_figure(path: Path, system: SystemScores, study: MotionStudy) -> str:
    """Draw radial distribution, velocity correlation and squared displacement of samples.

    Returns:
        The SHA-256 of the file.
    """
    course = Course.of(study.protocol.scoring, system.opened.asked.horizon)
    frame_ps = system.opened.source.frame_ps
    shown = _measured_rows(system)
    panels = {
        "rdf": ("distance, Å", "radial distribution"),
        "vacf": ("time, ps", "correlation of mean velocities"),
        "msd": ("time ahead, ps", "squared displacement, Å²"),
    }
    present = [key for key in panels if any(key in one for _, each in shown for one in each)]
    figure = Figure(figsize=(4.0 * len(present), 3.6), dpi=_DPI, layout="constrained")
    for axes, key in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        for number, (name, each) in enumerate(shown):
            found = [one[key] for one in each if one.get(key) is not None]
            if not found:
                continue
            curve = np.mean(np.array(found), axis=0)
            axes.plot(
                _places(key, len(curve), course, frame_ps),
                curve,
                label=name,
                color=_INK if number == 0 else _MODELS[(number - 1) % len(_MODELS)],
                linewidth=2.4 if number == 0 else 1.5,
                linestyle="-" if number < 3 else _DASHES[number % 3],
            )
        if key == "msd":
            axes.set_xscale("log")
            axes.set_yscale("log")
        _dress(axes, *panels[key])
    handles, names = figure.axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=4, frameon=False, labelcolor=_INK,
        fontsize=8,
    )  # fmt: skip
    return _write_png(path, figure)


def calibration_figure(path: Path, system: SystemScores, study: MotionStudy) -> str:
    """Draw where the truth lay in the normal distributions, at a few times ahead.

    Level bars are right; high ends mean that the distribution is too narrow.

    Returns:
        The SHA-256 of the file.
    """
    lags = start_lags(system, study)
    chosen = [place for place, lag in enumerate(lags) if lag in {1, 5, 20, 100}] + [len(lags) - 1]
    rows = [*system.models[:2], *(r for r in system.trivial if r.name == "linear response")]
    figure = Figure(figsize=(2.5 * len(chosen), 2.9), dpi=_DPI, layout="constrained")
    for axes, place in zip(
        figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0], chosen, strict=True
    ):
        for number, row in enumerate(rows):
            pit = counts(row, place, "pit")
            if pit is None:
                continue
            bars = pit_histogram(pit, 20).numpy()
            axes.stairs(
                bars, np.linspace(0, 1, 21), label=row.label, linewidth=1.8,
                color=_MODELS[number % len(_MODELS)],
            )  # fmt: skip
        axes.axhline(1, color=_SOFT, linestyle=(0, (4, 3)), linewidth=1.0)
        axes.set_title(f"{lags[place]} frames ahead", fontsize=9, color=_INK)
        axes.set_ylim(0, 2.5)
        _dress(axes, "probability of less", "" if place != chosen[0] else "times the even share")
    handles, names = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, names, loc="outside lower center", ncols=3, frameon=False, labelcolor=_INK,
            fontsize=8,
        )  # fmt: skip
    return _write_png(path, figure)


def ramachandran_figure(path: Path, system: SystemScores) -> str:
    """Draw φ and ψ of the truth beside those of samples.

    Returns:
        The SHA-256 of the file.
    """
    shown = [
        (name, np.concatenate([np.array(one["angles"]) for one in each]))
        for name, each in _measured_rows(system)
        if each and all(one.get("angles") for one in each)
    ]
    figure = Figure(figsize=(2.8 * len(shown), 3.1), dpi=_DPI, layout="constrained")
    for axes, (name, angles) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        degrees = np.degrees(angles.reshape(-1, 2))
        axes.scatter(degrees[:, 0], degrees[:, 1], s=4, alpha=0.5, linewidths=0, color=_MODELS[0])
        axes.set_xlim(-180, 180)
        axes.set_ylim(-180, 180)
        axes.set_aspect("equal")
        axes.set_xticks([-180, 0, 180])
        axes.set_yticks([-180, 0, 180])
        axes.set_title(name, fontsize=9, color=_INK)
        _dress(axes, "φ, °", "ψ, °")
    return _write_png(path, figure)


def levels_figure(path: Path, model: TrainedMotion, system: SystemScores) -> str:
    """Draw one coordinate of one atom: the truth, the forecast, and what each level adds.

    The atom is that which moves least from now to the horizon, so that it can be seen what the
    levels add; the axis is x. Times are spaced evenly in the logarithm.

    Args:
        path: The file to write.
        model: Of the first seed.
        system: Its first test recording is drawn from the standard start.

    Returns:
        The SHA-256 of the file.

    Source: the slides' figure of each level's contribution. Differs from it: the linear forecast
    that ours builds on is drawn as well.
    """
    source, asked = system.opened.source, system.opened.asked
    recording = source.named(system.opened.test[0])
    window = window_at(source, recording, asked.observed - 1, asked.observed)
    steps = np.geomspace(1, asked.horizon, _TIMES).round().astype(int)
    lags = torch.from_numpy(np.unique(steps))
    at = lags * source.frame_ps
    forecast, parts = model.forecast(window, at), model.contributions(window, at)
    truth = torch.from_numpy(recording.positions[(asked.observed - 1 + lags).numpy()])
    atom = int((truth[-1] - window.now).norm(dim=-1).argmin())
    now = float(window.now[atom, 0])
    mean = forecast.mean[:, atom, 0].numpy() - now
    added = parts[:, :, atom, 0].numpy()
    figure = Figure(figsize=(7.2, 5.2), dpi=_DPI, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot(at, truth[:, atom, 0].numpy() - now, color=_INK, linewidth=1.2, label="truth")
    upper.plot(at, mean, color=_MODELS[0], linewidth=2.0, label=model.name)
    upper.plot(
        at, mean - added.sum(axis=0), color=_SOFT, linestyle=_DASHES[0], label="linear forecast"
    )
    if forecast.spread is not None:
        wide = 1.645 * forecast.spread[:, atom].numpy()
        upper.fill_between(at, mean - wide, mean + wide, color=_MODELS[0], alpha=0.12, lw=0)
    for level, part in enumerate(added):
        lower.plot(at, part, color=_MODELS[level % len(_MODELS)], label=f"level {level}")
    upper.set_xscale("log")
    _dress(upper, "", f"x of atom {atom + 1}, Å from now")
    _dress(lower, "time ahead, ps", "added by each level, Å")
    for axes in (upper, lower):
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="upper left")
    return _write_png(path, figure)


def _measured_rows(system: SystemScores) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """List what is measured, the truth first, then the models, then the best of the others."""
    rows: list[tuple[str, list[Mapping[str, Any]]]] = [("truth", list(system.truth.values()))]
    if _FLOOR in system.references:
        rows.append((_FLOOR, list(system.references[_FLOOR].values())))
    for row in (*system.models, *system.trivial):
        found = [one["measured"] for scores in row.seeds for one in scores.values()]
        wanted = row.kind == "model" or row.name in ("linear response", "constant")
        if wanted and all(one is not None for one in found):
            rows.append((row.label, found))
    return rows


def _places(key: str, count: int, course: Course, frame_ps: float) -> np.ndarray:
    if key == "rdf":
        return (np.arange(count) + 0.5) * SHELL
    if key == "vacf":
        return np.arange(count) * frame_ps
    return np.array(course.knots) * frame_ps


def _first_run(system: SystemScores, study: MotionStudy, runs: Path) -> Path | None:
    levelled = {row.name for row in study.protocol.rows if row.model == "domino"}
    for row in system.models:
        folder = run_folder(runs, system.opened.name, row.name, study.protocol.seeds[0])
        if row.name in levelled and (folder / WEIGHTS).is_file():
            return folder
    return None


def _dress(axes: Axes, across: str, up: str) -> None:
    axes.set_xlabel(across, color=_INK, fontsize=9)
    axes.set_ylabel(up, color=_INK, fontsize=9)
    axes.tick_params(colors=_SOFT, length=0, labelsize=8)
    axes.grid(color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)


def _write_png(path: Path, figure: Figure) -> str:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": "undula"})
    return atomic.write(path, buffer.getvalue())
