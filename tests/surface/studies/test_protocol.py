import json

import pytest

from undula.errors import InputError, UsageError
from undula.surface.studies.protocol import (
    Protocol,
    Published,
    Scoring,
    StudyProteins,
    StudyRow,
    StudyTable,
    readable,
    roles,
)

TABLE = StudyTable(name="t", title="T", kind="models", rows=["a"])


def names(datasets):
    return [dataset.structure.name for dataset in datasets]


def test_who_is_no_test_protein_is_trained_on(proteins):
    chosen = roles(StudyProteins(test=["two_A"]), list(proteins.values()))
    assert names(chosen.test) == ["two_A"]
    assert names(chosen.training) == ["five_A", "four_A", "one_A"]
    assert chosen.validation == 2


def test_validation_proteins_by_name_are_among_those_that_training_gets(proteins):
    asked = StudyProteins(test=["two_A"], validation=["one_A"], train=["five_A"])
    chosen = roles(asked, list(proteins.values()))
    assert names(chosen.training) == ["five_A", "one_A"]
    assert chosen.validation == ("one_A",)


def test_a_split_file_gives_every_role_and_names_without_data_are_passed_over(proteins, tmp_path):
    path = tmp_path / "split.json"
    parts = {
        "train": ["five_A", "four_A", "nine_Z"],
        "validation": ["one_A"],
        "test": ["two_A", "eight_Z"],
    }
    path.write_text(json.dumps({"format": 1, "parts": parts}))
    chosen = roles(StudyProteins(split=str(path)), list(proteins.values()))
    assert names(chosen.test) == ["two_A"]
    assert names(chosen.training) == ["five_A", "four_A", "one_A"]
    assert chosen.validation == ("one_A",)


def test_a_search_never_gets_test_proteins(proteins):
    found, kept = readable(StudyProteins(test=["two_A", "elsewhere"]), list(proteins.values()))
    assert "two_A" not in names(found)
    assert kept == 2


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({}, UsageError, "names no test protein"),
        ({"test": ["six_A"]}, InputError, "no data set of the test protein six_A"),
        ({"test": ["one_A"], "validation": ["one_A"]}, InputError, "both a test and a validation"),
        ({"test": ["one_A"], "train": ["one_A"]}, InputError, "both a test and a train"),
        ({"test": ["one_A"], "train": []}, InputError, "left to train on"),
    ],
)
def test_roles_that_cannot_be_are_refused(proteins, asked, error, message):
    with pytest.raises(error, match=message):
        roles(StudyProteins(**asked), list(proteins.values()))


def test_two_data_sets_of_one_name_are_refused(proteins):
    twice = [proteins["one_A"], proteins["one_A"]]
    with pytest.raises(InputError, match="both named one_A"):
        roles(StudyProteins(test=["one_A"]), twice)


def test_a_split_and_names_do_not_go_together():
    with pytest.raises(UsageError, match="split file or names"):
        StudyProteins(test=["a"], split="x.json")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": [], "tables": [TABLE]}, "no row"),
        ({"rows": [StudyRow(name="a")] * 2, "tables": [TABLE]}, "the row a twice"),
        ({"rows": [StudyRow(name="b")], "tables": [TABLE]}, "row a that there is not"),
        ({"rows": [StudyRow(name="a")], "tables": [TABLE], "seeds": [1, 1]}, "the seed 1 twice"),
        ({"rows": [StudyRow(name="a")], "tables": []}, "no table"),
    ],
)
def test_a_protocol_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Protocol(name="p", **values)


def test_a_row_may_do_with_fewer_seeds():
    assert list(StudyRow(name="a").of([3, 1, 2])) == [3, 1, 2]
    assert list(StudyRow(name="a", seeds=2).of([3, 1, 2])) == [3, 1]
    assert list(StudyRow(name="a", seeds=5).of([3])) == [3]
    with pytest.raises(UsageError, match="counted from 0"):
        StudyRow(name="a", seeds=-1)


def test_names_that_are_no_folders_and_empty_scoring_are_refused():
    for name in ("", "../up", "a b"):
        with pytest.raises(UsageError, match="no name for a row"):
            StudyRow(name=name)
    with pytest.raises(UsageError, match="at least one frame"):
        Scoring(frames=0)
    with pytest.raises(UsageError, match="spacing"):
        Scoring(spacing=0.0)
    with pytest.raises(UsageError, match="names no rows"):
        StudyTable(name="t", title="T", kind="models", rows=[])
    with pytest.raises(UsageError, match="cannot be named rows"):
        StudyTable(name="rows", title="T", kind="models", rows=["a"])


def test_published_numbers_go_beside_the_measures_they_are_of():
    assert Published(iou=0.7, chamfer=0.1).measures() == {"iou": 0.7, "chamfer_paper": 0.1}
