"""What the tests of promises share: a command's whole answer, and files it must not leave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from undula.cli.main import main


@dataclass(frozen=True)
class Answer:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line of stderr, without the name of the program."""
        lines = self.err.strip().splitlines()
        return lines[-1].removeprefix("undula: ") if lines else ""


def answer(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Answer:
    """Run a command in this process."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return Answer(code=code, out=printed.out, err=printed.err)


def check_refused(told: Answer, *parts: str, code: int = 3) -> None:
    """Assert that a command ended with a code and one sentence that has these parts."""
    assert told.code == code, told
    assert "Traceback" not in told.err + told.out
    assert told.out == ""
    assert told.err.startswith("undula: ") or "\nundula: " in told.err
    for part in parts:
        assert part in told.sentence, told.sentence


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
