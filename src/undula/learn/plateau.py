"""When a training ends by itself: with the first cycle that gains too little on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from undula.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """The rule by which a training goes on until it no longer gets better.

    It goes in cycles of `FitConfig.steps` steps. Each has the whole schedule of the learning
    rate, so that its last weights are worth keeping: the first is the training without a
    plateau, and one that is finished is gone on with. Only the ends of cycles are compared, and
    the first follows nothing that learned, so there are at least two. The weights of the best
    end are kept.

    Attributes:
        measure: The validation measure that judges.
        minimise: Whether less of it is better.
        gain: The least by which the end of a cycle must beat the best end before it, in the unit
            of the measure, for another cycle to follow.
        cycles: So many at most.

    Source: restarts as in Loshchilov and Hutter, SGDR (ICLR 2017), with cycles of one length.
    """

    measure: str
    minimise: bool = False
    gain: float = 0.005
    cycles: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.gain < math.inf:
            raise UsageError(f"plateau.gain must be positive, not {self.gain}")
        if self.cycles < 2:
            raise UsageError(f"plateau.cycles must be at least 2, not {self.cycles}")


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """How far a training in cycles has come.

    Attributes:
        rule: By which it is judged.
        ends: The measure at the end of each cycle, up to the one that ends the training; None
            where it was not finite.
        best: Number of the cycle with the best end, from 1; 0 before the first end.
        ended: Whether no further cycle follows.
        reached: Whether that is so because the last cycle gained too little, and not because
            there may be no more.
    """

    rule: PlateauConfig
    ends: tuple[float | None, ...]
    best: int
    ended: bool
    reached: bool

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self) | {"ends": list(self.ends)}


def judged(records: Sequence[Mapping[str, Any]], steps: int, rule: PlateauConfig) -> Plateau:
    """Judge the validation records of a training.

    Args:
        records: Each with its ``step`` and the measures; what was measured within a cycle, or
            after the end of the training, does not count.
        steps: Of a cycle.
        rule: When it ends.
    """
    ends: list[float | None] = []
    best, most, ended, reached = 0, -math.inf, False, False
    for record in records:
        if ended or record["step"] == 0 or record["step"] % steps:
            continue
        value = record[rule.measure]
        worth = -math.inf if value is None else (-value if rule.minimise else value)
        gained = worth - most if worth > most else 0.0
        if not ends or worth > most:
            best, most = len(ends) + 1, worth
        ends.append(value)
        reached = len(ends) > 1 and gained < rule.gain
        ended = reached or len(ends) == rule.cycles
    return Plateau(rule=rule, ends=tuple(ends), best=best, ended=ended, reached=reached)
