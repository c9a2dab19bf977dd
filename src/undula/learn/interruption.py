"""Stopping cleanly when a person or a scheduler asks: SIGINT and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, ClassVar

from undula.errors import UndulaError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(UndulaError):  # noqa: N818  (not an error: the work goes on when asked)
    """The work was stopped by a signal; what was done is stored, and the same command goes on.

    Attributes:
        exit_code: 130 after SIGINT, 143 after SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        """Say what is stored and how to go on; ``signal_number`` gives the exit code."""
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopNow(BaseException):
    """Raised inside `Interruption.at_once` where the work may be dropped halfway."""


class Interruption:
    """Listen for SIGINT and SIGTERM during a ``with`` block instead of dying of them.

    The first signal is remembered in ``signal_number``; a second one finds the usual handlers
    again. Outside the main thread, where Python allows no handlers, nothing is heard.

    Attributes:
        active: How many such blocks there are now in the process.
        signal_number: The first signal that was heard, or none.
    """

    active: ClassVar[int] = 0

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._usual: dict[signal.Signals, Any] = {}
        self._at_once = False

    def __enter__(self) -> Interruption:
        Interruption.active += 1
        if threading.current_thread() is threading.main_thread():
            self._usual = {number: signal.signal(number, self._heard) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
        Interruption.active -= 1

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `StopNow` inside the block when a signal comes, or came already."""
        self._at_once = True
        try:
            if self.signal_number is not None:
                raise StopNow
            yield
        finally:
            self._at_once = False

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        self.signal_number = number
        self._restore()
        if self._at_once:
            raise StopNow

    def _restore(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        self._usual = {}
