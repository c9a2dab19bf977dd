"""What a forecaster of atoms is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, Notice, UsageError
from undula.types import MolecularSystem


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """The observed part of a trajectory: all a forecast may know. The last frame is "now".

    Attributes:
        system: The atoms.
        positions: Unwrapped, Å; frames are `frame_ps` apart, the last one is now.
        velocities: Å/ps, for the same frames; none where they are not known.
        box: Edge vectors of the periodic box now, Å, one a row; none without a box.
        frame_ps: Time between frames, ps.
        now_ps: Time of the last frame on the clock of its trajectory, ps.
        notices: What was dropped, assumed or guessed when it was cut.
    """

    system: MolecularSystem
    positions: Float[Tensor, "observed atoms 3"]
    velocities: Float[Tensor, "observed atoms 3"] | None
    box: Float[Tensor, "3 3"] | None
    frame_ps: float
    now_ps: float = 0.0
    notices: tuple[Notice, ...] = ()

    def __post_init__(self) -> None:
        name = self.system.structure.name
        if self.positions.ndim != 3 or len(self.positions) == 0:
            raise InputError(f"{name}: an observed window needs at least one frame")
        if self.positions.shape[1:] != (len(self.system), 3):
            raise InputError(
                f"{name}: the window has {self.positions.shape[1]} atoms, "
                f"the system {len(self.system)}"
            )
        if self.velocities is not None and self.velocities.shape != self.positions.shape:
            raise InputError(f"{name}: positions and velocities of the window differ in shape")
        if not 0 < self.frame_ps < float("inf"):
            raise InputError(f"{name}: the time between frames should be positive")

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def now(self) -> Float[Tensor, "atoms 3"]:
        """Positions in the last observed frame, Å."""
        return self.positions[-1]

    @property
    def velocity_now(self) -> Float[Tensor, "atoms 3"] | None:
        """Velocities in the last observed frame, Å/ps, where they are known."""
        return None if self.velocities is None else self.velocities[-1]

    def last(self, frames: int) -> Window:
        """Return the window of the last few frames; the whole one where it has fewer."""
        if frames < 1:
            raise UsageError(f"a window keeps at least 1 frame, not {frames}")
        velocities = None if self.velocities is None else self.velocities[-frames:]
        return replace(self, positions=self.positions[-frames:], velocities=velocities)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A rollout that left the range of what is possible: its last possible frame stays.

    Attributes:
        after_ps: When it, or the first of its samples, did so, ps after now.
        share: Of the samples that did so in the end.
    """

    after_ps: float
    share: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomForecast:
    """Where every atom is expected at some later times, and how sure that is.

    Attributes:
        lags_ps: Times after now, ps.
        mean: Expected positions, unwrapped, Å.
        spread: Standard deviation along each axis, Å; none for a forecaster that gives none.
        velocities: Expected velocities, Å/ps; none for a forecaster that gives none.
    """

    lags_ps: Float[Tensor, " times"]
    mean: Float[Tensor, "times atoms 3"]
    spread: Float[Tensor, "times atoms"] | None = None
    velocities: Float[Tensor, "times atoms 3"] | None = None

    @property
    def divergence(self) -> Divergence | None:
        """When a rollout left the range of what is possible; none if it did not, or is none."""
        return None


Forecasts: TypeAlias = Callable[[Window, Float[Tensor, " times"]], Sequence[AtomForecast]]
"""What several forecasters say of a window, in their order, where they share what they compute."""


@runtime_checkable
class OfSomeAtoms(Protocol):
    """A forecaster that takes so long that it forecasts some atoms only; the others stay."""

    def forecast_atoms(self, system: MolecularSystem) -> Int[Tensor, " chosen"]:
        """Return which atoms are forecast: a fair score looks at these alone."""
        ...


@runtime_checkable
class Remarked(Protocol):
    """A forecaster of which a table should say something."""

    @property
    def remark(self) -> str:
        """A sentence without its first capital and its stop."""
        ...


@runtime_checkable
class AtomForecaster(Protocol):
    """Whatever forecasts atoms: our models, other people's, trivial rows.

    Attributes:
        name: In tables.
    """

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    def forecast(self, window: Window, lags_ps: Float[Tensor, " times"]) -> AtomForecast:
        """Forecast the mean at some times.

        Args:
            window: What is observed.
            lags_ps: Times after its last frame, ps, in any order, each positive.
        """
        ...

    def samples(
        self,
        window: Window,
        lags_ps: Float[Tensor, " times"],
        count: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "samples times atoms 3"] | None:
        """Draw whole futures, Å, unwrapped; none from a forecaster without a distribution."""
        ...
