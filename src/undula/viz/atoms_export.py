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
from undula.motion.forecast import MovingAtoms
from undula.viz.atoms_page import AtomsPage, write_atoms_page

ATOM_FORMATS = ("html", "xtc", "pdb")
SHOWN_SAMPLES = 4
"""How many samples a page shows at most."""
SHOWN_PLACES = 3_000_000
"""Atoms times frames of all views of a page, about 15 MB; longer forecasts show fewer times."""


def export_atoms(
    moving: MovingAtoms,
    folder: Path,
    *,
    formats: Sequence[str] = ("html", "xtc"),
    wrap: bool = False,
) -> list[Notice]:
    """Write a forecast of atoms and its exports into a folder.

    ==============================  =============================================================
    ``now.pdb``                     the last observed frame: the topology of the XTC files
    ``mean.xtc``                    the expected positions at all times
    ``sample-01.xtc`` …             whole futures
    ``forecast.pdb``                the expected positions, one model a time, with the standard
                                    deviation along an axis (Å) in the B-factor column
    ``index.html``                  the page
    ==============================  =============================================================

    Args:
        moving: The forecast.
        folder: The result folder.
        formats: "html", "xtc" and "pdb", or none of them.
        wrap: Bring molecules into the box, each as a whole; otherwise they go on from where they
            were last observed, through its walls, as diffusion needs it.

    Returns:
        Notices; with those of the forecast they stand in ``report.json``.

    Raises:
        UsageError: An unknown format.
    """
    unknown = [name for name in formats if name not in ATOM_FORMATS]
    if unknown:
        raise UsageError(f"there is no format {unknown[0]}; there are {', '.join(ATOM_FORMATS)}")
    moving.save(folder)
    notices: list[Notice] = []
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
                "B-FACTOR: STANDARD DEVIATION ALONG AN AXIS, ANGSTROM",
            ),
        )
    if "html" in formats:
        page, notices = atoms_page(moving)
        write_atoms_page(folder / "index.html", page)
    write_report(moving, folder, notices)
    return notices


def write_report(moving: MovingAtoms, folder: Path, notices: Sequence[Notice]) -> None:
    """Write ``report.json``: what was asked for and what was dropped, assumed or guessed."""
    spread = moving.expected.spread
    atomic.write_json(
        folder / "report.json",
        {
            "structure": moving.system.structure.name,
            "atoms": len(moving.system),
            "molecules": moving.system.molecule_count,
            "observed_frames": moving.observed,
            "frame_ps": moving.frame_ps,
            "now_ps": moving.now_ps,
            "times_after_now_ps": list(moving.lags_ps),
            "expected_error_angstrom": None
            if spread is None
            else spread.square().mean(dim=1).sqrt().tolist(),
            "samples": len(moving.samples),
            "seed": moving.seed,
            "notices": [notice.as_dict() for notice in [*moving.notices, *notices]],
        },
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
        score_label="error along an axis, Å",
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


def scored(
    page: AtomsPage,
    scores: Sequence[tuple[str, dict[str, str]]],
    series: dict[str, list[float]],
    verdicts: Sequence[str],
) -> AtomsPage:
    """Return a page with scores and, before its other notes, what they say."""
    return replace(page, scores=scores, score_series=series, notes=[*verdicts, *page.notes])


def evenly(count: int, most: int) -> list[int]:
    """Return up to ``most`` indices, evenly spaced from the first to the last of ``count``."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
