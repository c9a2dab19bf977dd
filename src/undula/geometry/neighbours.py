"""Who is near whom: the nearest points of a set, and pairs of points within a radius.

Only indices come out. Distances and displacements are computed from them where they are needed,
in torch, so that they can be differentiated; nothing here depends on how long a distance is
taken to be, and a periodic box would change the search but no result's form.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from undula.errors import InputError, UsageError

_ROUNDING = 1 + 1e-9
"""Distances that differ by less than this factor may be equal."""


def search_tree(positions: np.ndarray) -> cKDTree:
    """Return scipy's tree of points, built so that it survives flushed denormals.

    Its default form cuts at medians, and beside a median of exactly 0 at the smallest denormal
    number. Where those count as 0 (`torch.set_flush_denormal`, as in training), points of which
    many have a coordinate 0 are then never parted, and the recursion ends the process. Cut in
    the middle, they are; queries find the same.

    Args:
        positions: Points × 3, finite.
    """
    return cKDTree(positions, balanced_tree=False)


def nearest(
    points: Float[Tensor, "n 3"], among: Float[Tensor, "m 3"], count: int
) -> Int[Tensor, "n k"]:
    """Find the nearest few of some points for each of others.

    Args:
        points: Whose neighbours are looked for, Å.
        among: Who can be a neighbour, Å; a point that is also here is its own nearest.
        count: How many are wanted.

    Returns:
        Indices into ``among``, the nearest first, equally near ones in ascending order; as many
        columns as wanted, or as there are points if these are fewer.

    Raises:
        UsageError: A negative number is wanted.
        InputError: A position is not finite.
    """
    if count < 0:
        raise UsageError(f"the number of neighbours should not be negative, it is {count}")
    asking, answering = _finite(points), _finite(among)
    columns = min(count, len(answering))
    if columns == 0 or len(asking) == 0:
        return torch.empty((len(asking), columns), dtype=torch.long, device=points.device)
    tree = search_tree(answering)
    # One more than wanted shows whether the last one was chosen among equals.
    ranks = np.arange(1, min(columns + 1, len(answering)) + 1)
    distance, index = map(np.asarray, tree.query(asking, k=ranks))
    order = np.lexsort((index, distance), axis=1)
    chosen = np.take_along_axis(index, order, axis=1)[:, :columns].astype(np.int64)
    if distance.shape[1] > columns:
        tied = np.nonzero(distance[:, columns] <= distance[:, columns - 1] * _ROUNDING)[0]
        for row in tied:
            reach = distance[row, columns - 1] * _ROUNDING
            within = np.sort(tree.query_ball_point(asking[row], reach))
            away = np.linalg.norm(answering[within] - asking[row], axis=1)
            chosen[row] = within[np.argsort(away, kind="stable")[:columns]]
    return torch.from_numpy(chosen).to(points.device)


def pairs_within(points: Float[Tensor, "n 3"], radius: float) -> Int[Tensor, "2 pairs"]:
    """Find all pairs of points that are at most a radius apart.

    Args:
        points: Positions, Å.
        radius: The largest distance, Å.

    Returns:
        Receiver i and sender j of each pair, both (i, j) and (j, i), never (i, i); sorted by
        i, then by j. Points in the same place are pairs. Memory grows with the number of pairs.

    Raises:
        UsageError: The radius is negative.
        InputError: A position is not finite.
    """
    if not radius >= 0:
        raise UsageError(f"the radius of neighbours should not be negative, it is {radius} Å")
    one_way = search_tree(_finite(points)).query_pairs(radius, output_type="ndarray")
    both = np.concatenate([one_way, one_way[:, ::-1]]).astype(np.int64)
    order = np.argsort(both[:, 0] * len(points) + both[:, 1])
    return torch.from_numpy(np.ascontiguousarray(both[order].T)).to(points.device)


def pairs_to(
    points: Float[Tensor, "n 3"], receivers: Int[Tensor, " some"], radius: float
) -> Int[Tensor, "2 pairs"]:
    """Find the pairs of `pairs_within` that have some points as their receivers.

    Args:
        points: Positions, Å.
        receivers: Which points, ascending.
        radius: The largest distance, Å.

    Returns:
        Receiver i and sender j of each pair, never (i, i); sorted by i, then by j.

    Raises:
        UsageError: The radius is negative.
        InputError: A position is not finite.
    """
    if not radius >= 0:
        raise UsageError(f"the radius of neighbours should not be negative, it is {radius} Å")
    places, rows = _finite(points), receivers.cpu().numpy()
    around = search_tree(places).query_ball_point(places[rows], radius, return_sorted=True)
    i = np.repeat(rows, [len(some) for some in around])
    j = np.concatenate([np.empty(0, np.int64), *(np.array(some, np.int64) for some in around)])
    apart = i != j
    return torch.from_numpy(np.stack([i[apart], j[apart]])).to(points.device)


def closest_pairs(
    pairs: Int[Tensor, "2 pairs"], distances: Float[Tensor, " pairs"], count: int
) -> Int[Tensor, " kept"]:
    """Choose the pairs that lead to the closest few senders of each receiver.

    A pair may be kept one way and not the other, where one point has more neighbours.

    Args:
        pairs: Receiver i and sender j, in any order.
        distances: How far apart each pair is, by whatever measure.
        count: How many senders a receiver keeps at most.

    Returns:
        Which pairs are kept, in the order in which they are given. Of equally distant senders
        those with lower indices are kept.

    Raises:
        UsageError: A negative number is wanted.
    """
    if count < 0:
        raise UsageError(f"the number of neighbours should not be negative, it is {count}")
    receiver, sender = pairs.cpu().numpy()
    order = np.lexsort((sender, distances.detach().cpu().numpy(), receiver))
    sorted_receiver = receiver[order]
    first = np.searchsorted(sorted_receiver, sorted_receiver, side="left")
    kept = np.sort(order[np.arange(len(order)) - first < count])
    return torch.from_numpy(kept).to(pairs.device)


def _finite(points: Float[Tensor, "n 3"]) -> np.ndarray:
    numbers = points.detach().cpu().double().numpy()
    bad = ~np.isfinite(numbers).all(axis=1)
    if bad.any():
        raise InputError(f"point {int(bad.argmax()) + 1} of a search for neighbours is not finite")
    return numbers
