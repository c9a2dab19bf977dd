"""How good forecasts of atoms are over the horizon: errors, skill with intervals, verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from undula.motion.evaluation import even_frames, mean_of, target_frames
from undula.motion.scores import HorizonBin, Skill, horizon_bins, skill, target_windows
from undula.motion.studies.regimes import REGIMES, regime_sentences, regimes
from undula.motion.studies.study import MotionStudy, RowScores, SystemScores
from undula.report.appendix import Appendix
from undula.report.systems import ENOUGH

MEASURES = {
    "physical": "Å² per axis, unwrapped",
    "paper": "published error of the mean as it is",
    "paper_expected": "published error of the expected place in the box",
}
"""Measures of the tables, and what they are called; `undula.motion.evaluation`."""
NO_NUMBER = "–"
REMARKED = "* see the table of the rows."
DAMPED = "damped ballistic"
"""The trivial row that a forecast of a liquid should beat at 2 to 10 frames."""


def standard_lags(system: SystemScores, study: MotionStudy) -> list[int]:
    """Return the frames scored from the standard start."""
    return study.protocol.scoring.standard_lags(system.opened.asked.horizon)


def start_lags(system: SystemScores, study: MotionStudy) -> list[int]:
    """Return the frames scored from many starts."""
    return study.protocol.scoring.lags_within(system.opened.asked.horizon)


def standard_errors(row: RowScores, measure: str) -> np.ndarray:
    """Return seeds × recordings × times of the standard start; NaN where not defined."""
    return np.array(
        [[one["standard"][measure] for one in scores.values()] for scores in row.seeds],
        dtype=float,
    )


def start_errors(row: RowScores, measure: str) -> np.ndarray:
    """Return seeds × recordings × starts × lags; NaN where not defined.

    Recordings with more starts than others keep as many as the others have.
    """
    fewest = min(len(one["starts"][measure]) for scores in row.seeds for one in scores.values())
    return np.array(
        [[one["starts"][measure][:fewest] for one in scores.values()] for scores in row.seeds],
        dtype=float,
    )


def trivial_errors(system: SystemScores, row: RowScores, measure: str) -> dict[str, np.ndarray]:
    """Return what a row is compared with: the `start_errors` of trivial rows on the same atoms."""
    first = next(iter(row.seeds[0].values()))
    if "beside" not in first:
        return {one.name: start_errors(one, measure) for one in system.trivial}
    return {
        name: np.array(
            [[one["beside"][name][measure] for one in scores.values()] for scores in row.seeds],
            dtype=float,
        )
        for name in first["beside"]
    }


def rows_table(study: MotionStudy) -> Appendix:
    """Return what each row is: its weights, its training, and what a reader should know of it."""
    rows, values, data, remarks = [], {}, [], []
    for system in study.systems:
        opened = system.opened
        data.append(
            f"{opened.name}: trained on {', '.join(opened.train)}, scored on "
            f"{', '.join(opened.test)}; data SHA-256 {opened.source.sha256[:16]}."
        )
        for row in system.models:
            rows.append(
                [
                    opened.name,
                    _label(row),
                    f"{row.parameters:,}" if row.parameters else NO_NUMBER,
                    ", ".join(f"{count:,}" for count in row.steps) or NO_NUMBER,
                ]
            )
            if row.remarks:
                remarks.append(f"* {opened.name}, {row.label}: {'; '.join(row.remarks)}.")
            values[f"{opened.name}/{row.name}"] = {
                "weights": row.parameters,
                "steps": list(row.steps),
                "seeds": len(row.seeds),
                "remarks": list(row.remarks),
            }
    return Appendix(
        title="The rows: weights, steps of the training of each seed, and remarks",
        key="rows",
        headings=["system", "forecast", "weights", "steps"],
        rows=rows,
        sentences=[*data, *remarks],
        values=values,
    )


def full_table(study: MotionStudy) -> Appendix:
    """Return the error over the whole horizon of every system (the slides' Table 1)."""
    names = [system.opened.name for system in study.systems]
    told = study.protocol.published.full
    rows: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    values: dict[str, dict[str, dict[str, float | None]]] = {}
    for number, (name, system) in enumerate(zip(names, study.systems, strict=True)):
        places = _even_places(system, study)
        for row in system.rows:
            if row.remarks or row.name not in labels:
                labels[row.name] = _label(row)
            cells = rows.setdefault(row.name, [NO_NUMBER] * (3 * len(names)))
            means = {
                measure: _seed_means(standard_errors(row, measure)[:, :, places])
                for measure in MEASURES
            }
            values.setdefault(row.name, {})[name] = {
                measure: _number(np.mean(mean)) for measure, mean in means.items()
            }
            cells[3 * number] = _over_seeds(means["paper"])
            cells[3 * number + 1] = _over_seeds(means["paper_expected"])
    for name, published in told.items():
        labels.setdefault(name, _published(name, study))
        cells = rows.setdefault(name, [NO_NUMBER] * (3 * len(names)))
        for number, system_name in enumerate(names):
            if system_name in published:
                cells[3 * number + 2] = f"{published[system_name]:.4f}"
    headings = ["forecast"]
    for name in names:
        headings += [name, f"{name}, expected", "published"]
    return Appendix(
        title="Table 1: the published error over the whole horizon (lower is better)",
        key="table-1",
        headings=headings,
        rows=[[labels[name], *cells] for name, cells in rows.items()],
        sentences=[
            *_full_sentences(study),
            *_pointer(row for system in study.systems for row in system.rows),
            study.protocol.published.differs,
        ],
        values={"mean": values, "published": {k: dict(v) for k, v in told.items()}},
    )


def _full_sentences(study: MotionStudy) -> list[str]:
    said = []
    for system in study.systems:
        count = len(_even_places(system, study))
        asked = system.opened.asked
        features = "positions alone" if system.positions_only else "positions and velocities"
        said.append(
            f"{system.opened.name}: {count} of {asked.horizon} later frames, evenly spaced, of "
            f"{len(system.opened.test)} test recordings; {features}."
        )
    said.append(
        '"expected" scores where an atom is expected once its normal distribution is wrapped '
        "into the box, for rows with a spread: the best forecast under this error."
    )
    return said


def windows_table(system: SystemScores, study: MotionStudy, measure: str) -> Appendix:
    """Return the error in each target window (the slides' Table 3)."""
    lags = standard_lags(system, study)
    ends = [one.last for one in target_windows(system.opened.asked.horizon)]
    rows, values = [], {}
    for row in system.rows:
        errors = standard_errors(row, measure)
        means = [_seed_means(errors[:, :, target_frames(lags, end)]) for end in ends]
        rows.append([_label(row), *(_over_seeds(mean) for mean in means)])
        values[row.name] = [_number(np.mean(mean)) for mean in means]
    told = study.protocol.published.windows.get(system.opened.name, {})
    if measure != "physical":
        for name, found in told.items():
            cells = [f"{found[end]:.4f}" if end in found else NO_NUMBER for end in ends]
            rows.append([_published(name, study), *cells])
    return Appendix(
        title=f"{system.opened.name}, target windows of 20 frames: {MEASURES[measure]}",
        key=f"{system.opened.name}-windows-{measure}",
        headings=["forecast", *(f"{end - 20}–{end}" for end in ends)],
        rows=rows,
        sentences=[
            f"n = {len(system.opened.test)} test recordings, one start each; 20 frames in a row "
            "are nearly one.",
            *_pointer(system.rows),
        ],
        values={"ends": ends, "mean": values},
    )


def lags_table(system: SystemScores, study: MotionStudy, measure: str) -> Appendix:
    """Return the error by time ahead, from many starts."""
    lags = start_lags(system, study)
    rows, values = [], {}
    for row in system.rows:
        errors = start_errors(row, measure)
        means = [_number(_mean(errors[..., place])) for place in range(len(lags))]
        rows.append([_label(row), *(_text(mean) for mean in means)])
        values[row.name] = means
    starts = start_errors(system.trivial[0], "physical")
    numbers = [int(np.isfinite(starts[0, :, :, place]).sum()) for place in range(len(lags))]
    rows.append(["windows", *map(str, numbers)])
    return Appendix(
        title=f"{system.opened.name}, by frames ahead: {MEASURES[measure]}",
        key=f"{system.opened.name}-lags-{measure}",
        headings=["forecast", *map(str, lags)],
        rows=rows,
        sentences=[
            f"{len(system.opened.test)} test recordings, {starts.shape[2]} starts in each; a "
            f"frame is {system.opened.source.frame_ps:g} ps.",
            *_pointer(system.rows),
        ],
        values={"lags": lags, "mean": values, "windows": numbers},
    )


@dataclass(frozen=True, kw_only=True)
class BinSkill:
    """The skill of one model in one part of the horizon.

    Attributes:
        row: The model.
        part: Of the horizon.
        error: Its mean error there.
        best: The error of the best trivial row.
        skill: With its interval.
        windows: How many windows of each recording are in it.
        deviation: Of the skill over seeds; none for one seed.
        over_damped: The part of the damped ballistic row's error that it removes; none where
            that row has no error in this measure.
    """

    row: RowScores
    part: HorizonBin
    error: float
    best: float
    skill: Skill
    windows: int
    deviation: float | None
    over_damped: float | None


def bin_skills(system: SystemScores, study: MotionStudy, measure: str) -> list[BinSkill]:
    """Compute the skill of every model over the best trivial row in each part of the horizon."""
    lags = torch.tensor(start_lags(system, study))
    parts = [
        (part, places)
        for part in horizon_bins(system.opened.asked.horizon)
        if len(places := part.mask(lags).nonzero().flatten().tolist())
    ]
    found = []
    for row in system.models:
        own, trivial = start_errors(row, measure), trivial_errors(system, row, measure)
        for part, places in parts:
            there = np.isfinite(own[..., places]).all(axis=(0, 1, 3))
            if not there.any():
                continue
            own_part = own[..., places].mean(axis=-1)[:, :, there]
            others = {
                name: torch.from_numpy(errors[..., places].mean(axis=-1)[:, :, there].mean(axis=0))
                for name, errors in trivial.items()
                if np.isfinite(errors[..., places][:, :, there]).all()
            }
            generator = torch.Generator().manual_seed(study.protocol.scoring.seed)
            value = skill(torch.from_numpy(own_part.mean(axis=0)), others, generator)
            best = float(others[value.best].mean())
            each = 1 - own_part.mean(axis=(1, 2)) / best
            found.append(
                BinSkill(
                    row=row,
                    part=part,
                    error=float(own_part.mean()),
                    best=best,
                    skill=value,
                    windows=int(there.sum()),
                    deviation=float(each.std(ddof=1)) if len(each) > 1 else None,
                    over_damped=_over(float(own_part.mean()), others.get(DAMPED)),
                )
            )
    return found


def _over(error: float, other: torch.Tensor | None) -> float | None:
    """Return the part of a row's error that another error lacks."""
    return None if other is None else 1 - error / float(other.mean())


def skill_table(system: SystemScores, study: MotionStudy, measure: str) -> Appendix:
    """Return skills over the best trivial row by part of the horizon, with a verdict each."""
    found = bin_skills(system, study, measure)
    rows, values = [], []
    for one in found:
        value = one.skill
        rows.append(
            [
                _label(one.row),
                str(one.part),
                _text(one.error),
                f"{value.best} ({_text(one.best)})",
                f"{value.value:+.3f}"
                + ("" if one.deviation is None else f" ± {one.deviation:.3f}"),
                f"{value.low:+.3f} to {value.high:+.3f}",
                NO_NUMBER if one.over_damped is None else f"{one.over_damped:+.3f}",
                f"{value.trajectories} × {one.windows}",
            ]
        )
        values.append(
            {
                "row": one.row.name,
                "first": one.part.first,
                "last": one.part.last,
                "error": one.error,
                "best_trivial": value.best,
                "best_error": one.best,
                "skill": value.value,
                "low": value.low,
                "high": value.high,
                "std_over_seeds": one.deviation,
                "over_damped_ballistic": one.over_damped,
                "recordings": value.trajectories,
                "windows": one.windows,
            }
        )
    headings = ["forecast", "frames ahead", "error", "best trivial row", "skill"]
    return Appendix(
        title=f"{system.opened.name}, skill over the best trivial row: {MEASURES[measure]}",
        key=f"{system.opened.name}-skill-{measure}",
        headings=[*headings, "95 % (time blocks)", f"over {DAMPED}", "n"],
        rows=rows,
        sentences=[*verdicts(found, len(system.opened.test)), *_pointer(system.models)],
        values={"rows": values},
    )


def verdicts(found: Sequence[BinSkill], recordings: int) -> list[str]:
    """Say of each model where it beats the best trivial row, and whether that can be judged."""
    said = []
    by_row: dict[str, list[BinSkill]] = {}
    for one in found:
        by_row.setdefault(one.row.label, []).append(one)
    for label, parts in by_row.items():
        better = [str(one.part) for one in parts if one.skill.low > 0]
        worse = [str(one.part) for one in parts if one.skill.high < 0]
        level = [str(one.part) for one in parts if one.skill.low <= 0 <= one.skill.high]
        said.append(
            f"{label} beats the best trivial row {_frames(better)}; it loses to it "
            f"{_frames(worse)}; neither {_frames(level)}."
        )
        near = [one for one in parts if 2 <= one.part.last <= 10 and one.over_damped is not None]
        if near:
            won = [one for one in near if (one.over_damped or 0) > 0]
            said.append(
                f"{label} has less error than the {DAMPED} row in {len(won)} of the {len(near)} "
                "parts from 2 to 10 frames."
            )
    if not by_row:
        said.append("There is no model, so there is no skill: only trivial rows were scored.")
    few = f"n = {recordings} test recordings of one system"
    said.append(few + (": too few to judge in general." if recordings < ENOUGH else "."))
    return said


def _frames(parts: Sequence[str]) -> str:
    return f"at {', '.join(parts)} frames" if parts else "nowhere"


def regimes_table(system: SystemScores, study: MotionStudy, measure: str) -> Appendix:
    """Return the error in three parts of the horizon, beside the constant's."""
    lags = standard_lags(system, study)
    horizon = system.opened.asked.horizon
    even = _even_places(system, study)
    chosen = [lags[place] for place in even]
    errors: dict[str, list[float | None]] = {}
    for row in system.rows:
        each = standard_errors(row, measure)[:, :, even]
        means = [_number(_mean(each[:, :, place])) for place in range(len(even))]
        if mean_of(means) is not None:
            errors[row.label] = means
    found = regimes(errors, chosen, horizon)
    return Appendix(
        title=f"{system.opened.name}, thirds of the horizon: {MEASURES[measure]}",
        key=f"{system.opened.name}-regimes-{measure}",
        headings=["forecast", *REGIMES, "swing"],
        rows=[
            [
                row.name,
                *(_text(error) for error in row.errors),
                NO_NUMBER if row.swing is None else f"{row.swing:.1%}",
            ]
            for row in found
        ],
        sentences=regime_sentences(found),
        values={row.name: list(row.errors) for row in found},
    )


def ablation_table(study: MotionStudy) -> Appendix:
    """Return skills of models with fewer levels, retrained or decoded, beside a wider one."""
    asked = study.protocol.ablation
    rows, values = [], {}
    for system in study.systems:
        chosen = [row for row in system.models if row.name.split("@")[0] in asked]
        found = bin_skills(system, study, "physical")
        places = _even_places(system, study)
        for row in chosen:
            parts = {
                name: _ratio(
                    [one for one in found if one.row is row and low <= one.part.last <= high]
                )
                for name, low, high in (("near", 2, 10), ("middle", 11, 100), ("far", 101, 10**9))
            }
            paper = _seed_means(standard_errors(row, "paper_expected")[:, :, places])
            rows.append(
                [
                    system.opened.name,
                    row.label,
                    f"{row.parameters:,}",
                    *(NO_NUMBER if one is None else f"{one:+.3f}" for one in parts.values()),
                    _over_seeds(paper),
                ]
            )
            values[f"{system.opened.name}/{row.name}"] = {
                "weights": row.parameters,
                "skill": parts,
                "paper_expected": _number(np.mean(paper)),
            }
    headings = ["system", "forecast", "weights", "skill, 2–10 frames", "11–100", "beyond"]
    return Appendix(
        title="Ablation: levels retrained, decoded, and one level as large as all",
        key="ablation",
        headings=[*headings, "published error"],
        rows=rows,
        sentences=[
            "Skill over the best trivial row (Å², unwrapped), mean over the parts of the horizon. "
            "The public code's ablation is one trained model decoded at a level."
        ],
        values=values,
    )


def _ratio(found: Sequence[BinSkill]) -> float | None:
    """Return the mean skill of some parts; none without parts."""
    return sum(one.skill.value for one in found) / len(found) if found else None


def _even_places(system: SystemScores, study: MotionStudy) -> list[int]:
    horizon = system.opened.asked.horizon
    even = set(even_frames(horizon, study.protocol.scoring.frames))
    return [place for place, lag in enumerate(standard_lags(system, study)) if lag in even]


def _seed_means(errors: np.ndarray) -> np.ndarray:
    """Return the mean over recordings and times of each seed; NaN where nothing is defined."""
    return np.array([_mean(seed) for seed in errors])


def _mean(errors: np.ndarray) -> float:
    known = errors[np.isfinite(errors)]
    return float(known.mean()) if known.size else float("nan")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _over_seeds(means: np.ndarray) -> str:
    if not np.isfinite(means).all():
        return NO_NUMBER
    deviation = f" ± {means.std(ddof=1):.4f}" if len(means) > 1 else ""
    mean = float(means.mean())
    return (f"{mean:.4f}" if abs(mean) < 10 else f"{mean:.3g}") + deviation


def _text(value: float | None) -> str:
    if value is None:
        return NO_NUMBER
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.1e}"


def _label(row: RowScores) -> str:
    if row.kind == "trivial":
        return f"{row.label} (trivial)"
    return f"{row.label} *" if row.remarks else row.label


def _pointer(rows: Iterable[RowScores]) -> list[str]:
    """Say where the remarks stand, if a row of a table has any."""
    return [REMARKED] if any(row.remarks for row in rows) else []


def _published(name: str, study: MotionStudy) -> str:
    """Return what a published row is called: as the row of ours that stands for it, if any."""
    ours = {row.name: row.label for one in study.systems for row in one.rows}
    planned = {row.name: row.label for row in study.protocol.rows}
    return f"{ours.get(name) or planned.get(name.split('@')[0]) or name} (published)"


def curves(
    system: SystemScores, study: MotionStudy, measure: str
) -> tuple[list[int], Mapping[str, list[float | None]]]:
    """Return errors by frames ahead from many starts, models first: a figure's numbers."""
    lags = start_lags(system, study)
    return lags, {
        _label(row): [
            _number(_mean(start_errors(row, measure)[..., place])) for place in range(len(lags))
        ]
        for row in system.rows
    }
