"""Points on, near and around a surface, and points far from each other."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError
from undula.geometry.neighbours import search_tree

LOCAL_PER_UNIFORM = {"paper": 1, "dsr": 8}
"""How many points near the surface the two readings of D draw for each uniform one."""


def local_scale(points: Float[Tensor, "n 3"], neighbour: int = 50) -> Float[Tensor, " n"]:
    """Compute how far the 50th neighbour of each point is: the σ of sampling around it.

    Args:
        points: On a surface, Å.
        neighbour: Which neighbour; a point is not its own.

    Returns:
        Distances, Å. Where there are fewer neighbours, that of the farthest; 0 for one point.

    Source: DSR's code, after IGR.
    """
    if len(points) == 0:
        return points.new_zeros(0)
    cloud = points.detach().cpu().double().numpy()
    rank = min(neighbour + 1, len(cloud))
    distance, _ = search_tree(cloud).query(cloud, k=[rank])
    return torch.from_numpy(np.asarray(distance)[:, 0]).to(points)


def near_surface(
    points: Float[Tensor, "n 3"], scale: Float[Tensor, " n"], generator: torch.Generator
) -> Float[Tensor, "n 3"]:
    """Draw one point from a Gaussian around each surface point.

    Args:
        points: On the surface, Å.
        scale: Standard deviation σ along each axis for each point, Å.
        generator: Of all draws.
    """
    noise = torch.randn(
        points.shape, generator=generator, dtype=points.dtype, device=generator.device
    )
    return points + scale[:, None] * noise.to(points)


def uniform_in_box(
    low: Float[Tensor, " 3"], high: Float[Tensor, " 3"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3"]:
    """Draw points uniformly in a box between two corners, Å."""
    share = torch.rand((count, 3), generator=generator, dtype=low.dtype, device=generator.device)
    return low + (high - low) * share.to(low)


def around_surface(
    points: Float[Tensor, "n 3"],
    scale: Float[Tensor, " n"],
    low: Float[Tensor, " 3"],
    high: Float[Tensor, " 3"],
    generator: torch.Generator,
    *,
    reading: Literal["paper", "dsr"],
) -> Float[Tensor, "m 3"]:
    r"""Draw from the distribution D on which the eikonal term is enforced.

    .. math:: D = \tfrac12 \, U(\Omega)
        + \tfrac12 \, \tfrac1N \sum_i \mathcal{N}(x_i, \sigma_i^2)

    ===========  ==================  ==============================================
    reading      near : uniform      source
    ===========  ==================  ==============================================
    ``"paper"``  1 : 1               MoE-DSR: "the average of" both
    ``"dsr"``    8 : 1               DSR's code: N near and ⌊N/8⌋ uniform
    ===========  ==================  ==============================================

    Args:
        points: On the surface, x, Å.
        scale: σ of each point, usually `local_scale`, Å.
        low: Corner of the box Ω, Å.
        high: The opposite corner, Å.
        generator: Of all draws.
        reading: Which of the two mixtures.

    Returns:
        One point near each surface point, in their order, then the uniform ones.
    """
    near = near_surface(points, scale, generator)
    count = len(points) // LOCAL_PER_UNIFORM[reading]
    return torch.cat([near, uniform_in_box(low, high, count, generator).to(near)])


def farthest_points(
    points: Float[Tensor, "n 3"], count: int, *, start: int = 0
) -> Int[Tensor, " count"]:
    """Choose points that are far from each other, each the farthest from those before it.

    The largest gap that is left is at most twice the least possible for so many points.
    Time grows as points × count.

    Args:
        points: To choose from, Å.
        count: How many.
        start: The first one.

    Returns:
        Indices without repetition, in the order of choice; the first m of them are the choice
        for m points.

    Raises:
        InputError: There are fewer points than wanted.

    Source: Gonzalez, Theor. Comput. Sci. 38, 293 (1985).
    """
    if count > len(points):
        raise InputError(f"cannot choose {count} points of {len(points)}")
    cloud = np.ascontiguousarray(points.detach().cpu().double().numpy().T)
    chosen = np.zeros(count, dtype=np.int64)
    gap = np.full(len(points), np.inf)
    for rank in range(count):
        chosen[rank] = start if rank == 0 else gap.argmax()
        from_last = cloud - cloud[:, chosen[rank], None]
        np.minimum(gap, np.einsum("an,an->n", from_last, from_last), out=gap)
        gap[chosen[rank]] = -1
    return torch.from_numpy(chosen).to(points.device)
