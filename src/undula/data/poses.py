"""Recorded frames in one pose: superposed on their mean structure, or their centre at rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from undula.errors import InputError, Notice
from undula.geometry.frames import centre, superposition
from undula.io.recordings import RecordedFrames

_ROUNDS, _STEADY = 100, 1e-6


def mean_structure(
    moving: Sequence[Float[Tensor, "_ atoms 3"]], masses: Float[Tensor, " atoms"]
) -> Float[Tensor, "atoms 3"]:
    """Compute the mean of frames that are superposed on it.

    Args:
        moving: Frames of one or several recordings, Å.
        masses: Weights of the superposition.

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
            rotation, translation = superposition(frames.double(), before, masses)
            turned = frames.double() @ rotation.mT + translation.unsqueeze(-2)
            mean = mean + turned.sum(dim=0) / count
        if float((mean - before).norm(dim=1).max()) < _STEADY:
            return mean
    raise InputError(f"no mean structure was found in {_ROUNDS} rounds of superposition")


def aligned(
    frames: RecordedFrames, reference: Float[Tensor, "atoms 3"], masses: Float[Tensor, " atoms"]
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

    Returns:
        The frames in the pose of ``reference``, float64.

    Source: Eckart, Phys. Rev. 47, 552 (1935), for the condition; Kabsch for R.
    """
    positions = frames.positions.double()
    rotation, translation = superposition(positions, reference, masses)
    moved = positions @ rotation.mT + translation.unsqueeze(-2)
    velocities = frames.velocities
    if velocities is not None:
        middle = centre(reference, masses)
        x, y = moved[: len(velocities)] - middle, reference - middle
        v = velocities.double()
        turned = (v - centre(v, masses).unsqueeze(-2)) @ rotation[: len(v)].mT
        weighted = y * masses.unsqueeze(-1)
        outer = torch.einsum("fai,aj->fij", x, weighted)
        trace = outer.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        inertia = trace[:, None, None] * torch.eye(3, dtype=v.dtype, device=v.device) - outer
        torque = torch.linalg.cross(turned, weighted.expand_as(turned)).sum(dim=1)
        turning = (torch.linalg.pinv(inertia) @ torque.unsqueeze(-1)).squeeze(-1)
        velocities = turned + torch.linalg.cross(turning.unsqueeze(1).expand_as(x), x)
    notices = frames.notices
    if frames.box is not None:
        message = "the box was left out: it would turn with the molecule"
        notices = (*notices, Notice(code="box-dropped", message=message))
    return replace(frames, positions=moved, velocities=velocities, box=None, notices=notices)


def centred(frames: RecordedFrames, masses: Float[Tensor, " atoms"]) -> RecordedFrames:
    """Take the motion of the common centre of mass away: it stays where the first frame has it."""
    middle = centre(frames.positions.double(), masses)
    positions = frames.positions.double() - (middle - middle[0]).unsqueeze(-2)
    velocities = frames.velocities
    if velocities is not None:
        velocities = velocities.double() - centre(velocities.double(), masses).unsqueeze(-2)
    return replace(frames, positions=positions, velocities=velocities)
