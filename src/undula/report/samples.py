"""Tables of a forecast as a distribution: score, spread, occupancy, volume and area."""

from __future__ import annotations

from typing import Any

import numpy as np

from undula.report.appendix import Appendix
from undula.surface.spread import SampleScores, SizeGap, SpreadRow, reachable

_HEADINGS = (
    "forecast",
    "CRPS Å ↓",
    "50 % holds",
    "90 % holds",
    "surface-RMSF ρ ↑",
    "off by, Å ↓",
    "occupancy Brier ↓",
    "off by ↓",
)
_SIZE_HEADINGS = (
    "forecast",
    "volume Å³",
    "W₁ Å³ ↓",
    "relative ↓",
    "area Å²",
    "W₁ Å² ↓",
    "relative ↓",
)
_EVEN = 0.03
"""A coverage this near to the ideal one is called right."""


def samples_table(scores: SampleScores) -> Appendix:
    """Return the table of a forecast as a distribution, with sentences that judge it."""
    what = f"{scores.samples} samples" if scores.samples else "Without samples,"
    return Appendix(
        title=f"{what} as a distribution, {len(scores.times_ps)} frames, within 3 Å of the first "
        "surface",
        key="samples",
        headings=_HEADINGS,
        rows=[_cells(scores, row) for row in scores.rows] + [_floor(scores)],
        sentences=judgements(scores),
        values=_values(scores),
    )


def sizes_table(scores: SampleScores) -> Appendix:
    """Return the table of volumes and areas beside the true ones."""
    rows = [row for row in scores.rows if row.volumes is not None]
    true = [SizeGap.of(sizes, sizes) for sizes in (scores.volumes, scores.areas)]
    best = [
        min((found.relative, row.name) for row in rows if (found := gap(row)) is not None)
        for gap in (scores.volume_gap, scores.area_gap)
    ]
    return Appendix(
        title=f"Volume and area, mean ± deviation over {len(scores.times_ps)} frames and all "
        "samples",
        key="sizes",
        headings=_SIZE_HEADINGS,
        rows=[
            [_name(row), *_size_cells(scores.volume_gap(row)), *_size_cells(scores.area_gap(row))]
            for row in rows
        ]
        + [["truth", _size(true[0]), "–", "–", _size(true[1]), "–", "–"]],
        sentences=[
            f"W₁: how far the distribution must be moved to be the true one. Volume is told best "
            f"by {best[0][1]} (off by {best[0][0]:.1%}), area by {best[1][1]} (off by "
            f"{best[1][0]:.1%})."
        ],
        values={
            "true": {
                "volume_angstrom3": true[0].mean,
                "volume_angstrom3_deviation": true[0].deviation,
                "area_angstrom2": true[1].mean,
                "area_angstrom2_deviation": true[1].deviation,
                "volumes_angstrom3": scores.volumes,
                "areas_angstrom2": scores.areas,
            },
            "rows": [{"name": row.name, "kind": row.kind, **_sizes(scores, row)} for row in rows],
        },
    )


def judgements(scores: SampleScores) -> list[str]:
    """Say in a few sentences whether the model's spread means something."""
    own, *others = scores.rows
    assert own.crps is not None
    mean = float(np.mean(own.crps))
    named = {
        row.name: float(np.mean(row.crps))
        for row in others
        if row.crps is not None and row.kind == "trivial"
    }
    best = min(named, key=lambda name: named[name])
    word = "beats" if mean < named[best] else "does not beat"
    return [
        f"CRPS: {_whose(scores)} {mean:.3f} Å {word} the best trivial row ({best}, "
        f"{named[best]:.3f} Å).",
        *(_oracle(scores, mean) if scores.samples else []),
        *(_coverage(own, level) for level in own.coverage or {}),
        _occupancy(scores),
        _mobility(scores),
        f"One protein and {len(scores.times_ps)} frames: too few to judge in general.",
    ]


def _whose(scores: SampleScores) -> str:
    return "the samples'" if scores.samples else "the typical surface's"


def _sizes(scores: SampleScores, row: SpreadRow) -> dict[str, float]:
    return {
        name: value
        for name, value in scores.measures(row).items()
        if name.startswith(("volume", "area"))
    }


def _size(gap: SizeGap) -> str:
    return f"{gap.mean:.0f} ± {gap.deviation:.0f}"


def _size_cells(gap: SizeGap | None) -> list[str]:
    assert gap is not None
    return [_size(gap), f"{gap.distance:.1f}", f"{gap.relative:.2%}"]


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


def _coverage(own: SpreadRow, level: float) -> str:
    assert own.coverage is not None
    found, ideal = own.coverage[level], reachable(level, own.members)
    verdict = "as it should"
    if abs(found - ideal) > _EVEN:
        verdict = "the spread is too small" if found < ideal else "the spread is too large"
    aim = f"; {own.members} perfect samples: {ideal:.0%}" if ideal < level else ""
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
        f"Occupancy over time: {_whose(scores)} Brier score {mean:.3f} {word} that of the best "
        f"other forecast ({best}, {found[best]:.3f}); the true occupancy has "
        f"{scores.brier_floor:.3f}."
    )


def _mobility(scores: SampleScores) -> str:
    orders = {row.name: scores.mobility_order(row) for row in scores.rows}
    told = [f"{name} {order:.2f}" for name, order in orders.items() if order is not None]
    if not told:
        return "Surface-RMSF: too few frames to compare."
    return (
        f"Surface-RMSF (true mean {float(scores.mobility.mean()):.2f} Å), rank correlation with "
        f"the truth: {', '.join(told)}."
    )


def _name(row: SpreadRow) -> str:
    return row.name if row.kind == "model" else f"{row.name} ({row.kind})"


def _cells(scores: SampleScores, row: SpreadRow) -> list[str]:
    found = scores.measures(row)
    return [
        _name(row),
        "–" if row.crps is None else f"{np.mean(row.crps):.3f} ± {np.std(row.crps):.3f}",
        *(_held(found.get(f"coverage_{level}")) for level in (50, 90)),
        _text(found.get("rmsf_rank_correlation"), 2),
        _text(found.get("rmsf_error_angstrom"), 2),
        _text(found.get("occupancy_brier")),
        _text(found.get("occupancy_error")),
    ]


def _floor(scores: SampleScores) -> list[str]:
    known = ["–"] * 5
    return ["true occupancy (oracle)", *known, _text(scores.brier_floor), _text(0.0)]


def _held(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


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
                "members": row.members,
                **scores.measures(row),
                "crps_angstrom_per_frame": row.crps,
                "occupancy_reliability": reliability and vars(reliability),
            }
        )
    return {
        "samples": scores.samples,
        "times_ps": list(scores.times_ps),
        "judgements": judgements(scores),
        "rows": rows,
        "places": len(scores.occupancy),
        "surface_points": len(scores.mobility),
        "occupancy_brier_floor": scores.brier_floor,
        "true_rmsf_angstrom": float(scores.mobility.mean()),
        "rank_histogram": scores.ranks,
    }
