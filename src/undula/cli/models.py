"""``undula models``: list the bundled models, print a card, verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from undula.cli.options import instead, parse, parser, run_action
from undula.errors import UsageError


def run(words: Sequence[str]) -> int:
    """Run one of the actions on bundled models."""
    actions = {
        "list": ("the bundled models: what each forecasts, its size, where it lies", _list),
        "card": (
            "print the card of a model: data, scores beside the trivial forecasts, limits",
            _card,
        ),
        "verify": ("read models completely and compare the SHA-256 of every tensor", _verify),
    }
    return run_action("models", actions, words)


def bundled() -> dict[str, tuple[str, Path]]:
    """Return what each bundled model forecasts and its folder, by its name."""
    from undula.data.bundled import models, motion_models

    surfaces = {name: ("moving surface", path) for name, path in models().items()}
    atoms = {name: ("moving atoms", path) for name, path in motion_models().items()}
    return dict(sorted((surfaces | atoms).items()))


def _list(words: Sequence[str]) -> int:
    parse(parser("models list", "List the bundled models."), words)
    for name, (what, path) in bundled().items():
        size = sum(one.stat().st_size for one in path.iterdir())
        print(f"{name:<8} {what}, {size / 2**20:.1f} MiB, {path}")
        print(f"         {_about(path)}")
    print("undula forecast … --model NAME takes one; undula models card NAME says how good it is.")
    return 0


def _card(words: Sequence[str]) -> int:
    p = parser("models card", "Print the card of a bundled model.")
    p.add_argument("name", help="of the model, as undula models list names it")
    found = bundled()
    print((_folder(found, parse(p, words).name) / "card.md").read_text(encoding="utf-8"), end="")
    return 0


def _verify(words: Sequence[str]) -> int:
    p = parser("models verify", "Compare the SHA-256 of every tensor of bundled models.")
    p.add_argument("names", nargs="*", default=[], help="of models (default: all)")
    found = bundled()
    names = parse(p, words).names or list(found)

    from undula.cli.stored import inspect_stored

    for folder in [_folder(found, name) for name in names]:
        for stored in inspect_stored(folder):
            print(stored)
    return 0


def _folder(found: Mapping[str, tuple[str, Path]], name: str) -> Path:
    if name not in found:
        raise UsageError(f"there is no bundled model {name}{instead(name, found)}")
    return found[name][1]


def _about(folder: Path) -> str:
    """Return the first sentence of a card's text."""
    lines = (folder / "card.md").read_text(encoding="utf-8").splitlines()
    text = " ".join(line.strip() for line in lines if not line.startswith("#")).strip()
    return text.split(". ")[0].removesuffix(".") + "."
