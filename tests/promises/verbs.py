"""Run commands one after the other in a process that notes, and forbids, every use of a network.

``python -m tests.promises.verbs ASKED TOLD`` reads a JSON list of commands (lists of words) and
writes what became of each. Processes that it starts are watched too (`watching`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).parents[2]
THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
LOG, ALLOWED = "UNDULA_TEST_NETWORK_LOG", "UNDULA_TEST_NETWORK_ALLOWED"
_GUARD = f"""
import os, sys

def guard(event, arguments, names=("socket.connect", "socket.getaddrinfo", "socket.gethostbyname",
        "socket.gethostbyaddr", "socket.sendto", "socket.bind", "urllib.Request")):
    local = event == "socket.connect" and isinstance(arguments[1], (str, bytes))
    if event in names and not local:
        place = os.open(os.environ["{LOG}"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(place, (event + " " + repr(arguments[1:] if event[-7:] == "connect" else arguments)
            + "\\n").encode())
        os.close(place)
        if not os.environ.get("{ALLOWED}"):
            raise RuntimeError("a network was asked for: " + event)

sys.addaudithook(guard)
"""
"""Sockets within the machine (their address is a path) are no network."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of the commands.

    Attributes:
        codes: Exit code of each.
        said: What each printed.
        network: Every use of a network that was tried.
    """

    codes: list[int]
    said: list[str]
    network: list[str]


def watched(commands: Sequence[Sequence[str]], place: Path, **environment: str) -> Ended:
    """Run commands in a process that is watched, as are those that it starts.

    Args:
        commands: The words after ``undula``.
        place: A folder to work in.
        environment: More variables; `ALLOWED` lets connections be made, and notes them.
    """
    guard = place / "guard"
    guard.mkdir(parents=True)
    (guard / "sitecustomize.py").write_text(_GUARD)
    (place / "asked.json").write_text(json.dumps([list(map(str, words)) for words in commands]))
    log = place / "network.txt"
    log.touch()
    path = os.pathsep.join([str(guard), str(ROOT), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.promises.verbs", "asked.json", "told.json"],
        cwd=place,
        env={**os.environ, **THREADS, "PYTHONPATH": path, LOG: str(log), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((place / "told.json").read_text())
    return Ended(
        codes=[code for code, _ in told],
        said=[said for _, said in told],
        network=log.read_text().splitlines(),
    )


def main(asked: Path, told: Path) -> None:
    """Run the commands of one file and write what became of them into another."""
    from undula.cli import demo
    from undula.cli.main import main as undula

    demo.FRAMES, demo.SAMPLES = 1, 2
    found = []
    for words in json.loads(asked.read_text()):
        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            try:
                code = undula(words)
            except RuntimeError as error:  # Of the watch; `download` takes no other for a failure.
                code = print(error) or 1
        found.append((code, said.getvalue()))
    told.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
