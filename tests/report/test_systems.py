import csv
import io
import json

import numpy as np
import pytest

from undula.errors import UsageError
from undula.report.systems import SystemRow, SystemsTable, bootstrap_interval
from undula.report.table import Metric

IOU = Metric(key="iou", label="IoU")
GAP = Metric(key="gap", label="Chamfer Å", higher_is_better=False)


def row(name, kind, iou, gap=None, published=None):
    """Return a row whose scores are given by protein, each a list over seeds."""
    gap = gap or {protein: [1 - v for v in seeds] for protein, seeds in iou.items()}
    return SystemRow(
        name=name, kind=kind, values={"iou": iou, "gap": gap}, published=published or {}
    )


MODEL = row("ours", "model", {"a": [0.7, 0.8], "b": [0.5, 0.6]}, published={"iou": 0.7028})
COPY = row("copied", "trivial", {"a": [0.6], "b": [0.5]})
BLUR = row("blurred", "trivial", {"a": [0.64], "b": [0.5]})
FLOOR = row("other replica", "oracle", {"a": [0.9], "b": [0.8]})


def table(*rows, systems=("a", "b"), notes=()):
    return SystemsTable(
        title="T", metrics=(IOU, GAP), rows=rows, systems=systems, notes=tuple(notes)
    )


def test_means_are_over_proteins_and_deviations_over_seeds():
    found = table(MODEL, COPY)
    assert found.mean(MODEL, IOU) == pytest.approx(0.65)
    assert found.deviation(MODEL, IOU) == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert found.deviation(COPY, IOU) is None


def test_skill_is_against_the_best_trivial_row_and_an_oracle_is_never_that():
    found = table(MODEL, COPY, BLUR, FLOOR)
    assert found.best_trivial is BLUR
    assert found.skill(BLUR) == 0.0
    assert found.skill(MODEL) == pytest.approx((0.65 - 0.57) / (1 - 0.57))
    assert found.skill(FLOOR) > found.skill(MODEL)


def test_verdicts_name_the_row_to_beat_and_say_that_few_proteins_cannot_judge():
    beats, few = table(MODEL, COPY, BLUR).verdicts()
    assert beats.startswith("ours beats the best trivial row, blurred: IoU +0.080")
    assert beats.endswith("better on 2 of 2 proteins.")
    assert few == "n = 2 proteins: too few to judge."
    worse = row("worse", "model", {"a": [0.1], "b": [0.2]})
    assert "worse does not beat" in table(worse, COPY).verdicts()[0]
    many = {f"p{i:02d}": [0.5] for i in range(20)}
    enough = table(
        row("m", "model", many), row("t", "trivial", many), systems=tuple(many)
    ).verdicts()
    assert enough[-1] == "n = 20 proteins."


def test_the_interval_holds_the_mean_narrows_with_proteins_and_repeats():
    values = np.random.default_rng(0).normal(0.6, 0.1, 25)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 5, rel=0.15)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values[:1]) is None
    assert bootstrap_interval(np.full(5, 0.3)) == pytest.approx((0.3, 0.3))


def test_published_numbers_stand_beside_in_their_own_column():
    cells = table(MODEL, COPY).cells()
    assert cells[0][-1] == "published IoU"
    assert cells[1][-1] == "0.7028"
    assert cells[2][-1] == "–"
    assert cells[2][0] == "copied (trivial)"
    assert cells[1][1] == "0.650 ± 0.071"
    assert "published IoU" not in table(COPY).cells()[0]


def test_models_stand_by_protein_with_all_last():
    lines = table(MODEL, COPY).system_cells(IOU)
    assert lines[0] == ["forecast", "a", "b", "all"]
    assert lines[1] == ["ours", "0.750 ± 0.071", "0.550 ± 0.071", "0.650 ± 0.071"]
    assert lines[2] == ["copied (trivial)", "0.600", "0.500", "0.550"]


def test_many_proteins_are_wrapped_on_a_terminal():
    many = {f"p{i:02d}": [0.5] for i in range(12)}
    wide = table(row("m", "model", many), row("t", "trivial", many), systems=tuple(many))
    assert max(map(len, wide.terminal(columns=4).splitlines()[4:])) < 100
    assert all(name in wide.terminal(columns=4) for name in many)


def test_markdown_csv_and_json_hold_every_number():
    found = table(MODEL, COPY, FLOOR, notes=["A note."])
    text = found.markdown()
    assert "**T**" in text
    assert "- A note." in text
    assert "Chamfer Å ↓, by protein" in text
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert len(rows) == (4 + 2 + 2) * 2
    described = json.loads(json.dumps(found.as_dict()))
    assert described["rows"][0]["values"]["iou"]["a"] == [0.7, 0.8]
    assert described["rows"][1]["std_over_seeds"]["iou"] is None
    assert described["proteins"] == ["a", "b"]


def test_a_table_needs_a_trivial_row_a_protein_and_every_number():
    with pytest.raises(UsageError, match="trivial"):
        table(MODEL)
    with pytest.raises(UsageError, match="at least one"):
        table(MODEL, COPY, systems=())
    with pytest.raises(UsageError, match="ours has no iou"):
        table(MODEL, COPY, systems=("a", "c"))
    ragged = row("ragged", "model", {"a": [0.5, 0.6], "b": [0.5]})
    with pytest.raises(UsageError, match="ragged has no iou"):
        table(ragged, COPY)


def test_a_measure_may_lack_in_a_row_and_an_oracle_may_lack_for_a_protein():
    network = SystemRow(name="order only", kind="trivial", values={"gap": COPY.values["gap"]})
    replica = SystemRow(name="replica", kind="oracle", values={"iou": {"a": [0.9]}})
    found = table(MODEL, COPY, network, replica)
    names = [line[0] for line in found.cells()[1:]]
    assert names[2:] == ["order only (trivial)", "replica (oracle, 1 of 2)"]
    assert found.cells()[3][1] == "–"
    assert found.cells()[4][1:3] == ["0.900", "–"]
    assert found.best_trivial is COPY
    assert found.system_cells(IOU)[3] == ["replica (oracle, 1 of 2)", "0.900", "–", "0.900"]
    assert len(found.system_cells(GAP)) == 4
    described = json.loads(json.dumps(found.as_dict(), allow_nan=False))["rows"]
    assert described[2]["skill"] is None
    assert "iou" not in described[2]["mean"]
    assert "order only,trivial,a,0,gap" in found.csv()
    with pytest.raises(UsageError, match="metric that judges"):
        table(MODEL, network)
    with pytest.raises(UsageError, match="no iou for some protein"):
        table(MODEL, COPY, SystemRow(name="x", kind="trivial", values={"iou": {"a": [0.9]}}))


def test_what_a_row_is_stands_in_every_form():
    found = table(MODEL, COPY, FLOOR)
    for text in (found.terminal(), found.markdown(), found.latex()):
        assert "other replica (oracle)" in text
        assert "copied (trivial)" in text
    assert "other replica,oracle,a" in found.csv()
    assert [row["kind"] for row in found.as_dict()["rows"]] == ["model", "trivial", "oracle"]
