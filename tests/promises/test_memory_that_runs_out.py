"""Memory that runs out in spite of the estimate: once more with less, then exit 4 in a sentence."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from tests.faults import files

from undula.cli.main import main

WHERE = {
    "prepare": "undula.data.prepare.labelled_points",
    "prepare atoms": "undula.data.recorded.examined",
    "train surface": "undula.learn.fit._Run._part",
    "train motion": "undula.learn.fit._Run._part",
    "forecast": "undula.surface.forecast.extract",
    "forecast atoms": "undula.motion.forecast._forecast",
}
"""Command → what takes the most memory in it."""


def starving(monkeypatch: pytest.MonkeyPatch, place: str, allowed: int, failures: int) -> list[int]:
    """Let a function do its work some times, and then find no memory some times."""
    module, *names = place.rsplit(".", 2 if "_Run" in place else 1)
    owner = importlib.import_module(module)
    for name in names[:-1]:
        owner = getattr(owner, name)
    usual, calls = getattr(owner, names[-1]), [0]

    def function(*given, **named):
        calls[0] += 1
        found = usual(*given, **named)
        if allowed < calls[0] <= allowed + failures:
            raise MemoryError
        return found

    monkeypatch.setattr(owner, names[-1], function)
    return calls


@pytest.fixture(scope="module")
def whole(workplace, tmp_path_factory):
    """Return what a command makes in this process when there is memory enough."""
    made: dict[str, tuple[Path, dict[str, str]]] = {}

    def of(name: str) -> tuple[Path, dict[str, str]]:
        if name not in made:
            out = tmp_path_factory.mktemp("whole") / "out"
            assert main(workplace.commands[name](out)) == 0
            made[name] = out, files(out)
        return made[name]

    return of


@pytest.mark.parametrize("name", WHERE)
def test_a_second_attempt_with_less_makes_the_same_bytes(
    workplace, whole, tmp_path, monkeypatch, name
):
    _, expected = whole(name)
    calls = starving(monkeypatch, WHERE[name], allowed=1 if "train" in name else 0, failures=1)
    assert main(workplace.commands[name](tmp_path / "out")) == 0
    assert calls[0] > 1
    assert files(tmp_path / "out") == expected


@pytest.mark.parametrize("name", WHERE)
def test_after_two_attempts_a_sentence_says_what_fits(
    workplace, tmp_path, monkeypatch, capsys, name
):
    starving(monkeypatch, WHERE[name], allowed=1 if "train" in name else 0, failures=10**9)
    capsys.readouterr()
    assert main(workplace.commands[name](tmp_path / "out")) == 4
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("undula: ")]
    assert len(said) == 1
    assert "the memory was not enough" in said[0]
    assert "fit" in said[0] or name == "prepare atoms"  # fluids are read as they are


@pytest.mark.parametrize("name", ["train surface", "train motion"])
def test_a_training_that_ran_out_of_memory_goes_on_to_the_same_bytes(
    workplace, whole, tmp_path, monkeypatch, name
):
    _, expected = whole(name)
    with monkeypatch.context() as patched:
        starving(patched, WHERE[name], allowed=3, failures=10**9)
        assert main(workplace.commands[name](tmp_path / "out")) == 4
    assert main(workplace.commands[name](tmp_path / "out")) == 0
    assert files(tmp_path / "out") == expected
