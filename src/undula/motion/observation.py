"""Windows to what the encoder takes: numbers of order one, in units of what is usual."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError
from undula.motion.encoder import Observation
from undula.motion.windows import Window

_LEAST = 1e-6
"""Å or Å/ps: what is smaller than this is taken to be this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Usual:
    r"""What is usual for each chemical kind, fitted on training windows.

    The past is told by how it differs from its best reconstruction out of the present,

    .. math:: r(-\tau) \approx r_0 - a(\tau) \, v_0

    in units of the spread around that: the first of these numbers hold the acceleration.

    Attributes:
        ages: Frames back, ascending, without now.
        response: a, ps, for each kind and age.
        spread: Root mean square of what a leaves over, per axis, Å.
        speed: Root mean square velocity per axis, Å/ps.
        reach: Root mean square way to the observed mean per axis, Å.
    """

    ages: tuple[int, ...]
    response: Float[Tensor, "kinds ages"]
    spread: Float[Tensor, "kinds ages"]
    speed: Float[Tensor, " kinds"]
    reach: Float[Tensor, " kinds"]

    def state(self) -> dict[str, Tensor]:
        """Return all numbers as named tensors, to be stored beside weights."""
        return {name: getattr(self, name) for name in ("response", "spread", "speed", "reach")}

    @classmethod
    def from_state(cls, ages: Sequence[int], state: Mapping[str, Tensor]) -> Usual:
        """Put together what `state` returned.

        Raises:
            InputError: Something is missing or has another shape than it should have.
        """
        try:
            made = cls(ages=tuple(ages), **{name: state[name] for name in state})
        except TypeError as error:
            raise InputError(f"the usual sizes are incomplete: {error}") from error
        if made.response.shape != (len(made.speed), len(made.ages)):
            raise InputError("the usual sizes do not fit their kinds and ages")
        return made


def velocities_of(window: Window, ages: Sequence[int]) -> Float[Tensor, "ages atoms 3"]:
    """Return velocities some frames back: as recorded, or else backward differences, Å/ps.

    The oldest frame of a window, which has no frame before it, gets the difference ahead of it;
    a window of one frame without velocities gets zeros.
    """
    frame = torch.tensor([len(window) - 1 - age for age in ages], device=window.positions.device)
    if window.velocities is not None:
        return window.velocities[frame].to(window.positions)
    if len(window) == 1:
        return torch.zeros_like(window.positions[frame])
    later = frame.clamp(min=1)
    return (window.positions[later] - window.positions[later - 1]) / window.frame_ps


def mean_velocity(window: Window) -> Float[Tensor, " 3"]:
    """Compute the velocity of the centre of mass over a window, Å/ps; 0 for a single frame."""
    if len(window) == 1:
        return window.now.new_zeros(3)
    weights = (window.system.masses / window.system.masses.sum()).to(window.positions)
    way = weights @ (window.positions[-1] - window.positions[0])
    return way / ((len(window) - 1) * window.frame_ps)


def fitted_usual(
    windows: Iterable[Window], kinds: Int[Tensor, " atoms"], count: int, ages: Sequence[int]
) -> Usual:
    """Fit what is usual on training windows of one system.

    Args:
        windows: At least one, each with more frames than the oldest age.
        kinds: Number of each atom's kind.
        count: How many kinds there are.
        ages: Frames back, without now.
    """
    sums = torch.zeros(count, 4, len(ages) + 1, dtype=torch.float64)
    for window in windows:
        velocity = velocities_of(window, [0])[0].double()
        frames = torch.tensor([len(window) - 1 - age for age in ages], dtype=torch.long)
        back = (window.positions[frames] - window.now).double()
        away = (window.positions.mean(dim=0) - window.now).double()
        square = velocity.square().sum(dim=-1)
        product = -(back * velocity).sum(dim=-1)
        whole = back.square().sum(dim=-1)
        rows = torch.zeros(len(kinds), 4, len(ages) + 1, dtype=torch.float64)
        rows[:, 0, :] = square[:, None]
        rows[:, 1, :-1] = product.T
        rows[:, 2, :-1] = whole.T
        rows[:, 2, -1] = away.square().sum(dim=-1)
        rows[:, 3, :] = 3
        sums.index_add_(0, kinds, rows)
    square, product, whole, number = sums.unbind(dim=1)
    response = product / square.clamp(min=_LEAST**2)
    left = (whole - response * product).clamp(min=0) / number.clamp(min=1)
    rms = (square[:, 0] / number[:, 0].clamp(min=1)).sqrt()
    return Usual(
        ages=tuple(ages),
        response=response[:, :-1].float(),
        spread=left[:, :-1].sqrt().clamp(min=_LEAST).float(),
        speed=rms.clamp(min=_LEAST).float(),
        reach=(whole[:, -1] / number[:, -1].clamp(min=1)).sqrt().clamp(min=_LEAST).float(),
    )


def observation(
    windows: Sequence[Window],
    kinds: Int[Tensor, " atoms"],
    usual: Usual,
    ages: Sequence[int],
) -> Observation:
    """Gather windows of one system for the encoder.

    Args:
        windows: All with boxes or all without.
        kinds: Number of each atom's kind.
        usual: Units.
        ages: Frames back that are looked at, now (0) first; the others occur in ``usual``.
    """
    dtype, device = windows[0].positions.dtype, windows[0].positions.device
    columns = [usual.ages.index(age) for age in ages[1:]]
    response, spread = (
        one.to(device, dtype)[kinds][:, columns].T[..., None]
        for one in (usual.response, usual.spread)
    )
    speed, reach = (one.to(device, dtype)[kinds][:, None] for one in (usual.speed, usual.reach))
    positions, vectors = [], []
    for window in windows:
        frame = torch.tensor([len(window) - 1 - age for age in ages], device=device)
        seen = window.positions[frame]
        velocity = velocities_of(window, ages)
        past = torch.zeros_like(seen)
        past[1:] = (seen[1:] - window.now + response * velocity[0]) / spread
        mean = (window.positions.mean(dim=0) - window.now) / reach
        drift = mean_velocity(window) / speed
        still = [one.expand_as(seen) for one in (mean, drift)]
        positions.append(seen)
        vectors.append(torch.stack([velocity / speed, past, *still], dim=-1))
    charges = windows[0].system.charges
    boxes = [window.box for window in windows if window.box is not None]
    return Observation(
        kinds=kinds,
        ages=torch.tensor(list(ages), device=device),
        positions=torch.stack(positions),
        vectors=torch.stack(vectors),
        recorded=torch.tensor(
            [float(window.velocities is not None) for window in windows], dtype=dtype, device=device
        ),
        charges=torch.zeros(len(kinds), dtype=dtype, device=device)
        if charges is None
        else charges.to(device, dtype),
        boxes=torch.stack(boxes).to(device, dtype) if boxes else None,
    )
