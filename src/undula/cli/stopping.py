"""SIGINT and SIGTERM for every command: the first stops it soon, the second at once."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from undula.learn.interruption import Interruption

LIMIT_S = 5.0
"""Within which a command that was asked to stop has ended."""
_ECHO_S = 0.5
"""Launchers repeat what a terminal told the whole group: a second signal so soon is no haste."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal came; raised in the main thread wherever it is, so that nothing is half-written.

    Attributes:
        signal_number: Which one.
    """

    def __init__(self, signal_number: int) -> None:
        """Keep the number, which gives the exit code 130 or 143."""
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextmanager
def stoppable(limit_s: float = LIMIT_S) -> Iterator[None]:
    """Raise `Stopped` at the first signal within the block, and end the process at the second.

    A thread watches, because Python hears signals only between two of its own instructions: where
    a compiled routine takes longer than ``limit_s``, the process ends from there. Files are
    whole at any moment (`undula.atomic`). A training that listens itself (`Interruption`) takes
    the time it needs to store a checkpoint. Outside the main thread nothing is heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    usual = {number: signal.signal(number, _heard) for number in _SIGNALS}
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reading, limit_s), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in usual.items():
            signal.signal(number, handler)
        os.close(writing)
        watch.join()
        os.close(reading)


def _heard(number: int, _frame: FrameType | None) -> None:
    """Stop what the main thread does, unless a training has heard a signal already."""
    if not Interruption.active:
        for one in _SIGNALS:
            signal.signal(one, _ignored)
        raise Stopped(number)


def _ignored(_number: int, _frame: FrameType | None) -> None:
    """Leave further signals to the thread that watches."""


def _watch(reading: int, limit_s: float) -> None:
    """Wait for a signal, then for a second one or the limit; end when the pipe does."""
    number = _next(reading, None)
    if number is None:
        return
    began = time.monotonic()
    limit = None if Interruption.active else limit_s
    while True:
        left = None if limit is None else max(0.0, began + limit - time.monotonic())
        again = _next(reading, left)
        if again is None:
            return
        if not again or time.monotonic() - began > _ECHO_S:
            told = "undula: stopped at once; finished files are whole\n"
            os.write(2, told.encode())
            os._exit(128 + (again or number))


def _next(reading: int, timeout_s: float | None) -> int | None:
    """Return the next signal that asks to stop, 0 after the timeout, None at the pipe's end."""
    while select.select([reading], [], [], timeout_s)[0]:
        content = os.read(reading, 1)
        if not content:
            return None
        if content[0] in _SIGNALS:
            return content[0]
    return 0
