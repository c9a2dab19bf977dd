"""The loops of PaiNN's fused messages, compiled; used by `undula.nn.painn` alone.

All indices are unsigned: a signed one may count from the end in numba, and the loops over
channels are then not vectorised. What belongs to a pair is interpolated from the table again on
the way back, so nothing is kept for a pair but its place in the table.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from undula.nn.compiled import ONE, compiled


@compiled
@no_type_check
def add_messages(
    first,
    last,
    starts,
    senders,
    directions,
    features,
    vectors,
    rows,
    lower,
    part,
    scalar_sums,
    vector_sums,
):
    """Add the messages to the receivers from ``first`` to before ``last``."""
    channels = np.uint64(vectors.shape[2])
    twice = channels + channels
    product = np.empty(rows.shape[1], rows.dtype)
    for i in range(np.uint64(first), np.uint64(last)):
        for pair in range(starts[i], starts[i + ONE]):
            j, low, share = senders[pair], lower[pair], part[pair]
            high = low + ONE
            x, y, z = directions[pair, 0], directions[pair, 1], directions[pair, 2]
            for c in range(twice + channels):
                weight = rows[low, c] + share * (rows[high, c] - rows[low, c])
                product[c] = weight * features[j, c]
            for c in range(channels):
                carried, along = product[channels + c], product[twice + c]
                scalar_sums[i, c] += product[c]
                vector_sums[i, 0, c] += carried * vectors[j, 0, c] + along * x
                vector_sums[i, 1, c] += carried * vectors[j, 1, c] + along * y
                vector_sums[i, 2, c] += carried * vectors[j, 2, c] + along * z


@compiled
@no_type_check
def add_derivatives(
    first,
    last,
    starts,
    senders,
    directions,
    features,
    vectors,
    rows,
    lower,
    part,
    by_scalars,
    by_vectors,
    by_features,
    by_senders,
    by_rows,
):
    """Add the derivatives of a loss by all that made the messages, given those by the sums."""
    channels = np.uint64(vectors.shape[2])
    width = np.uint64(rows.shape[1])
    twice = channels + channels
    product = np.empty(channels, rows.dtype)
    by_product = np.empty(width, rows.dtype)
    for i in range(np.uint64(first), np.uint64(last)):
        for pair in range(starts[i], starts[i + ONE]):
            j, low, share = senders[pair], lower[pair], part[pair]
            high = low + ONE
            x, y, z = directions[pair, 0], directions[pair, 1], directions[pair, 2]
            for c in range(channels):
                by_product[c] = by_scalars[i, c]
            for c in range(channels):
                by_product[channels + c] = (
                    by_vectors[i, 0, c] * vectors[j, 0, c]
                    + by_vectors[i, 1, c] * vectors[j, 1, c]
                    + by_vectors[i, 2, c] * vectors[j, 2, c]
                )
            for c in range(channels):
                by_product[twice + c] = (
                    by_vectors[i, 0, c] * x + by_vectors[i, 1, c] * y + by_vectors[i, 2, c] * z
                )
            for c in range(channels):
                at = channels + c
                weight = rows[low, at] + share * (rows[high, at] - rows[low, at])
                product[c] = weight * features[j, at]
            for k in range(np.uint64(3)):
                for c in range(channels):
                    by_senders[j, k, c] += product[c] * by_vectors[i, k, c]
            for c in range(width):
                weight = rows[low, c] + share * (rows[high, c] - rows[low, c])
                by_features[j, c] += weight * by_product[c]
            for c in range(width):
                whole = features[j, c] * by_product[c]
                upper = share * whole
                by_rows[low, c] += whole - upper
                by_rows[high, c] += upper
