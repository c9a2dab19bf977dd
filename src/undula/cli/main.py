"""``undula COMMAND``: find the verb, run it, turn errors into one sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import shlex
import signal
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import undula
from undula.cli.stopping import Stopped, stoppable
from undula.cli.streams import settle_streams, silence_stdout
from undula.errors import MachineError, UndulaError, UsageError, printable
from undula.estimates import ran_out

VERBS = {
    "demo": "bundled protein and weights -> undula-demo/index.html, no network",
    "inspect": "what is in a file, what would be used, dropped or assumed",
    "simulate": "argon, tip3p, tip4p, ala2 or a protein by OpenMM -> recordings of moving atoms",
    "prepare": "a structure and its trajectories -> data set folder (resumes by itself)",
    "train": "data set -> run folder with weights (resumes by itself)",
    "sweep": "random or TPE search over a space of configurations, by several processes",
    "forecast": "structure -> moving surface, or observed window -> moving atoms, at any time",
    "evaluate": "forecast against truth, beside the trivial forecasts: table, JSON, plots",
    "show": "write the page of a forecast",
    "data": "list, fetch (atlas), split by sequence identity, verify",
    "models": "the bundled models: list, card, verify",
    "doctor": "versions, devices, extras, weights, and the rotation test",
}

USAGE = "\n".join(
    [
        "usage: undula COMMAND [options]",
        "",
        "Continuous-time forecasting of molecular motion.",
        "",
        *(f"  {verb:<10} {what}" for verb, what in VERBS.items()),
        "",
        "undula COMMAND --help tells more; undula --version prints the version.",
        "exit codes: 0 done, 1 our bug, 2 usage, 3 bad input, 4 machine or network, "
        "6 some inputs skipped, 130/143 interrupted",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: Words after ``undula``; by default those of the process.
    """
    if argv is None:
        settle_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with stoppable():
            code = _run(words)
        sys.stdout.flush()
        return code
    except UndulaError as error:
        print(f"undula: {printable(str(error))}", file=sys.stderr)
        if error.exit_code in (130, 143):
            print(_again(words), file=sys.stderr)
        return error.exit_code
    except Stopped as stop:
        print(
            f"undula: stopped by {signal.Signals(stop.signal_number).name}; finished files are "
            "whole and stay",
            file=sys.stderr,
        )
        print(_again(words), file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("undula: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if argv is None:
            silence_stdout()
        place = f"{error.filename}: " if error.filename else ""
        print(f"undula: {place}{error.strerror or error}", file=sys.stderr)
        return MachineError.exit_code
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        print(f"undula: there is too little memory ({_first_line(error)})", file=sys.stderr)
        return MachineError.exit_code


def _run(words: Sequence[str]) -> int:
    """Run the verb, or tell what there is."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        print(undula.__version__)
        return 0
    if words[0] not in VERBS:
        from difflib import get_close_matches

        near = get_close_matches(words[0], VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; undula --help lists the commands"
        raise UsageError(f"there is no command {words[0]}{hint}")
    _cache_for_kernels()
    # Threads that wait by spinning make everything many times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module = importlib.import_module(f"undula.cli.{words[0]}")
    return int(module.run(words[1:]) or 0)


def _again(words: Sequence[str]) -> str:
    """Return how a command that was stopped goes on."""
    return f"undula: the same command goes on: {shlex.join(['undula', *words])}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cache_for_kernels() -> None:
    """Let numba keep compiled kernels where it may write, before anything imports it.

    What lies there is run: a folder that others may write is not taken.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME")
    choices = (
        [Path(root) / (".cache" if "XDG_CACHE_HOME" not in os.environ else "") / "undula"]
        if root
        else []
    )
    choices.append(Path(tempfile.gettempdir()) / f"undula-{os.getuid()}")
    for choice in choices:
        folder = choice / "kernels"
        try:
            choice.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            if _is_ours(choice) and _is_ours(folder) and os.access(folder, os.W_OK):
                os.environ["NUMBA_CACHE_DIR"] = str(folder)
                return
        except OSError:
            continue


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder belongs to this user, and nobody else may write there."""
    found = folder.lstat()
    others = stat.S_IWGRP | stat.S_IWOTH
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & others
    )


if __name__ == "__main__":
    sys.exit(main())
