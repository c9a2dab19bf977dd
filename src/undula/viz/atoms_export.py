"""Forecasts of atoms as files for people and programs: page, XTC, PDB, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from undula import atomic
from undula.errors import Notice, UsageError
from undula.io.atom_export import in_box, write_pdb, write_xtc
from undula.locks import claims
from undula.motion.forecast import MovingAtoms
from undula.motion.forecast_scores import AtomEvaluation
from undula.notices import add_to_report, refuse
from undula.notices import write_report as write_notices
from undula.report.appendix import Appendix
from undula.report.table import Metric, Row, Table
from undula.viz.atoms_page import AtomsPage, write_atoms_page
from undula.viz.earlier import discard_earlier
from undula.viz.figures import score_figure

ATOM_FORMATS = ("html", "xtc", "pdb")
ATOM_METRICS = (
    Metric(key="error", label="error per axis, Å", higher_is_better=False),
    Metric(key="crps", label="CRPS, Å", higher_is_better=False),
)
"""Columns of a table of atoms; the first one judges."""
TALLEST = 3.0
"""Rows that err more than this many times the best trivial row are left out of pictures."""
_HORIZONS = 6
SHOWN_SAMPLES = 4
"""How many samples a page shows at most."""
SHOWN_PLACES = 3_000_000
"""Atoms times frames of all views of a page, about 15 MB; longer forecasts show fewer times."""


@claims("folder")
def export_atoms(
    moving: MovingAtoms,
    folder: Path,
    *,
    formats: Sequence[str] = ("html", "xtc"),
    wrap: bool = False,
    strict: bool = False,
) -> list[Notice]:
    """Write a forecast of atoms and its exports into a folder.

    ==============================  =============================================================
    ``now.pdb``                     the last observed frame: the topology of the XTC files
    ``mean.xtc``                    the expected positions at all times
    ``sample-01.xtc`` …             whole futures
    ``forecast.pdb``                the expected positions, one model a time, with the standard
                                    deviation along an axis (Å) in the B-factor column: 0 where
                                    the model says none
    ``index.html``                  the page
    ==============================  =============================================================

    Args:
        moving: The forecast.
        folder: The result folder.
        formats: "html", "xtc" and "pdb", or none of them.
        wrap: Bring molecules into the box, each as a whole; otherwise they go on from where they
            were last observed, through its walls, as diffusion needs it.
        strict: Refuse a forecast with any notice before anything is written.

    Returns:
        Notices; with those of the forecast they stand in ``report.json``.

    Raises:
        UsageError: An unknown format.
        InputError: There are notices, and none is allowed.
    """
    unknown = [name for name in formats if name not in ATOM_FORMATS]
    if unknown:
        raise UsageError(f"there is no format {unknown[0]}; there are {', '.join(ATOM_FORMATS)}")
    page, notices = atoms_page(moving) if "html" in formats else (None, [])
    refuse([*moving.notices, *notices], strict=strict)
    discard_earlier(folder)
    moving.save(folder)
    system, box = moving.system, moving.box

    def written(positions: Float[Tensor, "frames atoms 3"]) -> Float[Tensor, "frames atoms 3"]:
        return in_box(positions, system, box) if wrap else positions

    write_pdb(folder / "now.pdb", system, written(moving.now[None]), box=box)
    if "xtc" in formats:
        write_xtc(folder / "mean.xtc", written(moving.expected.mean), moving.times_ps, box)
        digits = len(str(len(moving.samples)))
        for number, sample in enumerate(moving.samples, start=1):
            name = f"sample-{number:0{max(digits, 2)}d}.xtc"
            write_xtc(folder / name, written(sample), moving.times_ps, box)
    if "pdb" in formats:
        write_pdb(
            folder / "forecast.pdb",
            system,
            written(moving.expected.mean),
            box=box,
            b_factors=moving.expected.spread,
            remarks=(
                f"FORECAST BY UNDULA, MEAN AT {len(moving.lags_ps)} TIMES",
                "B-FACTOR: STANDARD DEVIATION ALONG AN AXIS, ANGSTROM"
                if moving.expected.spread is not None
                else "B-FACTOR 0: THE MODEL DOES NOT SAY HOW SURE IT IS",
            ),
        )
    if page is not None:
        write_atoms_page(folder / "index.html", page)
    write_report(moving, folder, notices)
    return notices


def write_report(moving: MovingAtoms, folder: Path, notices: Sequence[Notice]) -> None:
    """Write ``report.json``: what was asked for and what was dropped, assumed or guessed."""
    spread = moving.expected.spread
    write_notices(
        folder,
        [*moving.notices, *notices],
        structure=moving.system.structure.name,
        atoms=len(moving.system),
        molecules=moving.system.molecule_count,
        observed_frames=moving.observed,
        frame_ps=moving.frame_ps,
        now_ps=moving.now_ps,
        times_after_now_ps=list(moving.lags_ps),
        expected_error_angstrom=None
        if spread is None
        else spread.square().mean(dim=1).sqrt().tolist(),
        samples=len(moving.samples),
        seed=moving.seed,
        model=moving.model,
    )


def atoms_page(
    moving: MovingAtoms, truth: Float[Tensor, "times atoms 3"] | None = None
) -> tuple[AtomsPage, list[Notice]]:
    """Return the page of a forecast, and what had to be left out of it.

    Args:
        moving: The forecast.
        truth: What happened at its times, unwrapped, Å, or none.
    """
    samples = moving.samples[:SHOWN_SAMPLES]
    views = 1 + len(samples) + (truth is not None)
    most = max(SHOWN_PLACES // (views * len(moving.system)), 2)
    chosen = evenly(len(moving.lags_ps), most)
    notices = []
    if len(chosen) < len(moving.lags_ps):
        message = f"the page shows {len(chosen)} of {len(moving.lags_ps)} times; files have all"
        left = len(moving.lags_ps) - len(chosen)
        notices.append(Notice(code="times-not-shown", message=message, count=left))
    rows = torch.tensor(chosen)
    spread = moving.expected.spread
    page = AtomsPage(
        title=f"{moving.system.structure.name}: moving atoms",
        times_ps=[moving.lags_ps[index] for index in chosen],
        system=moving.system,
        now=moving.now,
        forecast=moving.expected.mean[rows],
        spread=None if spread is None else spread[rows],
        truth=None if truth is None else truth[rows],
        others={
            f"sample {number + 1} of {len(moving.samples)}": sample[rows]
            for number, sample in enumerate(samples)
        },
        box=moving.box,
        notes=[
            *moving.notes,
            f"Times count from the last observed frame, which is {moving.now_ps:g} ps on the "
            "clock of its trajectory.",
            *(str(notice) for notice in [*moving.notices, *notices]),
        ],
        truth_label="truth",
        form="mean",
    )
    return page, notices


def atoms_table(moving: MovingAtoms, evaluation: AtomEvaluation) -> Table:
    """Return the scores of a forecast of atoms beside the trivial rows."""
    first, last = evaluation.lags_ps[0], evaluation.lags_ps[-1]
    return Table(
        title=f"{moving.system.structure.name}: moving atoms, {len(evaluation.lags_ps)} times "
        f"from {first:g} to {last:g} ps after the last observed frame, mean ± std",
        metrics=ATOM_METRICS,
        rows=tuple(
            Row(name=name, kind=evaluation.kinds[name], values=scores)
            for name, scores in evaluation.scores.items()
        ),
        times_ps=evaluation.lags_ps,
        appendices=(_by_horizon(evaluation),),
    )


def _by_horizon(evaluation: AtomEvaluation) -> Appendix:
    """Return the error at about six times, evenly spaced in the logarithm."""
    lags = torch.tensor(evaluation.lags_ps, dtype=torch.float64)
    wanted = torch.logspace(
        float(lags[0].log10()), float(lags[-1].log10()), _HORIZONS, dtype=torch.float64
    )
    chosen = sorted({int((lags.log() - one.log()).abs().argmin()) for one in wanted})
    errors = {name: scores["error"] for name, scores in evaluation.scores.items()}
    trivial = [errors[name] for name, kind in evaluation.kinds.items() if kind == "trivial"]
    best = [min(row[index] for row in trivial) for index in chosen]
    judge = ATOM_METRICS[0]
    skill = {
        name: [judge.skill(row[index], low) for index, low in zip(chosen, best, strict=True)]
        for name, row in errors.items()
    }
    return Appendix(
        title="error along an axis, Å, by time after the last observed frame",
        key="by_horizon",
        headings=["forecast", *(f"{evaluation.lags_ps[index]:g} ps" for index in chosen)],
        rows=[
            [
                name,
                *(
                    f"{row[index]:.3f} ({part:+.2f})"
                    for index, part in zip(chosen, skill[name], strict=True)
                ),
            ]
            for name, row in errors.items()
        ],
        sentences=[
            "In brackets the part of the best trivial row's error, at that time, that is removed. "
            "One window of one trajectory: too few to judge in general.",
            *_about_samples(evaluation),
        ],
        values={
            "lags_ps": [evaluation.lags_ps[index] for index in chosen],
            "skill": skill,
            "samples_crps": evaluation.samples_crps,
        },
    )


def _about_samples(evaluation: AtomEvaluation) -> list[str]:
    if evaluation.samples_crps is None:
        return []
    mean = sum(evaluation.samples_crps) / len(evaluation.samples_crps)
    [model] = [name for name, kind in evaluation.kinds.items() if kind == "model"]
    own = evaluation.scores[model]["crps"]
    return [
        f"The samples by themselves have a CRPS of {mean:.3f} Å, the normal distributions around "
        f"the mean {sum(own) / len(own):.3f} Å."
    ]


@claims("folder")
def write_atom_evaluation(moving: MovingAtoms, evaluation: AtomEvaluation, folder: Path) -> Table:
    """Write an evaluation into a result folder and return its table.

    ``evaluation.json``, ``scores.csv``, ``scores.md``, ``score.png`` (error over time) and the
    page with the truth beside the forecast.
    """
    table = atoms_table(moving, evaluation)
    atomic.write_json(
        folder / "evaluation.json",
        table.as_dict() | {"notices": [notice.as_dict() for notice in evaluation.notices]},
    )
    atomic.write(folder / "scores.csv", table.csv())
    atomic.write(folder / "scores.md", table.markdown())
    label = ATOM_METRICS[0].label
    score_figure(folder / "score.png", list(evaluation.lags_ps), _drawn(table), label)
    write_atoms_page(folder / "index.html", evaluated_page(moving, evaluation, table))
    add_to_report(folder, "evaluation", evaluation.notices, times=len(evaluation.lags_ps))
    return table


def _drawn(table: Table) -> dict[str, list[float]]:
    """Return the errors over time that fit into one picture with those of the models."""
    error = ATOM_METRICS[0]
    best = table.mean(table.best_trivial, error)
    return {
        row.name: list(row.values["error"])
        for row in table.rows
        if row.kind == "model" or table.mean(row, error) <= TALLEST * best
    }


def evaluated_page(moving: MovingAtoms, evaluation: AtomEvaluation, table: Table) -> AtomsPage:
    """Return the page of a forecast with the truth beside it and its scores below."""
    page, _ = atoms_page(moving.at(evaluation.rows), evaluation.truth)
    shown = [evaluation.lags_ps.index(lag) for lag in page.times_ps]
    labels = [metric.label for metric in table.metrics]
    return replace(
        page,
        scores=[
            (line[0], dict(zip([*labels, "skill"], line[1:], strict=True)))
            for line in table.cells()[1:]
        ],
        score_series={
            name: [values[index] for index in shown] for name, values in _drawn(table).items()
        },
        score_label=ATOM_METRICS[0].label,
        notes=[
            *table.verdicts(),
            *_about_samples(evaluation),
            *page.notes,
            *(str(notice) for notice in evaluation.notices),
        ],
    )


def evenly(count: int, most: int) -> list[int]:
    """Return up to ``most`` indices, evenly spaced from the first to the last of ``count``."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
