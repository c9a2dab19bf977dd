"""Ways to damage a file: any bytes, numbers in text, words of a header, values of JSON.

Chance comes from a generator that is made of a reader's name and a number, so that a case can be
repeated by these two.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import numpy as np

WORDS = (0, 1, -1, 2**30, 2**31 - 1, -(2**31), 255, 65_536)
NUMBERS = (
    "NaN", "inf", "-inf", "1e308", "-1e308", "1e-320", "-0", "-0.000", "", "********", "0",
    "99999999999999999999", "-1", "1e5", "2147483647", "21.ish", "0x10", "1_000", "1,5", "٣",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31 - 1, 2**63, 1e308, float("nan"), float("inf"), "", "../../up",
    "/etc/passwd", "NaN", [], {}, [[]], [None], {"": None}, "x" * 300, 0.5, "\u0000", [1, 2, 3],
)  # fmt: skip
_DIGITS = re.compile(rb"[-+]?\d+\.?\d*")


def chance_of(reader: str, case: int) -> np.random.Generator:
    """Return the chance of one case."""
    return np.random.default_rng([zlib.crc32(reader.encode()), case])


def damaged(content: bytes, chance: np.random.Generator) -> bytes:
    """Damage bytes in one to three ways."""
    for _ in range(int(chance.choice([1, 1, 1, 2, 3]))):
        content = BYTE_WAYS[int(chance.integers(len(BYTE_WAYS)))](content, chance)
    return content


def damaged_text(content: bytes, chance: np.random.Generator) -> bytes:
    """Damage text: as bytes, or its numbers, or its lines."""
    if chance.random() < 0.35:
        return damaged(content, chance)
    for _ in range(int(chance.choice([1, 1, 2, 3]))):
        content = TEXT_WAYS[int(chance.integers(len(TEXT_WAYS)))](content, chance)
    return content


def damaged_json(content: bytes, chance: np.random.Generator) -> bytes:
    """Damage JSON: as text, or one or two of its values or keys, still being JSON."""
    if chance.random() < 0.3:
        return damaged_text(content, chance)
    value = json.loads(content)
    for _ in range(int(chance.integers(1, 3))):
        value = odd(value, chance)
    return json.dumps(value).encode()


def odd(value: Any, chance: np.random.Generator) -> Any:
    """Return nested values with one replaced, removed, repeated or renamed."""
    places = list(_places(value))
    if not places:
        return VALUES[int(chance.integers(len(VALUES)))]
    # Deep lists of numbers would take all the turns: each depth is as likely.
    depth = int(chance.choice(sorted({len(place) for place in places})))
    deep = [place for place in places if len(place) == depth]
    place = deep[int(chance.integers(len(deep)))]
    copy = json.loads(json.dumps(value))
    parent = copy
    for key in place[:-1]:
        parent = parent[key]
    key, way = place[-1], chance.random()
    if way < 0.2:
        del parent[key]
    elif way < 0.3 and isinstance(parent, list):
        parent.append(parent[key])
    elif way < 0.3:
        parent[f"{key}x"] = parent.pop(key)
    elif way < 0.5 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = parent[key] * -1 if way < 0.4 else parent[key] + 1
    else:
        parent[key] = VALUES[int(chance.integers(len(VALUES)))]
    return copy


def _places(value: Any, above: tuple[Any, ...] = ()) -> Any:
    entries = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in entries:
        yield (*above, key)
        yield from _places(part, (*above, key))


def _span(content: bytes, chance: np.random.Generator, longest: int = 400) -> tuple[int, int]:
    start = int(chance.integers(len(content) + 1))
    return start, min(len(content), start + int(chance.integers(1, longest)))


def _flip(content: bytes, chance: np.random.Generator) -> bytes:
    some = bytearray(content)
    for place in chance.integers(0, max(len(some), 1), int(chance.integers(1, 17))):
        if some:
            some[int(place)] ^= 1 << int(chance.integers(8))
    return bytes(some)


def _replace(content: bytes, chance: np.random.Generator) -> bytes:
    some = bytearray(content)
    for place in chance.integers(0, max(len(some), 1), int(chance.integers(1, 17))):
        if some:
            some[int(place)] = int(chance.integers(256))
    return bytes(some)


def _run(content: bytes, chance: np.random.Generator) -> bytes:
    start, end = _span(content, chance)
    fills = (b"\x00", b"\xff", b" ", b"9")
    kind = int(chance.integers(len(fills) + 1))
    run = chance.bytes(end - start) if kind == len(fills) else fills[kind] * (end - start)
    return content[:start] + run + content[end:]


def _cut(content: bytes, chance: np.random.Generator) -> bytes:
    return content[: int(chance.integers(len(content) + 1))]


def _remove(content: bytes, chance: np.random.Generator) -> bytes:
    start, end = _span(content, chance)
    return content[:start] + content[end:]


def _repeat(content: bytes, chance: np.random.Generator) -> bytes:
    start, end = _span(content, chance, max(2, len(content) // 2))
    return content[:end] + content[start:]


def _insert(content: bytes, chance: np.random.Generator) -> bytes:
    start = int(chance.integers(len(content) + 1))
    return content[:start] + chance.bytes(int(chance.integers(1, 64))) + content[start:]


def _swap(content: bytes, chance: np.random.Generator) -> bytes:
    a, b, c, d = sorted(int(k) for k in chance.integers(0, len(content) + 1, 4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _word(content: bytes, chance: np.random.Generator) -> bytes:
    """Set an aligned word, mostly of the beginning, to a number that headers fear."""
    if len(content) < 8:
        return content
    some = bytearray(content)
    reach = len(some) - 3 if chance.random() < 0.3 else min(len(some) - 3, 256)
    place = int(chance.integers(reach)) // 4 * 4
    word = WORDS[int(chance.integers(len(WORDS)))]
    order = ("big", "little")[int(chance.integers(2))]
    some[place : place + 4] = word.to_bytes(4, order, signed=True)
    return bytes(some)


def _number(content: bytes, chance: np.random.Generator) -> bytes:
    """Write another number over one, in its columns or as long as it is."""
    found = list(_DIGITS.finditer(content))
    if not found:
        return content
    match = found[int(chance.integers(len(found)))]
    new = NUMBERS[int(chance.integers(len(NUMBERS)))].encode()
    if chance.random() < 0.6:
        width = match.end() - match.start()
        new = new[:width].rjust(width)
    return content[: match.start()] + new + content[match.end() :]


def _lines(content: bytes, chance: np.random.Generator) -> bytes:
    """Remove, repeat or swap lines."""
    lines = content.split(b"\n")
    one, other = (int(k) for k in chance.integers(0, len(lines), 2))
    way = int(chance.integers(4))
    if way == 0:
        del lines[min(one, other) : max(one, other)]
    elif way == 1:
        del lines[one]
    elif way == 2:
        lines.insert(one, lines[other])
    else:
        lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def _letters(content: bytes, chance: np.random.Generator) -> bytes:
    """Blank or fill some columns of one line, or end its lines otherwise."""
    lines = content.split(b"\n")
    row = int(chance.integers(len(lines)))
    way = chance.random()
    if way < 0.15:
        return (b"\r\n", b"\r", b"\n\n")[int(chance.integers(3))].join(lines)
    start = int(chance.integers(81))
    end = start + int(chance.integers(1, 20))
    line = lines[row].ljust(end)
    fill = (b" ", b"*", "é".encode(), b"\xe9", b"\t", b"\x00", b"Z")[int(chance.integers(7))]
    lines[row] = line[:start] + fill * (end - start) + line[end:]
    return b"\n".join(lines)


BYTE_WAYS = (_flip, _flip, _replace, _run, _cut, _remove, _repeat, _insert, _swap, _word, _word)
TEXT_WAYS = (_number, _number, _number, _lines, _letters)
