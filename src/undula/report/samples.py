"""The table of a forecast's samples: score, spread and mobility beside the trivial rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from undula.report.appendix import Appendix
from undula.surface.spread import SampleScores, SpreadRow, reachable

_HEADINGS = (
    "forecast",
    "CRPS Å ↓",
    "occupancy Brier ↓",
    "occupancy off by ↓",
    "mobility order ρ ↑",
    "mobility off by, Å ↓",
)
_EVEN = 0.03
"""A coverage this near to the ideal one is called right."""


def samples_table(scores: SampleScores) -> Appendix:
    """Return the table of a forecast's samples, with sentences that judge it."""
    return Appendix(
        title=f"{scores.samples} samples as a distribution, {len(scores.times_ps)} frames, within "
        "3 Å of the first surface",
        key="samples",
        headings=_HEADINGS,
        rows=[_cells(scores, row) for row in scores.rows] + [_floor(scores)],
        sentences=judgements(scores),
        values=_values(scores),
    )


def judgements(scores: SampleScores) -> list[str]:
    """Say in a few sentences whether the spread of the samples means something."""
    own, *others = scores.rows
    assert own.crps is not None
    mean = float(np.mean(own.crps))
    named = {
        row.name: float(np.mean(row.crps))
        for row in others
        if row.crps is not None and row.kind != "oracle"
    }
    best = min(named, key=lambda name: named[name])
    word = "beats" if mean < named[best] else "does not beat"
    return [
        f"CRPS: the samples' {mean:.3f} Å {word} the best forecast without a spread "
        f"({best}, {named[best]:.3f} Å).",
        *_oracle(scores, mean),
        *(_coverage(scores, level) for level in scores.coverage),
        _occupancy(scores),
        _mobility(scores),
        f"One protein and {len(scores.times_ps)} frames: too few to judge in general.",
    ]


def _oracle(scores: SampleScores, mean: float) -> list[str]:
    oracles = {
        row.name: float(np.mean(row.crps))
        for row in scores.rows
        if row.kind == "oracle" and row.crps is not None
    }
    if not oracles:
        return []
    best = min(oracles, key=lambda name: oracles[name])
    verdict = (
        "the samples beat it: they know where it is uncertain"
        if mean < oracles[best]
        else "the samples do not beat it: one number serves as well as their spread"
    )
    return [
        f"The same spread everywhere, its size chosen in hindsight ({best}), has "
        f"{oracles[best]:.3f} Å; {verdict}."
    ]


def _coverage(scores: SampleScores, level: float) -> str:
    found, ideal = scores.coverage[level], reachable(level, scores.samples)
    verdict = "as it should"
    if abs(found - ideal) > _EVEN:
        verdict = "the spread is too small" if found < ideal else "the spread is too large"
    aim = f"; {scores.samples} perfect samples: {ideal:.0%}" if ideal < level else ""
    return f"The {level:.0%} interval holds the truth at {found:.0%} of the places{aim}: {verdict}."


def _occupancy(scores: SampleScores) -> str:
    found = {
        row.name: value
        for row in scores.rows
        if row.kind != "oracle" and (value := scores.brier(row)) is not None
    }
    mean = found.pop(scores.rows[0].name)
    best = min(found, key=lambda name: found[name])
    word = "beats" if mean < found[best] else "does not beat"
    return (
        f"Occupancy over time: the samples' Brier score {mean:.3f} {word} that of the best other "
        f"forecast ({best}, {found[best]:.3f}); the true occupancy has {scores.brier_floor:.3f}."
    )


def _mobility(scores: SampleScores) -> str:
    orders = {row.name: scores.mobility_order(row) for row in scores.rows}
    told = [f"{name} {order:.2f}" for name, order in orders.items() if order is not None]
    if not told:
        return "Mobility: too few frames to compare."
    return (
        f"Mobility of the surface (true mean {float(scores.mobility.mean()):.2f} Å), rank "
        f"correlation with the truth: {', '.join(told)}."
    )


def _cells(scores: SampleScores, row: SpreadRow) -> list[str]:
    name = row.name if row.kind == "model" else f"{row.name} ({row.kind})"
    reliability = scores.reliability(row)
    return [
        name,
        "–" if row.crps is None else f"{np.mean(row.crps):.3f} ± {np.std(row.crps):.3f}",
        _text(scores.brier(row)),
        _text(None if reliability is None else reliability.error),
        _text(scores.mobility_order(row), 2),
        _text(scores.mobility_error(row), 2),
    ]


def _floor(scores: SampleScores) -> list[str]:
    return ["true occupancy (floor)", "–", _text(scores.brier_floor), _text(0.0), "–", "–"]


def _text(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _values(scores: SampleScores) -> dict[str, Any]:
    rows = []
    for row in scores.rows:
        reliability = scores.reliability(row)
        rows.append(
            {
                "name": row.name,
                "kind": row.kind,
                "crps_angstrom": row.crps and float(np.mean(row.crps)),
                "crps_angstrom_per_frame": row.crps,
                "occupancy_brier": scores.brier(row),
                "occupancy_error": reliability and reliability.error,
                "occupancy_reliability": reliability and vars(reliability),
                "mobility_rank_correlation": scores.mobility_order(row),
                "mobility_error_angstrom": scores.mobility_error(row),
            }
        )
    return {
        "samples": scores.samples,
        "times_ps": list(scores.times_ps),
        "judgements": judgements(scores),
        "rows": rows,
        "occupancy_brier_floor": scores.brier_floor,
        "true_mobility_angstrom": float(scores.mobility.mean()),
        "rank_histogram": scores.ranks,
        "coverage": {
            f"{level:g}": {"found": found, "ideal": reachable(level, scores.samples)}
            for level, found in scores.coverage.items()
        },
    }
