import json
from collections import Counter
from itertools import pairwise

import pytest

from undula.data.similarity import Similarity, SimilarityConfig
from undula.data.splits import (
    PARTS,
    Split,
    families,
    load_split,
    sequences_sha256,
    split,
    write_split,
)
from undula.errors import InputError, UsageError

NAMES = [f"p{i:02d}" for i in range(40)]
FOUND = Similarity(
    program="mmseqs",
    version="14",
    clusters=(("p00", "p01", "p02"), ("p03", "p04"), *((name,) for name in NAMES[5:])),
    links=(("p00", "p01", 0.9), ("p02", "p05", 0.5), ("p06", "p07", 0.41)),
)
GROUPS = families(FOUND)
SEQUENCES = {name: "ACD" for name in NAMES}


def parts_of(chosen):
    return {name: part for part in PARTS for name in getattr(chosen, part)}


def test_families_join_clusters_by_pairs():
    assert GROUPS[:3] == (("p00", "p01", "p02", "p05"), ("p03", "p04"), ("p06", "p07"))
    assert [len(group) for group in GROUPS[3:]] == [1] * 32


def test_a_chain_of_pairs_is_one_family():
    links = tuple((a, b, 0.5) for a, b in pairwise(NAMES))
    alone = tuple((name,) for name in NAMES)
    found = Similarity(program="mmseqs", version="14", clusters=alone, links=links)
    assert families(found) == (tuple(NAMES),)


@pytest.mark.parametrize("rule", ["families", "singletons"])
def test_every_name_is_in_one_part_and_no_family_in_two(rule):
    for seed in range(20):
        part_of = parts_of(split(GROUPS, (28, 6, 6), seed, rule))
        assert sorted(part_of) == NAMES
        assert Counter(part_of.values()) == {"train": 28, "validation": 6, "test": 6}
        assert all(len({part_of[name] for name in group}) == 1 for group in GROUPS)


def test_singletons_alone_come_into_validation_and_test_by_the_papers_rule():
    related = {name for group in GROUPS if len(group) > 1 for name in group}
    by_paper = [split(GROUPS, (28, 6, 6), seed, "singletons") for seed in range(20)]
    assert all(related <= set(chosen.train) for chosen in by_paper)
    by_us = [split(GROUPS, (28, 6, 6), seed) for seed in range(20)]
    assert any(related & set(chosen.test) for chosen in by_us)


def test_the_same_seed_gives_the_same_split_whatever_the_order_of_the_families():
    first = split(GROUPS, (28, 6, 6), 3)
    assert split(tuple(reversed(GROUPS)), (28, 6, 6), 3) == first
    assert split(GROUPS, (28, 6, 6), 4) != first


def test_the_split_is_the_one_of_all_machines():
    names = tuple((name,) for name in "abcdef")
    assert split(names, (2, 2, 2), 0) == Split(
        train=("e", "f"), validation=("a", "b"), test=("c", "d")
    )


def test_parts_may_be_empty():
    assert split(GROUPS, (40, 0, 0), 0) == Split(train=tuple(NAMES), validation=(), test=())
    assert split(GROUPS, (0, 0, 40), 0) == Split(train=(), validation=(), test=tuple(NAMES))


@pytest.mark.parametrize(
    ("counts", "rule", "message"),
    [
        ((28, 6, 5), "families", "28 6 5 should add up to the 40 sequences, not to 39"),
        ((46, -6, 0), "families", "should add up"),
        ((4, 18, 18), "singletons", "only 32 sequences are similar to no other"),
        ((28, 6, 6), "random", "there is no rule random; choose families or singletons"),
    ],
)
def test_counts_that_cannot_be_met_are_named(counts, rule, message):
    with pytest.raises(UsageError, match=message):
        split(GROUPS, counts, 0, rule)


def test_counts_that_whole_families_cannot_meet_come_with_those_they_can():
    with pytest.raises(UsageError, match=r"4 1 1 cannot be met .* seed 0; 6 0 0 can"):
        split([("a", "b"), ("c", "d"), ("e", "f")], (4, 1, 1), 0)


def test_the_file_says_how_it_was_made_and_gives_the_parts_back(tmp_path):
    config = SimilarityConfig()
    chosen = split(GROUPS, (28, 6, 6), 0)
    path = tmp_path / "split.json"
    write_split(path, SEQUENCES, FOUND, config, chosen, seed=0, rule="families")
    assert load_split(path) == chosen
    written = json.loads(path.read_text())
    assert written["program"] == {"name": "mmseqs", "version": "14"}
    assert written["parameters"] == {
        "identity": 0.4, "coverage": 0.8, "coverage_mode": 0, "evalue": 1e-3,
    }  # fmt: skip
    assert written["numbers"] == {
        "coverage": {"count": 37, "of_one": 35, "largest": 3, "in_two_parts": 0},
        "any_coverage": {
            "pairs": 3, "sequences_in_pairs": 6, "sequences_in_none": 34, "pairs_in_two_parts": 0,
        },
        "families": {"count": 35, "of_one": 32, "largest": 4},
    }  # fmt: skip
    assert written["sequences"] == {"count": 40, "sha256": sequences_sha256(SEQUENCES)}


def test_the_file_counts_what_crosses_from_part_to_part(tmp_path):
    torn = Split(train=tuple(NAMES[:2]), validation=tuple(NAMES[2:6]), test=tuple(NAMES[6:]))
    config = SimilarityConfig()
    written = write_split(tmp_path / "s", SEQUENCES, FOUND, config, torn, seed=0, rule="families")[
        "numbers"
    ]
    assert written["coverage"]["in_two_parts"] == 1
    assert written["any_coverage"]["pairs_in_two_parts"] == 0
    torn = Split(train=tuple(NAMES[:7]), validation=(), test=tuple(NAMES[7:]))
    written = write_split(tmp_path / "s", SEQUENCES, FOUND, config, torn, seed=0, rule="families")[
        "numbers"
    ]
    assert written["coverage"]["in_two_parts"] == 0
    assert written["any_coverage"]["pairs_in_two_parts"] == 1


def test_the_hash_of_the_sequences_knows_letters_and_names_but_no_order():
    assert sequences_sha256({"a": "C", "b": "D"}) == sequences_sha256({"b": "D", "a": "C"})
    assert sequences_sha256({"a": "C", "b": "D"}) != sequences_sha256({"a": "D", "b": "C"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "no split file of format 1"),
        ('{"format": 2, "parts": {}}', "no split file of format 1"),
        ('{"format": 1, "parts": {"train": ["a"]}}', "lists of names"),
        ('{"format": 1, "parts": {"train": ["a"], "validation": [], "test": [1]}}', "lists of"),
        ('{"format": 1, "parts": {"train": ["a"], "validation": [], "test": ["a"]}}',
         "a is in two parts"),
        ('{"format": 1, "parts": []}', "lists of names"),
        ("[", "cannot be read as JSON"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, text, message):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"split\.json.*{message}"):
        load_split(path)
