"""Errors with an exit code and notices with a count: what undula says when input is not perfect.

Every error message is one sentence that names the file and the place. The exit codes are
those of the command line: 2 usage, 3 bad input, 4 machine or network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class UndulaError(Exception):
    """The root of all errors that undula raises on purpose."""

    exit_code = 1


class UsageError(UndulaError):
    """A command, option or configuration that cannot be meant."""

    exit_code = 2


class InputError(UndulaError):
    """A file that cannot serve: damaged, odd, of another kind, or changed since it was prepared."""

    exit_code = 3


class MachineError(UndulaError):
    """The machine or the network stands in the way: memory, disk, permission, a folder in use."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that was dropped, assumed or guessed; it ends in ``report.json``.

    Attributes:
        code: A stable short name in kebab-case, such as ``hydrogens-dropped``.
        message: One sentence for a person.
        count: How many things it concerns.
        place: File, chain, residue or frame, as exact as known; empty if it concerns everything.
    """

    code: str
    message: str
    count: int = 1
    place: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the notice as plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


def printable(text: str) -> str:
    r"""Return text for a terminal: what is no printable letter is written as ``\x1b`` and the like.

    Names from files, and of files, may hold anything, also what terminals obey.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def one_line(error: Exception) -> str:
    """Return what an error says as one line of at most 200 characters, for a message of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"
