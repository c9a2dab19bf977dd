"""Recorded frames in one pose: superposed on their mean structure, or their centre at rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError, Notice
from undula.geometry.frames import centre, superposition
from undula.io.recordings import RecordedFrames
from undula.io.scratch import MEMORY, Scratch, parts

_ROUNDS, _STEADY = 100, 1e-6


def mean_structure(
    moving: Sequence[Float[Tensor, "_ atoms 3"]],
    masses: Float[Tensor, " atoms"],
    release: Callable[[], None] = lambda: None,
) -> Float[Tensor, "atoms 3"]:
    """Compute the mean of frames that are superposed on it.

    Args:
        moving: Frames of one or several recordings, Å.
        masses: Weights of the superposition.
        release: Called after some frames were looked at.

    Returns:
        In float64, in the pose of the first frame with the centre of mass at the origin; found by
        superposing and averaging until it moves by less than 1e-6 Å.

    Raises:
        InputError: It does not settle: the shape changes too much to have a mean pose.
    """
    first = moving[0][0].double()
    mean = first - centre(first, masses)
    count = sum(len(frames) for frames in moving)
    for _ in range(_ROUNDS):
        before, mean = mean, torch.zeros_like(mean)
        for frames in moving:
            for some in parts(frames):
                few = frames[some].double()
                rotation, translation = superposition(few, before, masses)
                turned = few @ rotation.mT + translation.unsqueeze(-2)
                mean = mean + turned.sum(dim=0) / count
                release()
        if float((mean - before).norm(dim=1).max()) < _STEADY:
            return mean
    raise InputError(f"no mean structure was found in {_ROUNDS} rounds of superposition")


def aligned(
    frames: RecordedFrames,
    reference: Float[Tensor, "atoms 3"],
    masses: Float[Tensor, " atoms"],
    scratch: Scratch = MEMORY,
) -> RecordedFrames:
    r"""Superpose every frame on a reference and turn the velocities into those of what results.

    .. math::
        x' = R(x - \bar x) + \bar y, \qquad v' = R(v - \bar v) + \Omega \times (x' - \bar y), \qquad
        \sum_a m_a \left[ (x'_a \cdot y_a) I - x'_a y_a^T \right] \Omega
            = \sum_a m_a\, R(v_a - \bar v) \times y_a

    (in the second equation from the common centre). Turning alone would not do: R changes from
    frame to frame, and v' is the exact rate of change of x', because x' stays superposed:
    :math:`\sum m\, x' \times y = 0` at all times. Where x' is near y, Ω is minus the angular
    velocity.

    Args:
        frames: One molecule, whole; a box is left out, for it would turn with the frames.
        reference: y, Å.
        masses: m, u.
        scratch: Where many frames are put.

    Returns:
        The frames in the pose of ``reference``, float64.

    Source: Eckart, Phys. Rev. 47, 552 (1935), for the condition; Kabsch for R.
    """

    def moved(few: Tensor, _: slice) -> Tensor:
        rotation, translation = superposition(few.double(), reference, masses)
        return few.double() @ rotation.mT + translation.unsqueeze(-2)

    def turned(few: Tensor, some: slice) -> Tensor:
        rotation, _ = superposition(frames.positions[some].double(), reference, masses)
        return _of_superposed(few.double(), positions[some], rotation, reference, masses)

    positions = scratch.changed(frames.positions, moved, torch.float64)
    velocities = frames.velocities
    if velocities is not None:
        velocities = scratch.changed(velocities, turned, torch.float64)
    notices = frames.notices
    if frames.box is not None:
        message = "the box was left out: it would turn with the molecule"
        notices = (*notices, Notice(code="box-dropped", message=message))
    return replace(frames, positions=positions, velocities=velocities, box=None, notices=notices)


def _of_superposed(
    velocities: Float[Tensor, "frames atoms 3"],
    moved: Float[Tensor, "frames atoms 3"],
    rotation: Float[Tensor, "frames 3 3"],
    reference: Float[Tensor, "atoms 3"],
    masses: Float[Tensor, " atoms"],
) -> Float[Tensor, "frames atoms 3"]:
    """Turn velocities v into v', those of superposed frames."""
    middle = centre(reference, masses)
    x, y = moved - middle, reference - middle
    turned = (velocities - centre(velocities, masses).unsqueeze(-2)) @ rotation.mT
    weighted = y * masses.unsqueeze(-1)
    outer = torch.einsum("fai,aj->fij", x, weighted)
    trace = outer.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    inertia = trace[:, None, None] * torch.eye(3, dtype=x.dtype, device=x.device) - outer
    torque = torch.linalg.cross(turned, weighted.expand_as(turned)).sum(dim=1)
    turning = (torch.linalg.pinv(inertia) @ torque.unsqueeze(-1)).squeeze(-1)
    return turned + torch.linalg.cross(turning.unsqueeze(1).expand_as(x), x)


def centred(
    frames: RecordedFrames, masses: Float[Tensor, " atoms"], scratch: Scratch = MEMORY
) -> RecordedFrames:
    """Take the motion of the common centre of mass away: it stays where the first frame has it.

    Args:
        frames: Whole and unwrapped.
        masses: m, u.
        scratch: Where many frames are put.
    """
    start = centre(frames.positions[:1].double(), masses)

    def moved(few: Tensor, _: slice) -> Tensor:
        return few.double() - (centre(few.double(), masses) - start).unsqueeze(-2)

    def slowed(few: Tensor, _: slice) -> Tensor:
        return few.double() - centre(few.double(), masses).unsqueeze(-2)

    velocities = frames.velocities
    if velocities is not None:
        velocities = scratch.changed(velocities, slowed, torch.float64)
    positions = scratch.changed(frames.positions, moved, torch.float64)
    return replace(frames, positions=positions, velocities=velocities)
