from __future__ import annotations

import pytest
from tests.motion.studies.walkers import HORIZON, OBSERVED, WINDOW, walkers

from undula.cli.configured import motion_training, protocol_kind, read_motion_protocol
from undula.errors import InputError, UsageError
from undula.motion.studies.protocol import MotionProtocol, MotionRow, MotionSystem, opened


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
    assert found.published.windows["argon"]["LG-ODE"][1000] == 0.1750
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
        ({"rows": [MotionRow(name="a", as_large_as="b")]}, "names a row b"),
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
    assert len(control.model.levels.strides) == 1
    assert control.model.encoder.features > full.model.encoder.features
    assert control.model.encoder.features % control.model.encoder.heads == 0


LEVELS = {"horizon": 20, "strides": [10, 1]}
SHORT = {"motion": {"batch": {"observed": 12}, "model": {"levels": LEVELS}}}


def test_a_training_that_does_not_fit_its_system_is_refused(tmp_path):
    walkers(tmp_path / "argon")
    for changes, sentence in (
        ({"preset": "argon"}, "batch.observed is 1025"),
        ({"preset": "default"}, "none of moving atoms"),
        ({"preset": "argon", "set": SHORT}, "levels.horizon is 20"),
    ):
        given = opened(protocol(systems=[system(**changes)]), {"argon": tmp_path / "argon"})[0]
        with pytest.raises(UsageError, match=sentence):
            motion_training(MotionRow(name="ours"), given, 0, None)
