"""What a linear forecast of atoms is made of: velocities, and ways to where atoms tend to be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError, UsageError
from undula.motion.windows import Window
from undula.types import MolecularSystem


@dataclass(frozen=True, kw_only=True)
class ClimatologyConfig:
    """What a linear forecast may use.

    Attributes:
        velocity: The velocity now; the difference of the last two frames where none is known.
        earlier: Mean velocities over the last k frames, for each k named here: the rest of a
            short memory. On argon 1 and 2 bring nearly all there is.
        molecule: Velocity of the molecule's centre of mass, and the way to it: where atoms of a
            molecule that turns about are soon expected.
        neighbours: The way to the mean of the atoms it is bonded to.
        mean: The way to the mean of the observed window: large for atoms that are bound in an
            aligned molecule, next to nothing in a liquid.
        drift: The velocity of the centre of mass over the window.
        hops: Correlations reach so many bonds far; atoms farther apart have the last one.
    """

    velocity: bool = True
    earlier: tuple[int, ...] = (1, 2)
    molecule: bool = True
    neighbours: bool = True
    mean: bool = True
    drift: bool = True
    hops: int = 8

    def __post_init__(self) -> None:
        if any(frames < 1 for frames in self.earlier) or len(set(self.earlier)) < len(self.earlier):
            raise UsageError(f"earlier should name different positive frames, not {self.earlier}")
        if self.hops < 1:
            raise UsageError(f"hops should be at least 1, not {self.hops}")

    @property
    def terms(self) -> tuple[str, ...]:
        """What each coefficient belongs to."""
        return (
            *(["velocity"] if self.velocity else []),
            *(f"velocity over {frames}" for frames in self.earlier),
            *(["velocity of the molecule", "centre of the molecule"] if self.molecule else []),
            *(["neighbours"] if self.neighbours else []),
            *(["mean"] if self.mean else []),
            *(["drift"] if self.drift else []),
        )

    def frames_needed(self, known: bool) -> int:
        """Return how many observed frames a forecast takes, with or without velocities."""
        two = self.drift or ((self.velocity or self.molecule) and not known)
        return max([1, 2 if two else 1, *(frames + 1 for frames in self.earlier)])


def predictors(
    window: Window, config: ClimatologyConfig, known: bool
) -> tuple[Float[Tensor, "terms atoms 3"], Float[Tensor, " 3"]]:
    """Compute what a linear forecast is made of, as seen by who moves along with the drift.

    Args:
        window: At least `ClimatologyConfig.frames_needed` frames.
        config: Which terms.
        known: Whether to take the velocity now, or the difference of the last two frames.

    Returns:
        The terms, Å/ps but for the way to the mean, Å; and the drift, Å/ps, 0 if it is not used.

    Raises:
        InputError: The window is too short, or has no velocities.
    """
    name, frames = window.system.structure.name, len(window)
    needed = config.frames_needed(known)
    if frames < needed:
        raise InputError(f"{name}: a forecast takes at least {needed} frames, not {frames}")
    now, step = window.now, window.frame_ps
    drift = _drift(window) if config.drift else now.new_zeros(3)
    terms: list[Tensor] = []
    if config.velocity:
        terms.append(_velocity(window, known) - drift)
    for back in config.earlier:
        terms.append((now - window.positions[-1 - back]) / (back * step) - drift)
    if config.molecule:
        terms.append(_centres(_velocity(window, known), window.system) - drift)
        terms.append(_centres(now, window.system) - now)
    if config.neighbours:
        terms.append(_to_neighbours(now, window.system.bonds))
    if config.mean:
        age = step * (frames - 1) / 2
        terms.append(window.positions.mean(dim=0) + drift * age - now)
    if config.drift:
        terms.append(drift.expand_as(now))
    empty = now.new_zeros(0, *now.shape)
    return (torch.stack(terms) if terms else empty), drift


def _velocity(window: Window, known: bool) -> Float[Tensor, "atoms 3"]:
    if not known:
        return (window.now - window.positions[-2]) / window.frame_ps
    if window.velocity_now is None:
        raise InputError(f"{window.system.structure.name}: the velocities now are not known")
    return window.velocity_now.to(window.now)


def _centres(values: Float[Tensor, "atoms 3"], system: MolecularSystem) -> Float[Tensor, "atoms 3"]:
    """Average over each molecule, weighted by mass, and give every atom its molecule's."""
    weights = system.masses.to(values)[:, None]
    both = torch.cat([values * weights, weights], dim=1)
    total = values.new_zeros(system.molecule_count, 4).index_add_(0, system.molecules, both)
    return (total[:, :3] / total[:, 3:])[system.molecules]


def _to_neighbours(
    positions: Float[Tensor, "atoms 3"], bonds: Int[Tensor, "2 bonds"]
) -> Float[Tensor, "atoms 3"]:
    """Compute the way to the mean of the bonded atoms; 0 for an atom without bonds."""
    i, j = torch.cat([bonds, bonds.flip(0)], dim=1)
    total = torch.zeros_like(positions).index_add_(0, i, positions[j] - positions[i])
    return total / torch.bincount(i, minlength=len(positions)).clamp(min=1)[:, None]


def _drift(window: Window) -> Float[Tensor, " 3"]:
    weights = (window.system.masses / window.system.masses.sum()).to(window.positions)
    way = weights @ (window.positions[-1] - window.positions[0])
    return way / ((len(window) - 1) * window.frame_ps)
