"""The tables of a study, from its scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undula.report.appendix import Appendix
from undula.report.systems import ENOUGH, SystemRow, SystemsTable
from undula.report.table import Metric
from undula.surface.specialisation import (
    PERMUTATIONS,
    Routing,
    associations,
    mean_identity,
    protein_classes,
    representatives,
)
from undula.surface.studies.protocol import ROWS, Protocol, StudyTable
from undula.surface.studies.stage import FLOOR
from undula.surface.studies.study import Means, RowResult, StudyResult

METRICS = (
    Metric(key="iou", label="IoU"),
    Metric(key="chamfer_angstrom", label="Chamfer Å", higher_is_better=False),
    Metric(key="chamfer_paper", label="CD (paper)", higher_is_better=False, digits=4),
    Metric(key="normal_consistency_paper", label="NC (paper)"),
)
"""Columns of the models' tables; the first one judges."""
SPREAD_METRICS = (
    Metric(key="crps_angstrom", label="CRPS Å", higher_is_better=False),
    Metric(key="coverage_90_error", label="90 % off by", higher_is_better=False),
    Metric(key="rmsf_rank_correlation", label="RMSF ρ", digits=2),
    Metric(key="rmsf_error_angstrom", label="RMSF off by Å", higher_is_better=False, digits=2),
    Metric(key="occupancy_brier", label="Brier", higher_is_better=False),
    Metric(key="occupancy_error", label="occupancy off by", higher_is_better=False),
    Metric(
        key="volume_angstrom3_wasserstein", label="volume W₁ Å³", higher_is_better=False, digits=0
    ),
    Metric(
        key="volume_angstrom3_wasserstein_relative",
        label="relative",
        higher_is_better=False,
        digits=4,
    ),
    Metric(key="area_angstrom2_wasserstein", label="area W₁ Å²", higher_is_better=False, digits=0),
    Metric(
        key="area_angstrom2_wasserstein_relative",
        label="relative",
        higher_is_better=False,
        digits=4,
    ),
)
"""Columns of the tables of distributions; the first one judges."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A score over the number of experts.

    Attributes:
        name: Of the model.
        experts: Ascending.
        means: Mean over proteins and seeds.
        deviations: Over seeds; none for one seed.
    """

    name: str
    experts: tuple[int, ...]
    means: tuple[float, ...]
    deviations: tuple[float | None, ...]


def models_table(study: StudyResult, asked: StudyTable) -> SystemsTable:
    """Return models × proteins with trivial rows and oracles (the paper's Table 1)."""
    published = {name: one.measures() for name, one in asked.published.items()}
    rows = [
        SystemRow(
            name=result.row.label,
            kind="model",
            values=_values(result.means, METRICS),
            published=published.get(result.row.name, {}),
        )
        for result in _present(study, asked)
    ]
    for kind, group in (("trivial", study.still), ("oracle", study.oracles)):
        rows += [
            SystemRow(
                name=name,
                kind="trivial" if kind == "trivial" else "oracle",
                values=_values([means], METRICS),
                published=published.get(name, {}),
            )
            for name, means in group.items()
        ]
    return SystemsTable(
        title=asked.title,
        metrics=METRICS,
        rows=tuple(rows),
        systems=study.systems,
        notes=(*_notes(study, asked), study.fitted, *_oracle_notes(study)),
    )


def rows_table(study: StudyResult) -> Appendix:
    """Return what each row is: its weights, the steps of its training, and how that ended."""
    rows, values = [], {}
    for name, result in study.rows.items():
        total, active, router = result.parameters
        rows.append(
            [
                result.row.label,
                f"{total:,}",
                f"{active:,}",
                ", ".join(f"{count:,}" for count in result.steps),
                ", ".join(_ended(plateau) for plateau in result.plateaus),
            ]
        )
        values[name] = {
            "label": result.row.label,
            "weights": {"router": router, "all": total, "active": active},
            "steps": list(result.steps),
            "seeds": list(result.seeds),
            "plateaus": list(result.plateaus),
        }
    data = [
        f"{d.structure.name} {d.sha256[:16]}" for d in (*study.roles.training, *study.roles.test)
    ]
    told = [
        f"Trained on {', '.join(_training_names(study))}, validation among them; scored on "
        f"{', '.join(study.systems)}; data SHA-256 {', '.join(data)}.",
        *_plateau_notes(study.rows.values()),
        *(f"{name} failed: {why}." for name, why in study.skipped.items()),
    ]
    return Appendix(
        title="The rows: weights, steps of the training of each seed, and how it ended",
        key=ROWS,
        headings=["model", "weights", "active", "steps", "ended"],
        rows=rows,
        sentences=told,
        values=values,
    )


def _ended(plateau: Mapping[str, Any] | None) -> str:
    """Say how the training of a seed ended."""
    if plateau is None:
        return "after its steps"
    cycles = f"{len(plateau['ends'])} cycles"
    return f"plateau after {cycles}" if plateau["reached"] else f"no plateau in {cycles}"


def _plateau_notes(results: Iterable[RowResult]) -> list[str]:
    """Say by which rules trainings went on, if any did."""
    rules = [one["rule"] for result in results for one in result.plateaus if one is not None]
    told = {
        f"Trained in cycles until one improved {rule['measure']} on validation proteins by less "
        f"than {rule['gain']:g}, {rule['cycles']} at most; the steps are those of the best end of "
        "a cycle, whose weights are scored."
        for rule in rules
    }
    return sorted(told)


def distributions_table(study: StudyResult, asked: StudyTable) -> SystemsTable:
    """Return what models, trivial rows and oracles are worth as distributions."""
    rows = [
        SystemRow(
            name=f"{result.row.label}: {name}",
            kind="model",
            values=_values([spread[name] for spread in result.spreads], SPREAD_METRICS),
        )
        for result in _present(study, asked)
        for name in result.spreads[0]
    ]
    for kind, group in (("trivial", study.still_spreads), ("oracle", study.oracle_spreads)):
        rows += [
            SystemRow(
                name=name,
                kind="trivial" if kind == "trivial" else "oracle",
                values=_values([means], SPREAD_METRICS),
            )
            for name, means in group.items()
        ]
    told = [
        f"{study.protocol.scoring.members} samples or members; places within 3 Å of the first "
        "surface. CRPS of a forecast without a spread is its mean error. 90 % off by: how far the "
        "central interval's coverage is from what as many perfect samples reach. RMSF: of the "
        "surface along its normal. W₁: how far the distribution must be moved to be the true one.",
    ]
    lone = [name for name in study.halves if study.oracle_spreads]
    if lone:
        told.append(f"Of {', '.join(lone)} there is no other replica to take for a distribution.")
    return SystemsTable(
        title=asked.title,
        metrics=SPREAD_METRICS,
        rows=tuple(rows),
        systems=study.systems,
        notes=(*_notes(study, asked), study.fitted, *told),
    )


def routers_table(study: StudyResult, asked: StudyTable) -> Appendix:
    """Return scores and weights of models that differ in their router (Table 4)."""
    judge, physical, paper, normals = METRICS
    headings = ["router", "its weights", "all weights", "active"]
    headings += [judge.label, physical.label, paper.label, normals.label]
    headings += ["published IoU", "CD", "NC"]
    rows, values = [], {}
    for result in _present(study, asked):
        total, active, router = result.parameters
        told = asked.published.get(result.row.name)
        measures = {} if told is None else told.measures()
        rows.append(
            [
                f"{result.row.label} ({result.training.model.router})",
                *(f"{count:,}" for count in (router, total, active)),
                *(_mean_text(result, metric) for metric in METRICS),
                *(
                    f"{measures[metric.key]:.4f}" if metric.key in measures else "–"
                    for metric in (judge, paper, normals)
                ),
            ]
        )
        values[result.row.name] = {
            "router": result.training.model.router,
            "weights": {"router": router, "all": total, "active": active},
            "mean": {metric.key: _mean(result, metric) for metric in METRICS},
            "published": measures,
        }
    return Appendix(
        title=asked.title,
        key=asked.name,
        headings=headings,
        rows=rows,
        sentences=_notes(study, asked),
        values={"rows": values, "proteins": list(study.systems)},
    )


def experts_series(study: StudyResult, asked: StudyTable) -> list[Series]:
    """Return the judging score over the number of experts, one series per preset (Figure 3)."""
    found: dict[str, dict[int, RowResult]] = {}
    for result in _present(study, asked):
        found.setdefault(result.row.preset, {})[result.training.model.gate.experts] = result
    return [
        Series(
            name=preset,
            experts=tuple(sorted(results)),
            means=tuple(_mean(results[count], METRICS[0]) for count in sorted(results)),
            deviations=tuple(_deviation(results[count], METRICS[0]) for count in sorted(results)),
        )
        for preset, results in found.items()
    ]


def experts_table(study: StudyResult, asked: StudyTable) -> Appendix:
    """Return the numbers of the figure of `experts_series`."""
    rows, values = [], {}
    for result in _present(study, asked):
        told = asked.published.get(result.row.name)
        beside = "–" if told is None or told.iou is None else f"{told.iou:.4f}"
        gate = result.training.model.gate
        rows.append(
            [
                result.row.label,
                str(gate.experts),
                str(gate.chosen),
                *(_mean_text(result, metric) for metric in METRICS),
                beside,
            ]
        )
        values[result.row.name] = {
            "experts": gate.experts,
            "mean": {metric.key: _mean(result, metric) for metric in METRICS},
            "std_over_seeds": {metric.key: _deviation(result, metric) for metric in METRICS},
            "published": {} if told is None else told.measures(),
        }
    return Appendix(
        title=asked.title,
        key=asked.name,
        headings=["model", "experts", "chosen", *(m.label for m in METRICS), "published IoU"],
        rows=rows,
        sentences=_notes(study, asked),
        values={"rows": values, "proteins": list(study.systems)},
    )


def specialisation_tables(
    study: StudyResult, asked: StudyTable, ecod: Path | None = None
) -> list[Appendix]:
    """Return, for the first seed of each row, who goes where and what it has to do with classes.

    Args:
        study: With routings.
        asked: Which rows.
        ecod: ECOD's domain file, if it is there.
    """
    structures = [d.structure for d in (*study.roles.training, *study.roles.test)]
    classes = protein_classes(structures, ecod)
    known = {structure.name: structure for structure in structures}
    overall, _ = mean_identity(structures, torch.Generator().manual_seed(0))
    tables = []
    for result in _present(study, asked):
        routed, label = result.routings[0], result.row.label
        rows, values = [], {}
        train, test = routed.part(_training_names(study)), routed.part(study.systems)
        for expert in range(routed.probabilities.shape[1]):
            names = [n for n, e in zip(routed.names, routed.experts, strict=True) if e == expert]
            generator = torch.Generator().manual_seed(0)
            identity, pairs = mean_identity([known[name] for name in names], generator)
            rows.append(
                [
                    str(expert + 1),
                    f"{train.load[expert]:.2f}",
                    f"{test.load[expert]:.2f}",
                    ", ".join(representatives(routed, expert)) or "–",
                    "–" if math.isnan(identity) else f"{identity:.1%} ({pairs})",
                ]
            )
            values[str(expert + 1)] = {
                "load": {"train": float(train.load[expert]), "test": float(test.load[expert])},
                "proteins": names,
                "identity": None if math.isnan(identity) else identity,
            }
        told = [
            f"All pairs, of whatever expert: {overall:.1%} identity of local alignments.",
            _entropies(routed),
            *_notes(study, asked),
        ]
        tables.append(
            Appendix(
                title=f"{asked.title}: {label}",
                key=f"{asked.name}-{result.row.name}",
                headings=["expert", "load, train", "load, test", "surest proteins", "identity"],
                rows=rows,
                sentences=told,
                values={
                    "experts": values,
                    "top_expert": dict(
                        zip(routed.names, (routed.experts + 1).tolist(), strict=True)
                    ),
                    "load_entropy": routed.load_entropy,
                    "routing_entropy": routed.routing_entropy,
                    "identity_of_all_pairs": None if math.isnan(overall) else overall,
                },
            )
        )
        tables.append(_classes_table(asked, result, routed, classes))
    return tables


def _classes_table(
    asked: StudyTable, result: RowResult, routed: Routing, classes: Mapping[str, Sequence[str]]
) -> Appendix:
    found = associations(routed, classes)
    few = " (too few to judge)" if len(routed.names) < ENOUGH else ""
    return Appendix(
        title=f"What the expert says of a protein: {result.row.label}",
        key=f"{asked.name}-{result.row.name}-classes",
        headings=["class", "classes", "information, nats", "permuted", "NMI", "p"],
        rows=[
            [
                kind,
                str(one.classes),
                f"{one.information:.3f}",
                f"{one.null:.3f}",
                f"{one.normalised:.3f}",
                f"{one.p:.3f}",
            ]
            for kind, one in found.items()
        ],
        sentences=[
            f"Mutual information of top expert and class over {len(routed.names)} proteins{few}; "
            f"p by {PERMUTATIONS} permutations of the labels."
        ],
        values={
            kind: {
                "classes": one.classes,
                "information": one.information,
                "null": one.null,
                "nmi": one.normalised,
                "p": one.p,
                "labels": dict(zip(routed.names, classes[kind], strict=True)),
            }
            for kind, one in found.items()
        },
    )


def _entropies(routed: Routing) -> str:
    if routed.probabilities.shape[1] == 1:
        return "There is one expert, so there is no choice to describe."
    return (
        f"Entropy of the load {routed.load_entropy:.2f} and of the routing "
        f"{routed.routing_entropy:.2f} of the largest there can be; n = {len(routed.names)}."
    )


def _present(study: StudyResult, asked: StudyTable) -> list[RowResult]:
    return [study.rows[name] for name in asked.rows if name in study.rows]


def _training_names(study: StudyResult) -> list[str]:
    return [dataset.structure.name for dataset in study.roles.training]


def _values(
    seeds: Sequence[Mapping[str, Means]], metrics: Sequence[Metric]
) -> dict[str, dict[str, list[float]]]:
    """Turn seed → protein → measure into measure → protein → seeds.

    A measure that lacks for some protein and seed of a row lacks for the row, unless the whole
    protein does.
    """
    found = {}
    for metric in metrics:
        if all(metric.key in means for one in seeds for means in one.values()):
            found[metric.key] = {
                protein: [means[protein][metric.key] for means in seeds] for protein in seeds[0]
            }
    return found


def _by_seed(result: RowResult, metric: Metric) -> np.ndarray:
    """Return the mean over proteins of each seed."""
    return np.array(
        [np.mean([means[metric.key] for means in one.values()]) for one in result.means]
    )


def _mean(result: RowResult, metric: Metric) -> float:
    return float(_by_seed(result, metric).mean())


def _deviation(result: RowResult, metric: Metric) -> float | None:
    seeds = _by_seed(result, metric)
    return float(seeds.std(ddof=1)) if len(seeds) > 1 else None


def _mean_text(result: RowResult, metric: Metric) -> str:
    mean, deviation = _mean(result, metric), _deviation(result, metric)
    spread = "" if deviation is None else f" ± {deviation:.{metric.digits}f}"
    return f"{mean:.{metric.digits}f}{spread}"


def _notes(study: StudyResult, asked: StudyTable) -> list[str]:
    """Say how the numbers came about, what is missing, and why the published ones differ."""
    told = rows_notes(
        study.protocol,
        asked,
        {name: (one.seeds, one.steps) for name, one in study.rows.items()},
        proteins=len(study.systems),
        training=len(study.roles.training),
        skipped=study.skipped,
    )
    if asked.published and asked.differs:
        told.append(f"Published numbers: {asked.differs}")
    return told


def rows_notes(
    protocol: Protocol,
    asked: StudyTable,
    trained: Mapping[str, tuple[Sequence[int], Sequence[int]]],
    *,
    proteins: int,
    training: int,
    skipped: Mapping[str, str],
) -> list[str]:
    """Say how the numbers of a table came about, and which rows it lacks.

    Args:
        protocol: The study.
        asked: The table.
        trained: Row name → seeds, and the steps of each, of at least the rows of the table.
        proteins: On how many they were scored.
        training: On how many they were trained.
        skipped: Row name → why it could not be trained.
    """
    scoring = protocol.scoring
    present = [trained[name] for name in asked.rows if name in trained]
    counts = sorted({count for _, steps in present for count in steps})
    steps = " or ".join(f"{count:,}" for count in counts) or "no"
    seeds = _seeds_text([one for one, _ in present], protocol.seeds)
    told = [
        f"{proteins} test proteins{'' if proteins >= ENOUGH else ' (too few to judge)'}, up to "
        f"{scoring.frames} frames of {scoring.replicas} trajectories each; {seeds}; trained for "
        f"{steps} steps on {training} proteins, validation among them."
    ]
    told += [f"{name} failed: {skipped[name]}." for name in asked.rows if name in skipped]
    missing = [name for name in asked.rows if name not in {*trained, *skipped}]
    if missing:
        told.append(f"Left out: {', '.join(missing)}.")
    return told


def _seeds_text(each: Sequence[Sequence[int]], asked: Sequence[int]) -> str:
    """Say with which seeds rows were trained, and which have no deviation."""
    most = max(each, key=len, default=asked)
    if len(most) == 1:
        return f"one seed ({most[0]}): no ±"
    fewer = any(len(seeds) == 1 for seeds in each)
    return (
        f"mean ± deviation over seeds {', '.join(map(str, most))}"
        f"{', where there is one; rows without ± have one seed' if fewer else ''}"
    )


def _oracle_notes(study: StudyResult) -> list[str]:
    told = [
        "Oracles have seen the truth: no forecast of one surface can be blamed for missing the "
        f"score of {FLOOR!r}, the noise floor.",
    ]
    if study.halves:
        told.append(
            f"Of {', '.join(study.halves)} there is one replica: its other half stands in for "
            "another one."
        )
    return told + [f"Similar: {one}." for one in study.relatives]
