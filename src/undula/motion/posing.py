"""A window brought into the pose and precision of a model, and its forecast back again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from undula.data.poses import aligned
from undula.errors import InputError
from undula.geometry.frames import superposition
from undula.io.recordings import RecordedFrames
from undula.motion.windows import Window


@dataclass(frozen=True, kw_only=True, eq=False)
class Pose:
    """How a window was brought onto a reference, ``positions @ turn.mT + shift``.

    Attributes:
        turn: R of the last frame; none where nothing was superposed.
        shift: t, Å; none where nothing was superposed.
    """

    turn: Float[Tensor, "3 3"] | None = None
    shift: Float[Tensor, " 3"] | None = None

    def places_back(
        self, positions: Float[Tensor, "*many atoms 3"]
    ) -> Float[Tensor, "*many atoms 3"]:
        """Bring positions back to where the last observed frame was."""
        if self.turn is None or self.shift is None:
            return positions
        return (positions - self.shift.to(positions)) @ self.turn.to(positions)

    def directions_back(
        self, directions: Float[Tensor, "*many atoms 3"]
    ) -> Float[Tensor, "*many atoms 3"]:
        """Turn velocities or displacements back."""
        return directions if self.turn is None else directions @ self.turn.to(directions)


def posed(
    window: Window, reference: Float[Tensor, "atoms 3"] | None, dtype: torch.dtype
) -> tuple[Window, Pose]:
    """Bring a window into a model's precision, and onto the reference of its training if any.

    Raises:
        InputError: The reference has another number of atoms.
    """
    velocities = None if window.velocities is None else window.velocities.to(dtype)
    precise = replace(window, positions=window.positions.to(dtype), velocities=velocities)
    if reference is None:
        return precise, Pose()
    if len(reference) != len(window.system):
        raise InputError(
            f"{window.system.structure.name}: the model was trained on a molecule of "
            f"{len(reference)} atoms, this one has {len(window.system)}"
        )
    there, turn, shift = superposed(precise, reference)
    return there, Pose(turn=turn, shift=shift)


def superposed(
    window: Window, reference: Float[Tensor, "atoms 3"]
) -> tuple[Window, Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
    """Superpose all frames of a window on a reference, as `undula.data.poses.aligned` does.

    Returns:
        The window, and R and t that brought its last frame there, ``positions @ R.mT + t``.
    """
    masses = window.system.masses.to(window.positions.device, torch.float64)
    reference = reference.to(masses)
    frames = RecordedFrames(
        positions=window.positions, frame_ps=window.frame_ps, velocities=window.velocities
    )
    posed = aligned(frames, reference, masses)
    turn, shift = superposition(window.now, reference, masses)
    velocities = posed.velocities
    return (
        replace(
            window,
            positions=posed.positions.to(window.positions),
            velocities=None if velocities is None else velocities.to(window.positions),
            box=None,
        ),
        turn,
        shift,
    )
