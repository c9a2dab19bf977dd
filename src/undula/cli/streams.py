"""Standard streams that never stop the work: closed ones, unread ones, and odd locales."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def settle_streams() -> None:
    r"""Open what was closed, replace what cannot be written, and go on when nobody reads.

    A closed descriptor 1 would be given to the first file that is opened, into which everything
    printed would go then. Letters that the locale lacks become ``\xe5`` and the like. When the
    reader of a pipe has gone (``undula train … 2>&1 | head``), what is printed is dropped and the
    command does its work.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _stream(1, sys.stdout)
    sys.stderr = _stream(2, sys.stderr)


def silence_stdout() -> None:
    """Drop what could not be printed, so that the interpreter does not try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Patient(io.FileIO):
    """A file that takes what nobody reads any more."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            return memoryview(content).nbytes


def _stream(descriptor: int, before: Any) -> io.TextIOWrapper:
    raw = _Patient(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=None if before is None else before.encoding,
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )
