"""What a training tells a person while it runs: a bar on a terminal, else one line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol, cast, runtime_checkable

from undula.errors import Notice


@runtime_checkable
class Stream(Protocol):
    """Somewhere to write to, such as ``sys.stderr``."""

    def write(self, text: str, /) -> Any:
        """Take some text."""
        ...

    def flush(self) -> Any:
        """Pass it on."""
        ...

    def isatty(self) -> bool:
        """Whether a person looks at it live."""
        ...


@runtime_checkable
class Progress(Protocol):
    """Someone who listens to a training; only the first process speaks."""

    def started(self, step: int, steps: int) -> None:
        """Hear that training goes on from ``step`` towards ``steps``."""
        ...

    def advanced(self, step: int, loss: float) -> None:
        """Hear that ``step`` steps are done and what the last one's loss was."""
        ...

    def evaluated(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Hear the validation measures; None stands for a value that is not finite."""
        ...

    def noticed(self, notice: Notice) -> None:
        """Hear of something that was assumed, skipped or repaired."""
        ...

    def stopped(self) -> None:
        """Hear that training ended, well or not."""
        ...


def progress_on(stream: Stream | None) -> Progress:
    """Choose how to speak on a stream: a bar on a terminal, lines elsewhere, or not at all.

    Args:
        stream: Usually ``sys.stderr``; None (a closed stream) for silence.
    """
    if stream is None:
        return SilentProgress()
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


class SilentProgress:
    """Say nothing."""

    def started(self, step: int, steps: int) -> None:
        """Say nothing."""

    def advanced(self, step: int, loss: float) -> None:
        """Say nothing."""

    def evaluated(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Say nothing."""

    def noticed(self, notice: Notice) -> None:
        """Say nothing."""

    def stopped(self) -> None:
        """Say nothing."""


class LineProgress:
    """Write a line when training starts, then one a minute, and one at the end."""

    def __init__(
        self, stream: Stream, *, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Write on ``stream``, at most one line of progress every ``every_s`` seconds."""
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._first_step = self._step = self._steps = 0
        self._began = self._spoke = clock()
        self._loss: float | None = None
        self._metrics = ""

    def started(self, step: int, steps: int) -> None:
        """Write the first line at once."""
        self._first_step = self._step = step
        self._steps = steps
        self._began = self._clock()
        self._speak()

    def advanced(self, step: int, loss: float) -> None:
        """Write a line if the last one is old enough."""
        self._step, self._loss = step, loss
        if self._clock() - self._spoke >= self._every_s:
            self._speak()

    def evaluated(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Keep the measures for the next line."""
        self._metrics = f"{_words(metrics)} (at step {step})"

    def noticed(self, notice: Notice) -> None:
        """Write the notice at once."""
        print(notice, file=self._stream, flush=True)

    def stopped(self) -> None:
        """Write where training ended."""
        self._speak()

    def _speak(self) -> None:
        self._spoke = self._clock()
        parts = [f"step {self._step}/{self._steps}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4g}")
        if self._metrics:
            parts.append(self._metrics)
        if self._first_step < self._step < self._steps:
            pace = (self._spoke - self._began) / (self._step - self._first_step)
            parts.append(f"{_duration(pace * (self._steps - self._step))} left")
        print(", ".join(parts), file=self._stream, flush=True)


class BarProgress:
    """Draw one live line with the loss, the measures and the time left."""

    def __init__(self, stream: Stream) -> None:
        """Draw on ``stream``, a terminal."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]} {task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=Console(file=cast(IO[str], stream)),
        )

    def started(self, step: int, steps: int) -> None:
        """Show the bar."""
        self._task = self._bar.add_task("", total=steps, completed=step, loss="", metrics="")
        self._bar.start()

    def advanced(self, step: int, loss: float) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step, loss=f"loss {loss:.4g}")

    def evaluated(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the measures from now on."""
        self._bar.update(self._task, completed=step, metrics=_words(metrics))

    def noticed(self, notice: Notice) -> None:
        """Write the notice above the bar."""
        self._bar.console.print(str(notice), markup=False, highlight=False)

    def stopped(self) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()


def _words(metrics: Mapping[str, float | None]) -> str:
    """Write measures in one line."""
    return ", ".join(
        f"{name} {'not finite' if value is None else format(value, '.4g')}"
        for name, value in metrics.items()
    )


def _duration(seconds: float) -> str:
    """Write a time to come as a person would."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def silent(line: str) -> None:
    """Say nothing: for a process whose work is told by the one that started it."""
    del line
