"""The loops of EGNN's fused messages, compiled; used by `undula.nn.egnn` alone.

Indices are unsigned, and the gate has no exponential, so that all loops over channels are
vectorised. What belongs to a pair is computed again on the way back: nothing is kept for a pair
but its place in the table.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from undula.nn.compiled import ONE, compiled, inlined


@inlined
@no_type_check
def _heard(i, j, c, x, y, z, low, share, here, there, carried, rows):
    """Return q of a pair and a channel: what its gate decides on."""
    weight = rows[low, c] + share * (rows[low + ONE, c] - rows[low, c])
    nearer = (
        x * (carried[j, 0, c] - carried[i, 0, c])
        + y * (carried[j, 1, c] - carried[i, 1, c])
        + z * (carried[j, 2, c] - carried[i, 2, c])
    )
    return here[i, c] + there[j, c] + weight + nearer


@compiled
@no_type_check
def add_messages(
    first,
    last,
    starts,
    senders,
    directions,
    fading,
    here,
    there,
    carried,
    rows,
    lower,
    part,
    heard,
    pushed,
):
    """Add the messages to the receivers from ``first`` to before ``last``."""
    channels = np.uint64(rows.shape[1])
    one = np.ones(1, rows.dtype)[0]
    half = one / (one + one)
    message = np.empty(rows.shape[1], rows.dtype)
    for i in range(np.uint64(first), np.uint64(last)):
        for pair in range(starts[i], starts[i + ONE]):
            j, low, share = senders[pair], lower[pair], part[pair]
            x, y, z = directions[pair, 0], directions[pair, 1], directions[pair, 2]
            fade = half * fading[pair]
            for c in range(channels):
                q = _heard(i, j, c, x, y, z, low, share, here, there, carried, rows)
                message[c] = fade * (q + q * (q / np.sqrt(one + q * q)))
            for c in range(channels):
                heard[i, c] += message[c]
                pushed[i, 0, c] += x * message[c]
                pushed[i, 1, c] += y * message[c]
                pushed[i, 2, c] += z * message[c]


@compiled
@no_type_check
def add_derivatives(
    first,
    last,
    starts,
    senders,
    directions,
    fading,
    here,
    there,
    carried,
    rows,
    lower,
    part,
    by_heard,
    by_pushed,
    by_here,
    by_there,
    by_carried,
    by_rows,
):
    """Add the derivatives of a loss by all that made the messages, given those by the sums."""
    channels = np.uint64(rows.shape[1])
    one = np.ones(1, rows.dtype)[0]
    two = one + one
    by = np.empty(rows.shape[1], rows.dtype)
    for i in range(np.uint64(first), np.uint64(last)):
        for pair in range(starts[i], starts[i + ONE]):
            j, low, share = senders[pair], lower[pair], part[pair]
            high = low + ONE
            x, y, z = directions[pair, 0], directions[pair, 1], directions[pair, 2]
            fade = fading[pair] / two
            for c in range(channels):
                q = _heard(i, j, c, x, y, z, low, share, here, there, carried, rows)
                t = q / np.sqrt(one + q * q)
                by_message = (
                    by_heard[i, c]
                    + x * by_pushed[i, 0, c]
                    + y * by_pushed[i, 1, c]
                    + z * by_pushed[i, 2, c]
                )
                by[c] = fade * (one + two * t - t * t * t) * by_message
            for c in range(channels):
                by_here[i, c] += by[c]
                by_there[j, c] += by[c]
            for c in range(channels):
                by_carried[j, 0, c] += x * by[c]
                by_carried[j, 1, c] += y * by[c]
                by_carried[j, 2, c] += z * by[c]
            for c in range(channels):
                by_carried[i, 0, c] -= x * by[c]
                by_carried[i, 1, c] -= y * by[c]
                by_carried[i, 2, c] -= z * by[c]
            for c in range(channels):
                upper = share * by[c]
                by_rows[low, c] += by[c] - upper
                by_rows[high, c] += upper
