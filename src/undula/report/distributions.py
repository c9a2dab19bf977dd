"""Whether forecast distributions of atoms are right: CRPS, coverage, and what samples look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from undula.motion.scores import coverage
from undula.motion.studies.study import MotionStudy, RowScores, SystemScores
from undula.report.appendix import Appendix
from undula.report.horizons import NO_NUMBER, start_errors, start_lags

MEASURED = {
    "rdf_error": "RDF error",
    "diffusion": "D, Å²/ps",
    "vacf_error": "VACF error",
    "minimum_distance": "closest pair, Å",
    "bond_error": "bonds, Å",
    "ramachandran": "Ramachandran, bits",
    "energy": "energy, kJ/mol/atom",
}
"""Scalars measured on samples, and their headings."""

FORGOTTEN = 7
"""Frames: beyond argon's Lyapunov time, 6 frames."""
CLOSE = 1.05
"""How much larger than the best climatological CRPS that of samples may be."""


def normal_crps(row: RowScores, place: int) -> float | None:
    """Return the mean CRPS of a row's normal distributions at one lag; none without a spread."""
    errors = start_errors(row, "crps")[..., place]
    known = errors[np.isfinite(errors)]
    return float(known.mean()) if known.size else None


def sample_crps(row: RowScores, place: int) -> float | None:
    """Return the mean CRPS of a row's samples at one lag; none without samples."""
    found = [
        start[place]
        for scores in row.seeds
        for one in scores.values()
        if one["samples"] is not None
        for start in one["samples"]["crps"]
        if start[place] is not None
    ]
    return sum(found) / len(found) if found else None


def counts(row: RowScores, place: int, kind: str) -> torch.Tensor | None:
    """Return where the truth lay in a row's distributions at one lag: "pit" or "ranks"."""
    total: torch.Tensor | None = None
    for scores in row.seeds:
        for one in scores.values():
            table = one["pit"] if kind == "pit" else (one["samples"] or {}).get("ranks")
            if table is None:
                return None
            here = torch.tensor(table[place])
            total = here if total is None else total + here
    return total if total is not None and int(total.sum()) else None


def calibration_table(system: SystemScores, study: MotionStudy) -> Appendix:
    """Return CRPS and coverage of models beside the best climatological row, by frames ahead."""
    lags = start_lags(system, study)
    rows: list[list[str]] = []
    values: list[dict[str, Any]] = []
    for place, lag in enumerate(lags):
        climate = {
            row.name: value
            for row in system.trivial
            if (value := normal_crps(row, place)) is not None
        }
        drawn = [v for row in system.trivial if (v := sample_crps(row, place)) is not None]
        if not climate:
            continue
        best = min(climate, key=lambda name: climate[name])
        shown = [*system.models, *(row for row in system.trivial if row.name == best)]
        for row in shown:
            found = _distribution(row, place) | {"row": row.name, "lag": lag}
            found["over_best"] = _share(found["crps"], climate[best])
            found["samples_over_best"] = _share(found["crps_samples"], min(drawn, default=None))
            values.append(found)
            rows.append(
                [
                    row.label if row.kind == "model" else f"{row.label} (best trivial)",
                    str(lag),
                    *(
                        _cell(found[key], digits)
                        for key, digits in (
                            ("crps", 4),
                            ("over_best", 3),
                            ("half", 2),
                            ("most", 2),
                            ("crps_samples", 4),
                            ("samples_over_best", 3),
                            ("most_samples", 2),
                        )
                    ),
                ]
            )
    scoring = system.opened.asked.scoring(study.protocol.scoring)
    headings = ["forecast", "frames ahead", "CRPS, Å", "÷ best", "in 50 %", "in 90 %"]
    return Appendix(
        title=f"{system.opened.name}, distributions: CRPS and coverage",
        key=f"{system.opened.name}-calibration",
        headings=[*headings, "CRPS of samples, Å", "÷ best", "samples in 90 %"],
        rows=rows,
        sentences=[
            *_calibration_verdicts(system, values),
            "The best trivial row is chosen by the CRPS of its normal distribution at each time. "
            f"Samples: {scoring.samples} from {scoring.sample_starts} starts of each test "
            f"recording, the normal distributions from {scoring.starts}.",
        ],
        values={"rows": values},
    )


def _calibration_verdicts(system: SystemScores, values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of each model's samples how their CRPS lies to the best climatological one later on."""
    said = []
    for row in system.models:
        later = [
            (one["samples_over_best"], one["lag"])
            for one in values
            if one["row"] == row.name
            and one["lag"] >= FORGOTTEN
            and one["samples_over_best"] is not None
        ]
        if later:
            worst, lag = max(later)
            within = "within" if worst <= CLOSE else "not within"
            said.append(
                f"Samples of {row.label} are {within} {CLOSE - 1:.0%} of the best climatological "
                f"CRPS from {FORGOTTEN} frames on: at most {worst:.3f} times it, at {lag} frames."
            )
    return said


def _distribution(row: RowScores, place: int) -> dict[str, Any]:
    pit, ranks = counts(row, place, "pit"), counts(row, place, "ranks")
    return {
        "crps": normal_crps(row, place),
        "half": None if pit is None else coverage(pit, 0.5),
        "most": None if pit is None else coverage(pit, 0.9),
        "crps_samples": sample_crps(row, place),
        "most_samples": None if ranks is None else coverage(ranks, 0.9),
    }


def samples_table(system: SystemScores) -> Appendix:
    """Return what samples look like beside the truth, other recordings and still atoms."""
    rows: list[tuple[str, Sequence[Mapping[str, Any]]]] = [
        ("truth", list(system.truth.values())),
        *((f"{name} (reference)", list(one.values())) for name, one in system.references.items()),
    ]
    for row in system.rows:
        found = [one["measured"] for scores in row.seeds for one in scores.values()]
        if all(one is not None for one in found):
            rows.append((row.label if row.kind == "model" else f"{row.label} (trivial)", found))
    shown = [key for key in MEASURED if any(key in one for _, each in rows for one in each)]
    values = {name: {key: _mean(each, key) for key in shown} for name, each in rows}
    sentences = [
        "Samples of the standard start of each test recording. Energies, the truth's too, are "
        "those of the force field of undula simulate, not what a recording says; medians: a mean "
        "is ruled by the closest pair of atoms. Diffusion from the squared displacement at "
        f"{system.opened.asked.linear_ps[0]:g} to {system.opened.asked.linear_ps[1]:g} ps."
    ]
    if system.energy_note:
        sentences.append(f"{system.energy_note[0].upper()}{system.energy_note[1:]}.")
    return Appendix(
        title=f"{system.opened.name}, samples beside the truth",
        key=f"{system.opened.name}-samples",
        headings=["forecast", *(MEASURED[key] for key in shown)],
        rows=[[name, *(_scalar(one[key]) for key in shown)] for name, one in values.items()],
        sentences=[*sentences, *_torsion_verdicts(values)],
        values=values,
    )


def _torsion_verdicts(values: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Say which samples are nearer to the truth in their torsions than still atoms."""
    known = {
        name: value
        for name, one in values.items()
        if (value := one.get("ramachandran")) is not None
    }
    still = {name: value for name, value in known.items() if name in _STILL_ROWS}
    if not still:
        return []
    least = min(still.values())
    better = [n for n, v in known.items() if n not in still and v < least]
    return [f"Nearer to the true torsions than {', '.join(still)}: {', '.join(better) or 'none'}."]


_STILL_ROWS = ("frozen (now) (reference)", "mean structure (reference)")


def _mean(each: Sequence[Mapping[str, Any]], key: str) -> float | None:
    found = [one[key] for one in each if one.get(key) is not None]
    return sum(found) / len(found) if found else None


def _share(value: float | None, best: float | None) -> float | None:
    return None if value is None or best is None or best <= 0 else value / best


def _cell(value: float | None, digits: int) -> str:
    return NO_NUMBER if value is None else f"{value:.{digits}f}"


def _scalar(value: float | None) -> str:
    if value is None:
        return NO_NUMBER
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.1e}"
