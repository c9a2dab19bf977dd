"""Numbers in columns of text: read strictly, so that ``21.ish`` is an error and not 21."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from undula.errors import InputError

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_LARGEST = 2.0**53
_PLAIN = frozenset(b" 0123456789.+-eE\x00")


def decimals(texts: np.ndarray, place: Callable[[int], str], what: str) -> np.ndarray:
    """Read decimal numbers strictly: the whole field is one finite number, or it is an error.

    Args:
        texts: Byte strings, one number each.
        place: Gives the place of a row for the message: file and line or atom.
        what: What the numbers are, such as ``x coordinate``.

    Returns:
        Numbers of double precision.

    Raises:
        InputError: A field is blank, overflowing (``********``), not finite or no number.
    """
    width = texts.dtype.itemsize
    allowed = np.zeros(256, dtype=bool)
    allowed[list(_PLAIN)] = True
    letters = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), width)
    if allowed[letters].all():
        try:
            values = texts.astype(np.float64)
        except ValueError:
            values = np.full(len(texts), np.nan)
        if np.isfinite(values).all():
            return values
    for row, raw in enumerate(texts.tolist()):
        text = raw.decode("latin-1").strip(" \t")
        if _NUMBER.fullmatch(text) and np.isfinite(float(text)):
            continue
        if not text:
            problem = "is blank"
        elif set(text) == {"*"}:
            problem = "is all asterisks: it did not fit its columns"
        elif re.fullmatch(r"[-+]?(nan|inf|infinity)", text, re.IGNORECASE):
            problem = f"is not finite ({text})"
        else:
            problem = f"is no number ({text[:20]!r})"
        raise InputError(f"{place(row)}: the {what} {problem}")
    return np.array([float(raw) for raw in texts.tolist()])


def integers(texts: np.ndarray, place: Callable[[int], str], what: str) -> np.ndarray:
    """Read whole numbers as strictly as `decimals` does.

    Raises:
        InputError: A field is no number, not a whole one, or not exact in double precision.
    """
    values = decimals(texts, place, what)
    broken = np.nonzero(values != np.round(values))[0]
    if len(broken):
        row = int(broken[0])
        raise InputError(f"{place(row)}: the {what} is no whole number ({values[row]:g})")
    large = np.nonzero(np.abs(values) > _LARGEST)[0]
    if len(large):
        row = int(large[0])
        raise InputError(f"{place(row)}: the {what} is too large ({values[row]:g})")
    return values.astype(np.int64)


def hybrid_36(text: str, width: int) -> int | None:
    """Read an integer that may be hybrid-36, the PDB's way beyond its columns; none if neither.

    ``9999`` is followed by ``A000``, ``A001`` … ``ZZZZ`` and then by ``a000``.

    Args:
        text: The field, stripped.
        width: Columns of the field.
    """
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if len(text) != width or not re.fullmatch(r"[A-Z][A-Z\d]*|[a-z][a-z\d]*", text):
        return None
    # int(…, 36) does not tell upper from lower case, so the block is chosen here.
    offset = 10**width - 10 * 36 ** (width - 1)
    return int(text, 36) + offset + (26 * 36 ** (width - 1) if text[0].islower() else 0)
