from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.motion.studies.walkers import HORIZON, OBSERVED, WINDOW, walkers

from undula.motion.evaluation import MEASURES, MotionScoring
from undula.motion.studies.protocol import (
    MotionProtocol,
    MotionRow,
    MotionSystem,
    PublishedMotion,
    opened,
)
from undula.motion.studies.study import MotionStudy, RowScores, SystemScores
from undula.report.distributions import calibration_table, samples_table
from undula.report.horizons import (
    ablation_table,
    bin_skills,
    full_table,
    lags_table,
    regimes_table,
    skill_table,
    windows_table,
)

SCORING = MotionScoring(frames=4, starts=10, lags=[1, 2, 10, 40])
LAGS = SCORING.standard_lags(HORIZON)


def scores(level: float, *, wiggle: float = 0.0, bars: list[int] | None = None):
    """Make scores in which every error is a level, and swings from start to start."""
    each = [level * (1 + (wiggle if start % 2 else -wiggle)) for start in range(10)]
    bars = bars or [1] * 40
    return {
        "run2": {
            "standard": {name: [level] * len(LAGS) for name in MEASURES},
            "starts": {name: [[value] * 4 for value in each] for name in MEASURES},
            "pit": [bars] * 4,
            "samples": {"crps": [[level] * 4], "ranks": [[1, 1, 1, 1]] * 4},
            "measured": {"ramachandran": level, "rdf": [1.0], "msd": [1.0]},
        }
    }


def row(name: str, kind: str, *seeds, parameters: int = 0) -> RowScores:
    return RowScores(name=name, label=name, kind=kind, seeds=seeds, parameters=parameters)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walkers") / "argon"
    walkers(folder)
    protocol = MotionProtocol(
        name="small",
        kind="motion",
        systems=[
            MotionSystem(
                name="argon", train=2, test=1, observed=OBSERVED, window=WINDOW, horizon=HORIZON
            )
        ],
        rows=[MotionRow(name="ours"), MotionRow(name="worse")],
        ablation=["ours", "worse"],
        scoring=SCORING,
        published=PublishedMotion(
            full={"ours": {"argon": 0.1786}, "theirs": {"argon": 0.2}},
            windows={"argon": {"ours": {40: 0.184}}},
            differs="other atoms",
        ),
    )
    return protocol, opened(protocol, {"argon": folder})[0]


@pytest.fixture(scope="module")
def study(given) -> MotionStudy:
    protocol, system = given
    rows = (
        row("ours", "model", scores(0.5, wiggle=0.2), scores(0.6, wiggle=0.2), parameters=7),
        row("worse", "model", scores(2.0), scores(2.0)),
        row("even", "model", scores(1.0, wiggle=0.9), scores(1.0, wiggle=0.9)),
        row("constant", "trivial", scores(1.0)),
        row("damped ballistic", "trivial", scores(4.0)),
    )
    made = SystemScores(
        opened=system,
        rows=rows,
        references={
            "frozen (now)": {"run2": {"ramachandran": 0.9}},
            "mean structure": {"run2": {"ramachandran": 1.0}},
        },
        truth={"run2": {"diffusion": 0.8}},
        positions_only=False,
        energy_note="no energies: nothing there",
    )
    return MotionStudy(protocol=protocol, systems=(made,), skipped={})


def test_skill_is_the_part_of_the_best_trivial_error_that_is_removed(study):
    found = bin_skills(study.systems[0], study, "physical")
    ours = [one for one in found if one.row.name == "ours"]
    assert [one.skill.best for one in ours] == ["constant"] * len(ours)
    for one in ours:
        assert one.skill.value == pytest.approx(0.45)
        assert one.skill.low <= 0.45 <= one.skill.high
        assert one.deviation == pytest.approx(0.05 * 2**0.5)
        assert one.over_damped == pytest.approx(1 - 0.55 / 4)
        assert (one.skill.trajectories, one.windows) == (1, 10)


def test_verdicts_tell_better_worse_and_neither_apart(study):
    said = skill_table(study.systems[0], study, "physical").sentences
    assert said[0].startswith("ours beats the best trivial row at 1, 2, 6–10, 21–40 frames")
    assert "loses to it nowhere; neither nowhere" in said[0]
    assert "ours has less error than the damped ballistic row in 2 of the 2 parts" in said[1]
    assert "worse beats the best trivial row nowhere; it loses to it at 1, 2" in said[2]
    assert "even beats the best trivial row nowhere; it loses to it nowhere" in said[4]
    assert said[-1] == "n = 1 test recordings of one system: too few to judge in general."


def test_published_numbers_stand_beside(study):
    table = full_table(study)
    cells = {line[0]: line[1:] for line in table.rows}
    assert cells["ours"] == ["0.5500 ± 0.0707", "0.5500 ± 0.0707", "0.1786"]
    assert cells["theirs (published)"] == ["–", "–", "0.2000"]
    assert table.sentences[-1] == "other atoms"
    windows = windows_table(study.systems[0], study, "paper")
    assert windows.headings == ["forecast", "20–40"]
    assert ["ours (published)", "0.1840"] in windows.rows
    physical = windows_table(study.systems[0], study, "physical")
    assert not any("published" in line[0] for line in physical.rows)


def test_windows_that_a_lag_does_not_reach_are_counted(study):
    system = study.systems[0]
    short = scores(1.0)
    for start in short["run2"]["starts"]["physical"][4:]:
        start[3] = None
    rows = (row("constant", "trivial", short),)
    table = lags_table(replace(system, rows=rows), study, "physical")
    assert table.rows[-1] == ["windows", "10", "10", "10", "4"]


def test_samples_are_judged_beside_the_best_climatological_row(study):
    table = calibration_table(study.systems[0], study)
    assert table.sentences[0].startswith("Samples of ours are within 5%")
    assert (
        "not within 5% of the best climatological CRPS from 7 frames on: at most 2.000"
        in (table.sentences[1])
    )
    first = next(line for line in table.rows if line[0] == "ours")
    assert first[4:6] == ["0.50", "0.90"]


def test_torsions_are_judged_beside_still_atoms(study):
    table = samples_table(study.systems[0])
    assert "No energies: nothing there." in table.sentences
    assert table.sentences[-1].endswith(": ours.")


def test_the_ablation_names_weights_and_skill(study):
    table = ablation_table(study)
    assert [line[:3] for line in table.rows] == [["argon", "ours", "7"], ["argon", "worse", "0"]]
    assert table.rows[0][3] == "+0.450"


def test_parts_of_the_horizon_stand_beside_the_constant(study):
    table = regimes_table(study.systems[0], study, "physical")
    assert {line[-1] for line in table.rows} == {"0.0%"}
    assert SimpleNamespace(**table.values).constant == [1.0, 1.0, 1.0]
