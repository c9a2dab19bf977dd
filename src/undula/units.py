"""Units: inside undula every length is in Å and every time in ps; only `undula.io` converts."""

from __future__ import annotations

import re

from undula.errors import UsageError

ANGSTROM_PER_NM = 10.0
PICOSECONDS = {"fs": 1e-3, "ps": 1.0, "ns": 1e3, "us": 1e6, "µs": 1e6, "ms": 1e9}

_QUANTITY = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([a-zµ]*)\s*")


def picoseconds(text: str, default_unit: str = "ps") -> float:
    """Read a time such as ``"20ns"`` or ``"130"`` and return it in ps.

    Args:
        text: A number with an optional unit: fs, ps, ns, us or µs, ms.
        default_unit: The unit of a bare number.

    Raises:
        UsageError: The text is no number or its unit is unknown.
    """
    match = _QUANTITY.fullmatch(text)
    if not match:
        raise UsageError(f"cannot read {text!r} as a time; write for instance 130ps or 20ns")
    number, unit = match.groups()
    if (unit or default_unit) not in PICOSECONDS:
        raise UsageError(f"unknown unit of time {unit!r} in {text!r}; use fs, ps, ns, us or ms")
    return float(number) * PICOSECONDS[unit or default_unit]


def times(text: str) -> list[float]:
    """Read ``START:STOP:STEP`` or a comma-separated list of times and return them in ps.

    The stop is included when it lies on the grid. A unit on the last part of a range
    serves its bare numbers too, so that ``0:100:2ns`` means nanoseconds.

    Raises:
        UsageError: The text is no such range, its step is not positive, or it holds no time.
    """
    parts = text.split(":")
    if len(parts) == 1:
        return [picoseconds(part) for part in text.split(",")]
    if len(parts) != 3:
        raise UsageError(f"cannot read {text!r} as times; write START:STOP:STEP or a list t1,t2")
    unit = re.sub(r"[^a-zµ]", "", parts[2].split("e")[-1]) or "ps"
    start, stop, step = (picoseconds(part, unit) for part in parts)
    if not step > 0 or stop < start:
        raise UsageError(f"the times {text!r} need a positive step and a stop after the start")
    count = int((stop - start) / step + 1e-9) + 1
    if count > 1_000_000:
        raise UsageError(f"{text!r} asks for {count} times; at most 1,000,000 are allowed")
    return [start + step * index for index in range(count)]
