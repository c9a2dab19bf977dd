"""Many short-lived `undula` processes: forked from one that has imported everything already.

A real process spends three seconds on imports; a forked one none. It runs `undula.cli.main.main`
as the console script does, with its own standard streams, and may be killed or send itself to
death at a chosen operation (`tests.faults`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
_PRELOADED = (
    "undula.cli.evaluate",
    "undula.cli.forecast",
    "undula.cli.prepare",
    "undula.cli.train",
    "undula.config",
    "undula.data.recorded",
    "undula.motion.forecast",
    "undula.motion.observed",
    "undula.motion.training",
    "undula.surface.training",
    "undula.viz.atoms_as_surface",
    "undula.viz.atoms_export",
    "undula.viz.export",
    "lightning.fabric",
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What is left of a process.

    Attributes:
        code: The exit code; negative: the signal it died of.
        out: Its standard output.
        err: Its standard error.
        fault: What its `tests.faults.Fault` saw: ``told``, ``happened``, ``versions``; nothing
            of a process that was killed or had none.
    """

    code: int
    out: str
    err: str
    fault: dict[str, Any]


class Child:
    """A running process."""

    def __init__(self, server: Children, pid: int, files: list[Path]) -> None:
        self.server, self.pid, self.files = server, pid, files

    def wait(self) -> Ended:
        """Wait until it has ended."""
        code = self.server.ask({"wait": self.pid})["code"]
        out, err, fault = (file.read_text(errors="replace") for file in self.files)
        return Ended(code=code, out=out, err=err, fault=json.loads(fault or "{}"))

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait_until(self, is_so: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is so, at most for some time."""
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, self.files[1].read_text()
            time.sleep(0.005)


class Children:
    """The process that forks, and asks of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from tests.children import serve; serve()"],
            cwd=ROOT,
            env={**os.environ, **THREADS},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one line and return the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, words: Sequence[str], **how: Any) -> Child:
        """Start `undula` with some words; ``how`` is what `_work` takes."""
        self.count += 1
        files = [self.folder / f"{self.count}.{name}" for name in ("out", "err", "fault")]
        for file in files:
            file.write_text("")
        request = {"words": list(words), "files": [str(file) for file in files], **how}
        return Child(self, self.ask(request)["pid"], files)

    def run(self, words: Sequence[str], **how: Any) -> Ended:
        """Start `undula` and wait until it has ended."""
        return self.start(words, **how).wait()

    def close(self) -> None:
        """End the process that forks."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Import everything, then fork on request."""
    import importlib

    from undula.cli.main import _cache_for_kernels

    _cache_for_kernels()
    for name in _PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])}
        else:
            pid = os.fork()
            if pid == 0:
                _work(**request)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def _work(
    words: list[str],
    files: list[str],
    folder: str = "",
    kill_at: int = 0,
    kill_by: int = signal.SIGKILL,
    memory_at: int = 0,
    lasting: bool = False,
    failed: list[str] | None = None,
    hold: str = "",
    obedient: bool = False,
    environment: dict[str, str] | None = None,
    closed: Sequence[int] = (),
    full: bool = False,
) -> None:
    """Be `undula`, and end.

    Args:
        words: Behind ``undula``.
        files: For standard output and error, and for what a fault saw.
        folder: Under which operations count.
        kill_at: The number of the operation on files at which the process gets a signal.
        kill_by: Which signal.
        memory_at: The number of the allocation that fails.
        lasting: Whether those after it fail too.
        failed: Places that have failed already: the next other one fails, by the operation that
            is its turn.
        hold: A folder to claim until a signal comes, in place of a command.
        obedient: Whether permissions count, though it is root's.
        environment: Variables to set; empty ones are removed.
        closed: Standard streams, by number, that are closed from the start.
        full: Whether standard output is a full disk.
    """
    from tests.faults import Fault, numbered, obey_permissions, unseen

    from undula.cli.main import main

    code = 70
    try:
        for number, name in enumerate([os.devnull, *files[:2]]):
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND
            os.dup2(os.open(name, mode), number)
        told = os.open(files[2], os.O_WRONLY)
        if full:
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        for number in closed:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)
        for name, value in (environment or {}).items():
            os.environ[name] = value
            if not value:
                del os.environ[name]
        if obedient:
            obey_permissions()
        if hold:
            _hold(Path(hold))
        sys.argv = ["undula", *words]
        if folder:
            chosen = numbered(kill_at or memory_at, memory=memory_at > 0, lasting=lasting)
            chosen = chosen if failed is None else unseen(failed)
            with Fault(
                Path(folder), chosen, kill=kill_by if kill_at else None, lasting=lasting
            ) as fault:
                code = main()
            versions = {name: sorted(found) for name, found in fault.versions.items()}
            seen = {"told": fault.told, "happened": fault.happened, "versions": versions}
            os.write(told, json.dumps(seen).encode())
        else:
            code = main()
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001  (a fork must never return)
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _hold(folder: Path) -> None:
    from undula.locks import claimed

    with claimed(folder):
        print("held", file=sys.stderr, flush=True)
        time.sleep(600)
