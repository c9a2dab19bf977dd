"""One case of fuzzing: a whole input, damaged by chance, read under the oracle.

The oracle: the reader ends by itself within 30 s and 2 GiB; it raises nothing but an `InputError`
that names the file, or a `UsageError`, in one line; every number that it returns is finite; its
input is as it was. Cases run in a process without the type checks of the tests, as a user's do.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
from tests.fuzz.mutations import chance_of
from tests.fuzz.readers import READERS, TurnedError, numbers_in

from undula.errors import InputError, UsageError
from undula.io import trajectory_child

SECONDS, BYTES = 30, 2 * 2**30


class TooLong(BaseException):
    """Raised by the clock; no reader catches it."""


def outcome(name: str, case: int, whole: Path, place: Path) -> tuple[str, str]:
    """Damage an input, read it, and judge.

    Args:
        name: Of the reader.
        case: Its number.
        whole: A folder with the whole input.
        place: A folder to work in, which is emptied.

    Returns:
        ``read``, ``refused`` or ``fault``, and what was said or what is wrong; or ``turned``: a
        trajectory was read in which atoms turned about a bond by 1 Å or more, which no check of
        bonds can see.
    """
    reader, chance = READERS[name], chance_of(name, case)
    shutil.rmtree(place, ignore_errors=True)
    folder, out = place / "in", place / "out"
    shutil.copytree(whole, folder)
    out.mkdir()
    _damage(name, folder, chance)
    before = _state(folder)
    try:
        with _bounded():
            found = reader.read(folder, out)
        numbers = list(numbers_in(found))
        if not all(np.isfinite(one).all() for one in numbers):
            return "fault", "a number that is not finite was returned"
        if reader.exact and not _same(numbers, list(numbers_in(reader.read(whole, out)))):
            return "fault", "other numbers were returned than were written"
        told = "read", ""
    except (InputError, UsageError) as error:
        said = str(error)
        if "\n" in said or len(said) > 1200:
            return "fault", f"not one sentence: {said[:300]!r}"
        if isinstance(error, InputError) and str(place) not in said:
            return "fault", f"names no file: {said[:300]}"
        told = "refused", said
    except TurnedError as error:
        told = "turned", str(error)
    except (Exception, TooLong):  # noqa: BLE001 — whatever else it is, it is a fault
        return "fault", "".join(traceback.format_exc()[-1500:])
    if _state(folder) != before:
        return "fault", "the input has changed"
    return told


def _damage(name: str, folder: Path, chance: np.random.Generator) -> None:
    damages = READERS[name].damages
    files = sorted(path for path in folder.rglob("*") if path.suffix in damages)
    # The topology beside a trajectory stays whole.
    files = [path for path in files if path.name != "top.pdb"]
    # As many turns for the descriptions as for the arrays, of which there are more.
    kinds = sorted({path.suffix for path in files})
    kind = kinds[int(chance.integers(len(kinds)))]
    some = [path for path in files if path.suffix == kind]
    victim = some[int(chance.integers(len(some)))]
    way = chance.random()
    if len(files) > 2 and way < 0.04:
        victim.unlink()
    elif len(some) > 2 and way < 0.08:
        victim.write_bytes(some[int(chance.integers(len(some)))].read_bytes())
    else:
        victim.write_bytes(damages[victim.suffix](victim.read_bytes(), chance))


def _same(found: list[np.ndarray], true: list[np.ndarray]) -> bool:
    return len(found) == len(true) and all(map(np.array_equal, found, true))


def _state(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.rglob("*")
    }


def forked(command: Sequence[str], *, timeout: float, **others: Any) -> CompletedProcess[str]:
    """Decode XTC in a fork of this process, which takes no time to start, as in one of its own."""
    folder = Path(command[-1])
    child = os.fork()
    if child == 0:
        code = 70
        try:
            descriptor = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
            os.dup2(descriptor, 1)
            sys.stdout = os.fdopen(1, "w")
            sys.argv = ["decoder", str(folder)]
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(timeout))
            code = trajectory_child.main()
            sys.stdout.flush()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return CompletedProcess(command, code, (folder / "said").read_text(), "")


@contextmanager
def _bounded() -> Iterator[None]:
    """Give what is done within so many seconds, and so much memory beyond what is in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)

    def stop(number: int, frame: Any) -> None:
        raise TooLong(f"more than {SECONDS} s")

    handler = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, old[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, old)
        signal.signal(signal.SIGALRM, handler)
