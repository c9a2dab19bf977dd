from __future__ import annotations

from dataclasses import replace

import pytest
from tests.motion.studies.walkers import HORIZON, OBSERVED, WINDOW, walkers

from undula.cli.configured import (
    motion_contender,
    motion_training,
    protocol_kind,
    read_motion_protocol,
)
from undula.errors import InputError, UsageError
from undula.motion.catalog import FITTED_KINDS, KINDS
from undula.motion.evaluation import Sparing
from undula.motion.studies.protocol import MotionProtocol, MotionRow, MotionSystem, opened
from undula.motion.studies.runs import MotionFitting, MotionTraining


def system(**changes) -> MotionSystem:
    given = {"name": "argon", "train": 2, "test": 1, "observed": OBSERVED, "window": WINDOW}
    return MotionSystem(**given | {"horizon": HORIZON} | changes)


def protocol(**changes) -> MotionProtocol:
    given = {"name": "small", "kind": "motion", "systems": [system()], "rows": []}
    return MotionProtocol(**given | changes)


def test_the_study_of_domino_is_about_motion_and_holds_the_published_numbers():
    assert protocol_kind("domino") == "motion"
    assert protocol_kind("moe-dsr") == "surface"
    found = read_motion_protocol("domino")
    assert found.published.full["domino"]["argon"] == 0.1786
    assert found.published.windows["argon"]["lg-ode"][1000] == 0.1750
    argon = found.systems[0]
    assert (argon.train, argon.test, argon.observed, argon.horizon) == (5, 3, 2000, 8000)


def test_the_first_recordings_train_and_the_last_are_the_test(tmp_path):
    walkers(tmp_path / "argon")
    found = opened(protocol(), {"argon": tmp_path / "argon"})[0]
    assert found.train == ("run0", "run1")
    assert found.test == ("run2",)


def test_refuses_recordings_that_cannot_serve(tmp_path):
    walkers(tmp_path / "argon")
    folders = {"argon": tmp_path / "argon"}
    for changes, sentence in (
        ({"train": 3}, "run2 is both trained on and scored"),
        ({"test": 4, "train": ["run0"]}, "too few for test=4"),
        ({"horizon": 4000}, "84 frames"),
        ({"test": ["run9"]}, "no recording run9"),
    ):
        with pytest.raises(InputError, match=sentence):
            opened(protocol(systems=[system(**changes)]), folders)
    with pytest.raises(UsageError, match="is of none of them"):
        opened(protocol(), {"neon": tmp_path / "argon"})
    with pytest.raises(UsageError, match="no folder"):
        opened(protocol(), {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"systems": []}, "no system"),
        ({"seeds": [1, 1]}, "the seed 1 twice"),
        ({"rows": [MotionRow(name="a"), MotionRow(name="a")]}, "the row a twice"),
        ({"ablation": ["b"]}, "names a row b"),
        ({"rows": [MotionRow(name="a", systems=["neon"])]}, "names a system neon"),
        (
            {"rows": [MotionRow(name="a", sparing_on={"neon": Sparing(starts=1)})]},
            "names a system neon",
        ),
        ({"rows": [MotionRow(name="a", as_large_as="b")]}, "names a row b"),
        (
            {"rows": [MotionRow(name="a", as_large_as="b"), MotionRow(name="b", model="ito")]},
            "as large as b, no row of domino",
        ),
    ],
)
def test_refuses_protocols_that_contradict_themselves(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        protocol(**changes)


def test_a_control_gets_as_many_weights_as_it_can_by_its_width(tmp_path):
    walkers(tmp_path / "argon")
    changes = {"motion": {"model": {"encoder": {"features": 8}, "levels": {"horizon": 8000}}}}
    asked = system(
        preset="argon", set=changes | {"motion": changes["motion"] | {"batch": {"observed": 12}}}
    )
    given = opened(protocol(systems=[asked]), {"argon": tmp_path / "argon"})[0]
    full = motion_training(MotionRow(name="all"), given, 0, None)
    control = full.first_levels(1).as_large_as(full, 1)
    small, large = control.settings.model, full.settings.model
    assert len(small.levels.strides) == 1
    assert small.encoder.features > large.encoder.features
    assert small.encoder.features % small.encoder.heads == 0


LEVELS = {"horizon": 20, "strides": [10, 1]}
SHORT = {"motion": {"batch": {"observed": 12}, "model": {"levels": LEVELS}}}


def test_a_training_that_does_not_fit_its_system_is_refused(tmp_path):
    walkers(tmp_path / "argon")
    for changes, sentence in (
        ({"preset": "argon"}, "batch.observed is 1025"),
        ({"preset": "default"}, "the preset default is none of domino"),
        ({"preset": "argon", "set": SHORT}, "the horizon is 20"),
    ):
        given = opened(protocol(systems=[system(**changes)]), {"argon": tmp_path / "argon"})[0]
        with pytest.raises(UsageError, match=sentence):
            motion_training(MotionRow(name="ours"), given, 0, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "gpt"}, "model is one of domino, lg-ode"),
        ({"model": "ito", "levels": 1}, "levels and as_large_as are for domino"),
        ({"model": "scinet", "decoded": [1]}, "scinet cannot be decoded in other ways"),
        ({"model": "wavelet-arima", "decoded": [1]}, "cannot be decoded in other ways"),
    ],
)
def test_refuses_rows_that_cannot_be_meant(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        MotionRow(name="a", **changes)


@pytest.mark.parametrize("preset", ["argon", "water", "alanine"])
def test_every_kind_has_a_preset_for_every_system_of_the_study(tmp_path, preset):
    walkers(tmp_path / "argon", recordings=2)
    seen = {"observed": 1025, "window": 1025}
    given = opened(protocol(systems=[system(train=1)]), {"argon": tmp_path / "argon"})[0]
    asked = replace(given.asked, preset=preset, **seen)
    for model in (*KINDS, *FITTED_KINDS):
        row = MotionRow(name="a", model=model)
        found = motion_contender(row, replace(given, asked=asked), 3, None, until_plateau=True)
        if isinstance(found, MotionTraining):
            assert found.kind.name == model
            assert found.fit.seed == 3
            assert found.fit.plateau == KINDS[model].plateau
        else:
            assert isinstance(found, MotionFitting)
            assert "workers" not in found.described()


def test_the_rows_of_the_study_are_all_kinds():
    rows = read_motion_protocol("domino").rows
    assert {row.model for row in rows} == {*KINDS, *FITTED_KINDS}


def test_a_row_without_a_preset_for_its_system_says_so(tmp_path):
    walkers(tmp_path / "argon")
    given = opened(protocol(systems=[system(preset="domino-paper")]), {"argon": tmp_path / "argon"})
    for model in ("lg-ode", "wavelet-arima"):
        with pytest.raises(UsageError, match=f"there is no preset {model}/domino-paper"):
            motion_contender(MotionRow(name="a", model=model), given[0], 0, None)
