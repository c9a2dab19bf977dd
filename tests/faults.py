"""Disks that are full, folders that may not be written, memory that runs out, and kills.

`Fault` is the one place where operations fail: the functions of `os` through which `undula.atomic`
and `undula.locks` write, and the functions of numpy and torch that take memory. Only what happens
under one folder counts, so that neither pytest nor the interpreter is hurt.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from undula.atomic import OWN_PREFIX, TEMPORARY_PREFIX

ERRORS = {
    "open": errno.EACCES,
    "write": errno.ENOSPC,
    "fsync": errno.EIO,
    "replace": errno.EACCES,
    "unlink": errno.EACCES,
    "mkdir": errno.EROFS,
}
"""The functions of `os` that can fail, and how."""
_MEMORY = ((np, "concatenate"), (np, "stack"), (np, "ascontiguousarray"), (torch, "cat"))
_TORCH_WORDS = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 68719476736 bytes."
)


class Fault:
    """Let one operation fail, kill the process at one, or only count them.

    Attributes:
        chosen: Told the number (from 1), the name and the target of each operation, says whether
            it is the one.
        kill: The signal that the process gets there, in place of an error.
        lasting: Whether it may choose more than one; otherwise nothing fails after the first.
        told: All operations, by name and target within the folder.
        happened: The operation that failed.
        versions: Target → SHA-256 of each content it had under its final name.
    """

    def __init__(
        self,
        folder: Path,
        chosen: Callable[[int, str, str], bool] = lambda number, name, target: False,
        *,
        kill: int | None = None,
        lasting: bool = False,
    ) -> None:
        self.folder = os.path.realpath(folder)
        self.chosen, self.kill, self.lasting = chosen, kill, lasting
        self.told: list[tuple[str, str]] = []
        self.happened: tuple[str, str] | None = None
        self.versions: dict[str, set[str]] = {}
        self._usual: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Fault:
        for name in ERRORS:
            self._put(os, name, self._failing(name, getattr(os, name)))
        for module, name in _MEMORY:
            self._put(module, name, self._starving(module, name, getattr(module, name)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._usual:
            module, name, usual = self._usual.pop()
            setattr(module, name, usual)

    def _put(self, module: Any, name: str, function: Any) -> None:
        self._usual.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def _failing(self, name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        def function(target: Any, *rest: Any, **named: Any) -> Any:
            written = name != "open" or (rest and rest[0] & (os.O_WRONLY | os.O_RDWR))
            place = self._within(rest[0] if name == "replace" else target) if written else None
            if place is None:
                return usual(target, *rest, **named)
            if self._is_now(name, place):
                if name == "write":  # as a full disk does, which has room for a part
                    usual(target, bytes(rest[0])[: len(rest[0]) // 2])
                if self.kill is not None:
                    os.kill(os.getpid(), self.kill)
                    return usual(target, *rest, **named)
                raise OSError(ERRORS[name], os.strerror(ERRORS[name]))
            found = usual(target, *rest, **named)
            if name == "replace":
                digest = hashlib.sha256(Path(rest[0]).read_bytes()).hexdigest()
                self.versions.setdefault(place, set()).add(digest)
            return found

        return function

    def _starving(self, module: Any, name: str, usual: Callable[..., Any]) -> Callable[..., Any]:
        def function(*given: Any, **named: Any) -> Any:
            if self._is_now("memory", f"{module.__name__}.{name}"):
                raise MemoryError if module is np else RuntimeError(_TORCH_WORDS)
            return usual(*given, **named)

        return function

    def _is_now(self, name: str, target: str) -> bool:
        self.told.append((name, target))
        if (self.happened is None or self.lasting) and self.chosen(len(self.told), name, target):
            self.happened = (name, target)
            return True
        return False

    def _within(self, target: Any) -> str | None:
        """Return the place within the folder; temporary files all have one."""
        try:
            path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
        except OSError:
            return None
        path = os.path.realpath(os.path.dirname(path)) + os.sep + os.path.basename(path)  # noqa: PTH119, PTH120
        path = path.removesuffix(" (deleted)")
        if path != self.folder and not path.startswith(self.folder + os.sep):
            return None
        return os.path.relpath(path, self.folder)


def nth(operation: str, k: int) -> Callable[[int, str, str], bool]:
    """Choose the k-th operation of a name."""
    seen = 0

    def chosen(number: int, name: str, target: str) -> bool:
        nonlocal seen
        seen += name == operation
        return name == operation and seen == k

    return chosen


def numbered(
    k: int, *, memory: bool = False, lasting: bool = False
) -> Callable[[int, str, str], bool]:
    """Choose the k-th operation on files, or allocation, and those after it; none for 0."""
    seen = 0

    def chosen(number: int, name: str, target: str) -> bool:
        nonlocal seen
        counts = (name == "memory") == memory
        seen += counts
        return counts and 0 < k <= seen and (lasting or seen == k)

    return chosen


def unseen(failed: list[str]) -> Callable[[int, str, str], bool]:
    """Choose the first file (`temporary_of`) that has not failed; three operations take turns."""
    turn = ("write", "replace", "fsync")[len(failed) % 3]

    def chosen(number: int, name: str, target: str) -> bool:
        is_file = name == "replace" or TEMPORARY_PREFIX in target
        return name == turn and is_file and temporary_of(target) not in failed

    return chosen


def temporary_of(target: str) -> str:
    """Return under which name a file is written, without the number of the process."""
    path = Path(target)
    if path.name.startswith(TEMPORARY_PREFIX):
        return str(path.with_name(re.sub(r"tmp-\d+", "tmp", path.name)))
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return str(path.with_name(f"{TEMPORARY_PREFIX[:-1]}-{digest}"))


def obey_permissions() -> None:
    """Take from this process, and those it starts, root's power to write what is read-only.

    Capabilities 1 and 2 of Linux (DAC_OVERRIDE, DAC_READ_SEARCH) leave the effective, the
    permitted and the bounding set. Of any other user there is nothing to take.
    """
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)
        for row in (0, 1):
            sets[row] &= ~(1 << capability)
    libc.capset(header, sets)


def files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a folder, leftovers and locks included."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def torn(folder: Path, versions: dict[str, set[str]]) -> list[str]:
    """List files under a final name that hold what was never written whole there."""
    return [
        name
        for name, digest in files(folder).items()
        if not Path(name).name.startswith(OWN_PREFIX) and digest not in versions.get(name, set())
    ]
