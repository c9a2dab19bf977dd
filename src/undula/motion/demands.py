"""What a trained forecaster of atoms takes and gives: enough to ask it, or to refuse to."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Demands:
    """What a trained forecaster of atoms takes and gives, whatever its kind.

    Attributes:
        kinds: Chemical kinds that it knows.
        frame_ps: Time between the frames of a window, ps.
        observed: So many frames of a window were seen in training; of longer ones the last count.
        needed: So many it takes at least, without velocities and with them.
        horizon_ps: How far it reaches, ps.
        reference: What frames were superposed on in training, Å; none if they were not.
        samples: Whether it has a distribution to draw from.
        said: What a reader should know of its forecasts: sentences.
        features: Width of the network, or what takes as much memory.
        neighbours: Typical number of neighbours of an atom; 0 if atoms do not hear each other.
        graphs: Of all atoms that are held at once.
        at_once: Times that are decoded together.
        draws: Futures that even its mean takes; 1 if that is forecast by itself.
        passes: Through the network for one future, at any number of times.
        passes_each: For one future at each time, or at each step of a rollout.
        stride_ps: Time of a step of a rollout, ps; 0 for what goes to any time at once.
    """

    kinds: tuple[str, ...]
    frame_ps: float
    observed: int
    needed: tuple[int, int]
    horizon_ps: float
    reference: Float[Tensor, "atoms 3"] | None
    samples: bool
    said: tuple[str, ...] = ()
    features: int
    neighbours: float
    graphs: int = 1
    at_once: int
    draws: int = 1
    passes: float = 0.0
    passes_each: float = 0.0
    stride_ps: float = 0.0

    def frames_needed(self, velocities: bool) -> int:
        """Return how many frames it takes at least, of windows with or without velocities."""
        return self.needed[velocities]
