"""Whether late times are harder: the error in three parts of the horizon, beside the constant's.

The slides name two "hardness factors": early the system is still settling, late the errors of
the roll-out pile up. A forecast that knows nothing of either, a constant, shows what remains of
both: if its error moves as much from part to part as the model's, the parts differ in their
frames, not in how hard they are to forecast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from undula.motion.evaluation import mean_of

REGIMES = ("early", "middle", "late")


@dataclass(frozen=True, kw_only=True)
class Regimes:
    """The mean error of a row in each third of the horizon.

    Attributes:
        name: Of the row.
        errors: Early, middle, late; none where a measure is not defined.
    """

    name: str
    errors: tuple[float | None, float | None, float | None]

    @property
    def swing(self) -> float | None:
        """How much larger the largest is than the smallest, as a share of the smallest."""
        known = [error for error in self.errors if error is not None]
        return None if len(known) < 3 or min(known) <= 0 else max(known) / min(known) - 1

    @property
    def rises(self) -> bool:
        """Whether it grows from part to part."""
        early, middle, late = self.errors
        if early is None or middle is None or late is None:
            return False
        return early < middle < late


def regimes(
    rows: Mapping[str, Sequence[float | None]], lags: Sequence[int], horizon: int
) -> list[Regimes]:
    """Average errors over the thirds of a horizon.

    Args:
        rows: Name → a number at each frame.
        lags: These frames.
        horizon: The last one.
    """
    found = []
    for name, errors in rows.items():
        parts: list[list[float | None]] = [[], [], []]
        for lag, error in zip(lags, errors, strict=True):
            parts[min(2, 3 * (lag - 1) // horizon)].append(error)
        early, middle, late = (mean_of(part) for part in parts)
        found.append(Regimes(name=name, errors=(early, middle, late)))
    return found


def regime_sentences(found: Sequence[Regimes], constant: str = "constant") -> list[str]:
    """Say of each row whether its error moves more over the horizon than the constant's.

    Args:
        found: The rows, the constant among them.
        constant: Its name.
    """
    still = next((row for row in found if row.name == constant), None)
    if still is None or still.swing is None:
        return ["there is no constant row to compare the parts of the horizon with"]
    said = [f"The constant, which knows nothing, moves by {still.swing:.1%} between the parts."]
    for row in found:
        if row is still or row.swing is None:
            continue
        early, middle, late = row.errors
        assert early is not None
        assert middle is not None
        assert late is not None
        settling = "does not fall" if early <= middle else "falls"
        said.append(
            f"{row.name} moves by {row.swing:.1%}: its error {settling} from early to middle and "
            f"{'rises' if late > middle else 'does not rise'} from middle to late."
        )
    return said
