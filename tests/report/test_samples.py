import json

import pytest
import torch

from undula.errors import UsageError
from undula.report.appendix import Appendix
from undula.report.samples import judgements, samples_table, sizes_table
from undula.report.table import Metric, Row, Table
from undula.surface.spread import SAMPLES, SampleScores, SpreadRow

TRUE = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)


def scores(*, own=(0.4, 0.6), coverage=0.9, samples=32, oracle=None):
    rows = (
        SpreadRow(
            name=SAMPLES,
            kind="model",
            crps=list(own),
            occupancy=TRUE,
            mobility=TRUE,
            members=samples,
            coverage={0.5: 0.5, 0.9: coverage},
            volumes=[99.0, 103.0],
            areas=[50.0, 50.0],
        ),
        SpreadRow(
            name="copied",
            kind="trivial",
            crps=[0.7, 0.9],
            mobility=0 * TRUE,
            volumes=[98.0],
            areas=[51.0],
        ),
        SpreadRow(name="blurred", kind="trivial", occupancy=TRUE.flip(0)),
        SpreadRow(name="network", kind="trivial", mobility=-TRUE, relative=True),
    )
    if oracle is not None:
        rows += (SpreadRow(name="± 1 Å", kind="oracle", crps=[oracle] * 2),)
    return SampleScores(
        times_ps=(1.0, 2.0),
        samples=samples,
        rows=rows,
        ranks=[1] * (samples + 1),
        occupancy=TRUE,
        mobility=TRUE,
        volumes=[98.0, 102.0],
        areas=[49.0, 51.0],
    )


def test_the_cells_show_what_a_row_says_and_a_dash_for_the_rest():
    table = samples_table(scores())
    own = ["0.500 ± 0.100", "50%", "90%", "1.00", "0.00", "0.109", "0.000"]
    assert table.rows[0] == [SAMPLES, *own]
    assert table.rows[1] == ["copied (trivial)", "0.800 ± 0.100", *"–––", "0.44", *"––"]
    assert table.rows[3] == ["network (trivial)", *"–––", "-1.00", *"–––"]
    assert table.rows[4] == ["true occupancy (oracle)", *"–––––", "0.109", "0.000"]


def test_volumes_and_areas_stand_beside_the_true_ones():
    table = sizes_table(scores())
    assert table.rows == [
        [SAMPLES, "101 ± 2", "1.0", "1.00%", "50 ± 0", "1.0", "2.00%"],
        ["copied (trivial)", "98 ± 0", "2.0", "2.00%", "51 ± 0", "1.0", "2.00%"],
        ["truth", "100 ± 2", "–", "–", "50 ± 1", "–", "–"],
    ]
    assert "Volume is told best by samples (off by 1.0%)" in table.sentences[0]
    rows = json.loads(json.dumps(table.values, allow_nan=False))["rows"]
    assert rows[0]["volume_angstrom3_wasserstein"] == 1.0
    assert rows[0]["area_angstrom2_wasserstein_relative"] == pytest.approx(0.02)


def test_an_oracle_is_told_to_be_one_in_every_form():
    appendix = samples_table(scores(oracle=0.3))
    for text in (appendix.terminal(), appendix.markdown(), appendix.csv(), appendix.latex()):
        assert "1 Å (oracle)" in text or r"1 \AA{} (oracle)" in text
    assert appendix.values["rows"][-1]["kind"] == "oracle"


def test_samples_that_do_not_beat_a_still_surface_are_told_so():
    assert "beats the best trivial row (copied, 0.800 Å)" in judgements(scores())[0]
    assert "does not beat" in judgements(scores(own=(0.9, 0.9)))[0]


@pytest.mark.parametrize(("oracle", "verdict"), [(0.6, "know where"), (0.4, "do not beat it")])
def test_samples_are_compared_with_the_same_spread_everywhere(oracle, verdict):
    told = judgements(scores(oracle=oracle))
    assert "(copied, 0.800 Å)" in told[0]
    assert verdict in told[1]


@pytest.mark.parametrize(
    ("coverage", "verdict"),
    [(0.91, "as it should"), (0.7, "the spread is too small"), (0.99, "the spread is too large")],
)
def test_a_wrong_spread_is_named(coverage, verdict):
    assert judgements(scores(coverage=coverage))[2].endswith(f"{verdict}.")


def test_few_samples_are_measured_by_what_they_can_reach():
    told = judgements(scores(samples=4, coverage=0.6))[2]
    assert "4 perfect samples: 60%" in told
    assert told.endswith("as it should.")


def test_an_appendix_stands_below_the_table_in_every_form():
    appendix = samples_table(scores())
    row = Row(name="copied", kind="trivial", values={"iou": [0.5, 0.5]})
    table = Table(
        title="t",
        metrics=(Metric(key="iou", label="IoU"),),
        rows=(row,),
        times_ps=(1.0, 2.0),
        appendices=(appendix,),
    )
    for text in (table.markdown(), table.terminal()):
        assert text.index("skill") < text.index(appendix.title) < text.index("0.500 ± 0.100")
        assert appendix.sentences[-1] in text
    values = json.loads(json.dumps(table.as_dict(), allow_nan=False))["samples"]
    assert values["rows"][0]["crps_angstrom"] == 0.5
    assert values["rows"][0]["occupancy_reliability"]["places"] == [1, 1, 1, 1]
    assert values["rows"][0]["coverage_90"] == 0.9
    assert values["rows"][0]["coverage_90_error"] == 0.0
    assert sum(values["rank_histogram"]) == 33


def test_a_row_of_another_length_is_refused():
    with pytest.raises(UsageError, match="2 columns but 1 cells"):
        Appendix(title="t", key="k", headings=["a", "b"], rows=[["x"]], sentences=[], values={})
