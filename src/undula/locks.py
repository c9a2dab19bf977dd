"""One writer per folder: a lock that names its process and never outlives it.

The lock is ``flock`` on a file in the folder that holds the writer's process number as text. The
kernel frees it when its process ends, however it ends, so that a lock can never be stale; a lock
by text alone would have to guess. ``fcntl.lockf`` would free it too when any other part of the
process reads the file. Where a file system has no ``flock``, the text decides: a process that is
gone, or of another start of the machine, has lost its claim.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import ParamSpec, TypeVar

from undula.atomic import OWN_PREFIX, TEMPORARY_PREFIX
from undula.errors import MachineError, UsageError

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

LOCK = f"{OWN_PREFIX}lock"
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"(\d+)-.*")
_AGAIN_SECONDS = 0.05
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True, kw_only=True)
class _Owner:
    """A process: its number, the machine and which start of it, and when the process began."""

    pid: int
    host: str
    boot: str
    began: str


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """A folder that this process holds, in which thread, by which open file."""

    thread: int
    descriptor: int


_claims: dict[Path, _Claim] = {}


@contextmanager
def claimed(folder: Path, *, within: bool = True, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder while it is written, or refuse; the same thread may claim it again within.

    What earlier writers that were killed left unfinished is removed. At the end the lock file is
    removed, and so are folders that were made for it and stayed empty. Claim the folder of one
    run, not that of many: runs beside each other are independent.

    Args:
        folder: Made if it is missing.
        within: Whether folders within are tidied, too: not where only a file is written, into a
            folder that may be anybody's.
        patience: How many seconds to wait for another process, where it holds the folder for
            moments only.

    Raises:
        MachineError: Another process writes there, which the message names; or the place is full,
            read-only or not allowed.
        UsageError: It is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} exists and is a file, not a folder; choose another")
    place = Path(os.path.realpath(folder))
    held = _claims.get(place)
    if held is not None and held.thread == threading.get_ident():
        yield
        return
    made = [one for one in (place, *place.parents) if not one.exists()]
    try:
        descriptor = _taken(folder, place / LOCK, time.monotonic() + patience)
    except OSError as error:
        raise MachineError(f"cannot write {folder}: {error.strerror or error}") from error
    _claims[place] = _Claim(thread=threading.get_ident(), descriptor=descriptor)
    try:
        _clear_leftovers(place, within)
        yield
    finally:
        del _claims[place]
        # The lock itself falls with the descriptor: a name that cannot be removed does no harm.
        with suppress(OSError):
            (place / LOCK).unlink()
        os.close(descriptor)
        with suppress(OSError):
            for one in made:
                one.rmdir()


def claims(
    argument: str,
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Make a function hold the folder that one of its arguments names (`claimed`).

    Args:
        argument: Its name.
    """

    def claiming(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        known = signature(function)

        @wraps(function)
        def claimant(*given: Parameters.args, **named: Parameters.kwargs) -> Result:
            with claimed(known.bind(*given, **named).arguments[argument]):
                return function(*given, **named)

        return claimant

    return claiming


def _taken(folder: Path, path: Path, latest: float) -> int:
    """Open and lock the file of that name, by some time, and write into it who holds it.

    Raises:
        OSError: The folder cannot be written.
        MachineError: Another process holds it.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # its last holder has just removed the folder, which was empty
            continue
        try:
            if not _locked(descriptor):
                if time.monotonic() >= latest:
                    raise MachineError(_refusal(folder, descriptor))
                time.sleep(_AGAIN_SECONDS)
            elif _still_named(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(asdict(_myself())).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    """Take the lock of an open file; without ``flock`` only see that no live process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        owner = _owner(descriptor)
        return owner is None or not _lives(owner)
    return True


def _still_named(descriptor: int, path: Path) -> bool:
    """Tell whether the open file is the one of that name, not one removed by its last holder."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _refusal(folder: Path, descriptor: int) -> str:
    owner = _owner(descriptor)
    who = "another process" if owner is None else f"process {owner.pid}"
    if owner is not None and owner.host != socket.gethostname():
        who += f" on {owner.host}"
    return (
        f"{folder} is being written by {who}; wait until it has ended, stop it, or choose another "
        "folder"
    )


def _owner(descriptor: int) -> _Owner | None:
    """Read who holds a lock; None where nobody has said so yet, or not in these words."""
    try:
        return _Owner(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _myself() -> _Owner:
    pid = os.getpid()
    return _Owner(pid=pid, host=socket.gethostname(), boot=_boot(), began=_began(pid))


def _lives(owner: _Owner) -> bool:
    """Tell whether a process may still be at work; one of another machine may."""
    if owner.host != socket.gethostname():
        return True
    return owner.boot == _boot() and is_alive(owner.pid) and owner.began == _began(owner.pid)


def is_alive(pid: int) -> bool:
    """Tell whether there is a process of that number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _boot() -> str:
    """Return what tells this start of the machine from others; nothing where it is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _began(pid: int) -> str:
    """Return when a process began, in ticks: numbers are used again, together with this never."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return fields.rpartition(")")[2].split()[19]


def _clear_leftovers(place: Path, within: bool) -> None:
    """Remove temporary files of processes that ended within a write, and those in folders within.

    Folders within that have a lock of their own are left to their writers.

    Raises:
        MachineError: One may not be removed.
    """
    try:
        for name, folders, files in os.walk(place):
            here = Path(name)
            folders[:] = [one for one in folders if within and not (here / one / LOCK).exists()]
            for file in files:
                found = _TEMPORARY.fullmatch(file)
                pid = int(found[1]) if found else 0
                if found and (pid == os.getpid() or not is_alive(pid)):
                    (here / file).unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot tidy {place}: {error.strerror or error}") from error


def _forget() -> None:
    """Leave all locks to the parent: a forked child must not keep them when that ends."""
    for claim in _claims.values():
        os.close(claim.descriptor)
    _claims.clear()


os.register_at_fork(after_in_child=_forget)
