"""``undula COMMAND``: find the verb, run it, turn errors into one sentence and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import undula
from undula.errors import UndulaError

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
    words = list(sys.argv[1:] if argv is None else argv)
    try:
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
            print(f"undula: there is no command {words[0]}{hint}", file=sys.stderr)
            return 2
        _cache_for_kernels()
        # Threads that wait by spinning make everything many times slower on a busy machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        module = importlib.import_module(f"undula.cli.{words[0]}")
        code = module.run(words[1:])
        sys.stdout.flush()
        return int(code or 0)
    except UndulaError as error:
        print(f"undula: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("undula: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _cache_for_kernels() -> None:
    """Let numba keep compiled kernels where it may write, before anything imports it."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME")
    choices = (
        [Path(root) / (".cache" if "XDG_CACHE_HOME" not in os.environ else "")] if root else []
    )
    choices.append(Path(tempfile.gettempdir()))
    for choice in choices:
        folder = choice / "undula" / "kernels"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            os.environ["NUMBA_CACHE_DIR"] = str(folder)
            return


if __name__ == "__main__":
    sys.exit(main())
