import csv
import io
import json

import pytest

from undula.errors import UsageError
from undula.report.table import Metric, Row, Table

METRICS = (
    Metric(key="iou", label="IoU"),
    Metric(key="distance", label="Å", higher_is_better=False, digits=2),
)


def row(name, kind, iou, distance=(1.0, 1.0)):
    return Row(name=name, kind=kind, values={"iou": iou, "distance": distance})


def table(model, *trivial):
    rows = (row("model", "model", model), *(row(n, "trivial", v) for n, v in trivial))
    return Table(title="t", metrics=METRICS, rows=rows, times_ps=(1.0, 2.0))


def test_skill_is_the_part_of_the_best_trivial_error_that_is_removed():
    found = table([0.9, 0.9], ("copied", [0.6, 0.8]), ("blurred", [0.8, 0.8]))
    assert found.best_trivial.name == "blurred"
    assert [found.skill(row) for row in found.rows] == pytest.approx([0.5, -0.5, 0.0])


def test_skill_of_an_error_is_one_when_nothing_is_left():
    rows = (
        Row(name="model", kind="model", values={"distance": [0.0, 0.0]}),
        Row(name="copied", kind="trivial", values={"distance": [2.0, 4.0]}),
    )
    found = Table(title="t", metrics=METRICS[1:], rows=rows, times_ps=(1.0, 2.0))
    assert found.skill(found.rows[0]) == 1.0


def test_a_model_is_told_what_it_beats_and_what_not():
    (mixed,) = table([0.5, 0.9], ("copied", [0.8, 0.8]), ("ellipsoid", [0.4, 0.4])).verdicts()
    assert "model (IoU 0.700) beats ellipsoid (0.400); it does not beat copied (0.800)." in mixed
    assert "better in 1 of 2 frames" in mixed
    (won,) = table([0.85, 0.9], ("copied", [0.8, 0.8])).verdicts()
    assert "beats copied (0.800). Against" in won
    (lost,) = table([0.1, 0.2], ("copied", [0.8, 0.8])).verdicts()
    assert "beats no trivial row; it does not beat copied" in lost


def test_a_table_without_a_trivial_row_is_refused():
    with pytest.raises(UsageError, match="trivial"):
        table([0.5, 0.5])


def test_a_row_with_missing_frames_is_refused():
    with pytest.raises(UsageError, match="no iou for some frames"):
        table([0.5], ("copied", [0.8, 0.8]))


def test_markdown_terminal_and_json_agree():
    found = table([0.25, 0.75], ("copied", [0.8, 0.8]))
    for text in (found.markdown(), found.terminal(), found.terminal(columns=1)):
        assert "0.500 ± 0.250" in text
        assert "copied (trivial)" in text
        assert "does not beat" in text
    described = json.loads(json.dumps(found.as_dict()))
    assert described["rows"][0]["mean"]["iou"] == 0.5
    assert described["rows"][0]["std"]["iou"] == 0.25
    assert described["best_trivial"] == "copied"


def test_csv_holds_every_score():
    found = table([0.25, 0.75], ("copied", [0.8, 0.8]))
    lines = list(csv.DictReader(io.StringIO(found.csv())))
    assert len(lines) == 2 * 2 * 2
    assert lines[1] == {
        "forecast": "model",
        "kind": "model",
        "time_ps": "2",
        "metric": "iou",
        "value": "0.75",
    }
