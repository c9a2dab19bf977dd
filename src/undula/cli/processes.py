"""The parts of a study in several processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import Protocol, TypeVar, runtime_checkable

from undula.errors import MachineError


@runtime_checkable
class Part(Protocol):
    """What one process does at a time."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def left_out(self) -> str:
        """What is left out of the study where it fails."""


AnyPart = TypeVar("AnyPart", bound=Part)


def in_processes(
    work: Callable[[list[str], AnyPart], tuple[dict[str, float], str | None]],
    words: Sequence[str],
    parts: Sequence[AnyPart],
    jobs: int,
) -> tuple[dict[str, float], dict[str, str]]:
    """Do the parts of a study in several processes.

    Args:
        work: Does a part in a process of its own: given the words of the command and the part,
            it returns what took how long, s, and why it failed, if it did.
        words: Of the command.
        parts: In the order in which to begin them; the seeds of a row in theirs.
        jobs: How many at once.

    Returns:
        What took how long, s, and what could not be trained with the first reason.

    Raises:
        MachineError: A process was killed.
    """
    done: dict[str, float] = {}
    reasons: dict[AnyPart, str] = {}
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_end_with_the_parent
    )
    try:
        pending = {pool.submit(work, list(words), part): part for part in parts}
        for one in as_completed(pending):
            part, (seconds, why) = pending[one], one.result()
            done |= seconds
            if why is not None:
                reasons[part] = why
            print(f"{part.name}: {why or 'done'}", file=sys.stderr, flush=True)
    except BrokenProcessPool as error:
        raise MachineError(
            f"one of the {jobs} processes of the study was killed, perhaps for want of memory; "
            "fewer --jobs need less"
        ) from error
    except BaseException:
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    failed: dict[str, str] = {}
    for part in parts:
        if part in reasons:
            failed.setdefault(part.left_out, reasons[part])
    return done, failed


def _end_with_the_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
