"""How much memory and time a piece of work takes, and how much there is.

Memory is that of the whole process at its peak: what it holds already (the interpreter, torch, the
files that were read) and what the work adds. A piece of work is estimated before it begins, cut
into parts so that it fits, and refused with the largest size that fits where no cutting helps.
"""

from __future__ import annotations

import os
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from undula.errors import MachineError, UsageError

UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
LATER_BYTES = 60 * 2**20
"""What the process still loads once it works: compiled kernels, drawing."""
SPARE = 1.12
"""Work is planned to take so much more than its like did when measured: a limit has to hold."""

Size = TypeVar("Size")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a piece of work takes.

    Attributes:
        memory_bytes: Of the whole process at its peak.
        seconds: On one core of a machine of 2023; a guess within a factor of a few.
    """

    memory_bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{shown_memory(self.memory_bytes)} of memory and {shown_time(self.seconds)}"


def shown_memory(size: int | float) -> str:
    """Write a number of bytes for people: ``900 MiB``, ``1.2 GiB``."""
    return f"{size / 2**20:.0f} MiB" if size < 1000 * 2**20 else f"{size / 2**30:.3g} GiB"


def shown_time(seconds: float) -> str:
    """Write a time for people: ``30 s``, ``5 min``, ``2 h``."""
    if seconds < 100:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def memory_size(text: str) -> int:
    """Read an amount of memory.

    Args:
        text: A number with KiB, MiB, GiB (powers of 1024) or KB, MB, GB (powers of 1000).

    Returns:
        Bytes.

    Raises:
        UsageError: It is something else, or not positive.
    """
    units = {name.lower(): size for name, size in UNITS.items()}
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)\s*", text.lower())
    if not found or found[2] not in units or float(found[1]) <= 0:
        raise UsageError(f"a memory limit is a number with MiB, GiB, MB or GB, not {text!r}")
    return int(float(found[1]) * units[found[2]])


def peak_bytes(added: int | float) -> int:
    """Return what this process holds at its peak, by estimate, if work adds so many bytes."""
    return int(resident_bytes() + LATER_BYTES + SPARE * added)


def room_bytes(limit: int) -> float:
    """Return how much work may add, by estimate, if a process has to keep within a limit.

    A little less than what would fit here: what a refusal names is tried in another process, which
    may hold some more before it begins.
    """
    return 0.97 * (limit - resident_bytes() - LATER_BYTES) / SPARE


def asked_bytes(limit: int | str | None) -> int | None:
    """Return a limit that is given as bytes or as a text.

    Raises:
        UsageError: It is none.
    """
    if isinstance(limit, str):
        return memory_size(limit)
    if limit is not None and limit <= 0:
        raise UsageError(f"a memory limit should be positive, it is {limit} bytes")
    return limit


def resident_bytes() -> int:
    """Return how much memory this process holds."""
    return _statm(1)


def available_bytes() -> int:
    """Return the most memory that this process may come to hold.

    The least of what the machine has left, what the control group allows (version 1 and 2) and
    what the process may address (``ulimit -v``), beside what it holds already.
    """
    free = [size for size in (_machine_free(), _group_free(), _address_free()) if size is not None]
    return resident_bytes() + max(min(free, default=2**62), 0)


def memory_limit(asked: int | None) -> int:
    """Return the limit that holds: what was asked for, and never more than there is."""
    available = available_bytes()
    return available if asked is None else min(asked, available)


def check_fits(estimate: Estimate, limit: int, work: str, instead: str) -> None:
    """Refuse work that does not fit, before it begins.

    Args:
        estimate: What it takes.
        limit: What there is, bytes.
        work: What it is, for the message.
        instead: What fits, as the rest of the sentence.

    Raises:
        MachineError: It does not fit.
    """
    if estimate.memory_bytes > limit:
        raise MachineError(
            f"{work} takes about {shown_memory(estimate.memory_bytes)} of memory, "
            f"{shown_memory(limit)} are allowed; {instead}"
        )


def first_that_fits(
    sizes: Sequence[Size], needed: Callable[[Size], float], limit: float
) -> Size | None:
    """Return the first of some sizes that needs no more than the limit; each needs less in turn."""
    first = bisect_left(sizes, True, key=lambda size: needed(size) <= limit)
    return sizes[first] if first < len(sizes) else None


def ran_out(error: BaseException) -> bool:
    """Tell whether an error says that there was no memory: numpy's, torch's, or CUDA's."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text.lower()
    )


def with_less(
    work: Callable[[], Result], again: Callable[[], Result], refused: Callable[[], str]
) -> Result:
    """Do a piece of work; where memory runs out do it once more in smaller parts, then give up.

    Args:
        work: What to do.
        again: The same in parts half as large.
        refused: What to say where these do not fit either: a sentence with what does.

    Raises:
        MachineError: There was not enough memory for either.
    """
    for attempt in (work, again):
        try:
            return attempt()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
    raise MachineError(refused())


def _statm(column: int) -> int:
    try:
        with Path("/proc/self/statm").open() as file:
            return int(file.read().split()[column]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _machine_free() -> int | None:
    """Return what the machine has left; all of its memory where it does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024
    except (OSError, IndexError):
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None


def _group_free(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return what the control groups of this process allow beside what they hold."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    free = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        names = ("memory.max", "memory.current", "inactive_file")
        base = root
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = root / "memory"
        # Every group above binds, too; within a container the path may not be there.
        parts = Path(group.lstrip("/")).parts
        for depth in range(len(parts) + 1):
            free.append(_free_in(base.joinpath(*parts[:depth]), *names))
    known = [size for size in free if size is not None]
    return min(known, default=None)


def _free_in(folder: Path, most: str, used: str, reclaimable: str) -> int | None:
    try:
        limit = (folder / most).read_text().strip()
        if limit == "max" or int(limit) > 2**60:
            return None
        held = int((folder / used).read_text())
        pages = re.findall(
            rf"^{reclaimable} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE
        )
        return int(limit) - held + (int(pages[0]) if pages else 0)
    except (OSError, ValueError):
        return None


def _address_free() -> int | None:
    """Return how much more this process may address."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit - _statm(0)
