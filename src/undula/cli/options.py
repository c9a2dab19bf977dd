"""Parsing: jsonargparse with our manners (exit code 2, one sentence, the nearest known name)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import restricted_number_type

from undula.errors import UsageError
from undula.estimates import Estimate

# A value of a configuration may name a class (class_path), and jsonargparse would import its
# module and make it. No module but ours is imported, and what may be any value stays a value.
set_parsing_settings(
    import_path_denylist=["*"],
    import_path_allowlist=["undula"],
    instantiate_subclass_spec_in_any=False,
)

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
STRICT: dict[str, Any] = {
    "action": "store_true",
    "help": "take nothing that is dropped, assumed or guessed: exit 3, and write nothing",
}
"""The flag that turns notices into errors."""
_KEY = re.compile(r"""Parser key ["']([\w.]+)["']:""")
_CLASS_NAMED = re.compile(
    r"(?:Importing|Subclasses are disabled for \w+, thus) '([\w.]+)' is not.*", re.DOTALL
)
Made = TypeVar("Made")


seed = restricted_number_type(
    "seed",
    int,
    [(">=", 0), ("<", 2**63)],
    docstring="A whole number that every source of chance takes.",
)
MEMORY_LIMIT: dict[str, Any] = {
    "metavar": "SIZE",
    "help": "of the whole process, such as 4GiB: work is cut to fit, or refused with what fits "
    "(default: what the machine has left)",
}
"""The flag ``--memory-limit``."""


def instead(name: str, known: Collection[str]) -> str:
    """Return how a sentence about an unknown name ends: with the nearest, or all there are."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known) or 'none'}"


def run_action(
    verb: str,
    actions: Mapping[str, tuple[str, Callable[[Sequence[str]], int]]],
    words: Sequence[str],
) -> int:
    """Run one of the actions of a verb, or list them.

    Args:
        verb: Such as ``data``.
        actions: By name, what each does and its function.
        words: The name of the action and its own words.

    Raises:
        UsageError: There is no such action.
    """
    if not words or words[0] in ("-h", "--help"):
        listed = [f"  {name:<8} {what}" for name, (what, _) in actions.items()]
        tail = f"undula {verb} ACTION --help tells more."
        print("\n".join([f"usage: undula {verb} ACTION [options]", "", *listed, "", tail]))
        return 0
    if words[0] not in actions:
        raise UsageError(
            f"undula {verb}: there is no action {words[0]}{instead(words[0], actions)}"
        )
    return actions[words[0]][1](words[1:])


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
    except (ArgumentError, ImportError) as error:  # Of a class that a value may not name.
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
    except (ArgumentError, ImportError, UsageError) as error:
        said = _sentence(parser, str(error)).removeprefix(f"{parser.prog}: ")
        raise UsageError(f"{place}: {said}") from error


def made(kind: type[Made], parser: ArgumentParser, options: Namespace, place: str = "") -> Made:
    """Make the dataclass that parsed options describe.

    Args:
        kind: The dataclass whose keys the parser was given.
        parser: Knows the keys.
        options: What `parse` or `parse_values` returned.
        place: Where the values stand, for the message.

    Raises:
        UsageError: A value that cannot be meant.
    """
    try:
        return kind(**vars(parser.instantiate(options)))
    except (ValueError, TypeError, OverflowError, UsageError) as error:
        raise UsageError(f"{place or parser.prog}: {_reason(str(error))}") from error


def tell_estimate(estimate: Estimate | None) -> None:
    """Say what a command is about to take, where that is known."""
    if estimate is not None:
        print(f"estimate: {estimate}", file=sys.stderr)


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
        r"|does not accept option [\"']([\w.\-]+)[\"']"
        r"|does not accept nested key [\"']([\w.\-]+)[\"']|No action for key [\"']([\w.\-]+)[\"']",
        text,
    )
    if not found:
        return f"{parser.prog}: {_reason(message)}"
    name = next(group for group in found.groups() if group)
    near = get_close_matches(name.replace("-", "_"), set(known), n=1) or get_close_matches(
        name.split(".")[-1].replace("-", "_"), set(known), n=1
    )
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{parser.prog}: there is no option {name}{hint}"


def _reason(message: str) -> str:
    """Return what is wrong in a message that lists every type a value is not of."""
    reasons = [""]
    for line in (one.strip() for one in message.replace("error: ", "").splitlines()):
        if line.startswith("- "):
            reasons.append(line[2:])
        elif not line.startswith(("Subtypes:", "Errors:", "Given value")):
            reasons[-1] += f" {line}"
    place = ""
    for reason in reasons:
        for key in _KEY.findall(reason):
            place = key if not place or key.startswith(f"{place}.") else f"{place}.{key}"
        text = re.sub(r"Problem with given class_path '[\w.]+':", "", _KEY.sub("", reason)).strip()
        if text and "Does not validate against" not in text:
            break
    else:
        text = message
    text = _CLASS_NAMED.sub(r"a configuration cannot name a class (\1)", text)
    text = re.sub(r"[Ee]xpected an? <class '(\w+)'>", r"expected \1", text)
    return " ".join(f"{place}{': ' * bool(place)}{text}".split())


def _nested(name: str, kind: Any) -> Iterator[str]:
    """List the options within an option that is a dataclass or none."""
    if is_dataclass(kind):
        for field, hint in get_type_hints(kind).items():
            yield f"{name}.{field}"
            yield from _nested(f"{name}.{field}", hint)
    for one in get_args(kind):
        yield from _nested(name, one)
