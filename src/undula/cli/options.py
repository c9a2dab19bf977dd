"""Parsing: jsonargparse with our manners (exit code 2, one sentence, the nearest known name)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from undula.errors import UsageError

STRUCTURE_OPTIONS: dict[str, dict[str, Any]] = {
    "--chain": {"help": "chains to keep, comma-separated (all protein chains by default)"},
    "--altloc": {"default": "highest", "help": "highest, first, or a letter"},
    "--hydrogens": {"choices": ["drop", "keep"], "default": "drop", "help": "default: drop"},
    "--heterogens": {
        "choices": ["drop", "keep"],
        "default": "drop",
        "help": "ligands, ions and waters (default: drop)",
    },
    "--length-unit": {
        "choices": ["auto", "angstrom", "nm"],
        "default": "auto",
        "help": "of the structure file (default: its format's)",
    },
}
"""Flags of every command that reads a structure."""


def parser(verb: str, description: str) -> ArgumentParser:
    """Return an empty parser for a verb."""
    return ArgumentParser(
        prog=f"undula {verb}", description=description, exit_on_error=False, allow_abbrev=False
    )


def parse(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Parse, or raise a `UsageError` of one sentence that names the nearest known option.

    Raises:
        UsageError: An unknown option or key, a missing or a wrong value.
    """
    from jsonargparse import ArgumentError

    try:
        return parser.parse_args(list(words))
    except ArgumentError as error:
        raise UsageError(_sentence(parser, str(error))) from error


def parse_values(parser: ArgumentParser, values: dict[str, Any], place: str) -> Namespace:
    """Check nested keys and values as `parse` checks words.

    Args:
        parser: Knows the keys.
        values: As YAML has them.
        place: Where they stand, for the message.

    Raises:
        UsageError: An unknown key, a missing or a wrong value.
    """
    from jsonargparse import ArgumentError

    try:
        return parser.parse_object(values)
    except (ArgumentError, UsageError) as error:
        said = _sentence(parser, str(error)).removeprefix(f"{parser.prog}: ")
        raise UsageError(f"{place}: {said}") from error


def flush_denormals() -> None:
    """Let numbers below 1e-38 be zero: a trained softplus is eight times faster so."""
    import torch

    torch.set_flush_denormal(True)


def _sentence(parser: ArgumentParser, message: str) -> str:
    text = " ".join(message.split()).replace("error: ", "")
    known = [action.dest for action in parser._actions]
    for action in parser._actions:
        known += _nested(action.dest, getattr(action, "_typehint", None))
    known += [part for dest in known for part in dest.split(".")]
    found = re.search(
        r"[Uu]nrecognized arguments?:? -*([\w.\-]+)|[Kk]ey [\"']?([\w.\-]+)[\"']? is not expected"
        r"|Option '([\w.\-]+)' is not accepted"
        r"|does not accept nested key [\"']([\w.\-]+)[\"']|No action for key [\"']([\w.\-]+)[\"']",
        text,
    )
    if not found:
        return f"{parser.prog}: {text}"
    name = next(group for group in found.groups() if group)
    near = get_close_matches(name.replace("-", "_"), set(known), n=1) or get_close_matches(
        name.split(".")[-1].replace("-", "_"), set(known), n=1
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{parser.prog}: there is no option {name}{hint}"


def _nested(name: str, kind: Any) -> Iterator[str]:
    """List the options within an option that is a dataclass or none."""
    if is_dataclass(kind):
        for field, hint in get_type_hints(kind).items():
            yield f"{name}.{field}"
            yield from _nested(f"{name}.{field}", hint)
    for one in get_args(kind):
        yield from _nested(name, one)
