"""Promise 4: input files and their folders are never written."""

from __future__ import annotations

from undula.cli.main import VERBS
from undula.data.bundled import folder


def test_every_verb_ran(every_verb):
    for words, code, said in zip(
        every_verb.words, every_verb.ended.codes, every_verb.ended.said, strict=True
    ):
        assert code == 0, f"{words}: {said}"
    assert {words[0] for words in every_verb.words} >= VERBS.keys() - {"sweep", "simulate"}


def test_no_input_has_changed_and_nothing_lies_beside_one(every_verb):
    assert every_verb.after == every_verb.before


def test_what_is_bundled_has_nothing_beside_it():
    beside = {path.suffix for path in folder("").rglob("*") if path.is_file()}
    assert beside <= {".pdb", ".xtc", ".safetensors", ".md", ".py", ".pyc"}
