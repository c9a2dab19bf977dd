"""The loops of the fused messages, compiled; used by `undula.nn.messages` alone.

A path (l, λ, L) is split into *strands*, one for each component of the feature, and a strand into
*terms*, one for each component of the message that it adds to:

- ``strands``: where the component's channels begin in a row of features, where the path's
  weights begin in a row of weights, how many channels there are, and the first term; the last
  row only ends the terms;
- ``terms``: where the message's channels begin in a row of messages, and the first coefficient;
  the last row only ends the coefficients;
- ``components``, ``coefficients``: a term multiplies by the sum of coefficients times
  components of the harmonics.

All indices are unsigned: a signed one may count from the end in numba, and the loops over
channels are then not vectorised (four times slower).
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from undula.nn.compiled import ONE, compiled, inlined


@inlined
@no_type_check
def _prepare(row, place, share, sender, receivers, senders, rows, feature, weight):
    """Write the features and the weights of one pair."""
    for c in range(np.uint64(len(feature))):
        feature[c] = receivers[row, c] + senders[sender, c]
    above = place + ONE
    for c in range(np.uint64(len(weight))):
        weight[c] = rows[place, c] + share * (rows[above, c] - rows[place, c])


@inlined
@no_type_check
def _turn(pair, harmonics, terms, components, coefficients, turned):
    """Write what each term multiplies by."""
    for term in range(np.uint64(len(turned))):
        value = harmonics.dtype.type(0)
        for k in range(terms[term, 1], terms[term + ONE, 1]):
            value += coefficients[k] * harmonics[pair, components[k]]
        turned[term] = value


@compiled
@no_type_check
def add_messages(
    first,
    last,
    starts,
    sender_of,
    harmonics,
    receivers,
    senders,
    rows,
    lower,
    part,
    strands,
    terms,
    components,
    coefficients,
    sums,
):
    """Add the messages to the receivers from ``first`` to before ``last``."""
    feature = np.empty(receivers.shape[1], receivers.dtype)
    weight = np.empty(rows.shape[1], receivers.dtype)
    weighted = np.empty_like(feature)
    turned = np.empty(len(terms) - 1, receivers.dtype)
    for i in range(np.uint64(first), np.uint64(last)):
        for pair in range(starts[i], starts[i + ONE]):
            _prepare(
                i,
                lower[pair],
                part[pair],
                sender_of[pair],
                receivers,
                senders,
                rows,
                feature,
                weight,
            )
            _turn(pair, harmonics, terms, components, coefficients, turned)
            for strand in range(np.uint64(len(strands) - 1)):
                x, w, channels = strands[strand, 0], strands[strand, 1], strands[strand, 2]
                for c in range(channels):
                    weighted[c] = weight[w + c] * feature[x + c]
                for term in range(strands[strand, 3], strands[strand + ONE, 3]):
                    y, factor = terms[term, 0], turned[term]
                    for c in range(channels):
                        sums[i, y + c] += factor * weighted[c]


@compiled
@no_type_check
def add_derivatives(
    first,
    last,
    starts,
    sender_of,
    harmonics,
    receivers,
    senders,
    rows,
    lower,
    part,
    strands,
    terms,
    components,
    coefficients,
    by_sums,
    by_receivers,
    by_senders,
    by_rows,
):
    """Add the derivatives of a loss by all that made the messages, given those by the sums."""
    feature = np.empty(receivers.shape[1], receivers.dtype)
    weight = np.empty(rows.shape[1], receivers.dtype)
    by_feature, towards = np.empty_like(feature), np.empty_like(feature)
    by_weight = np.empty_like(weight)
    turned = np.empty(len(terms) - 1, receivers.dtype)
    for i in range(np.uint64(first), np.uint64(last)):
        for pair in range(starts[i], starts[i + ONE]):
            place, share, j = lower[pair], part[pair], sender_of[pair]
            _prepare(i, place, share, j, receivers, senders, rows, feature, weight)
            _turn(pair, harmonics, terms, components, coefficients, turned)
            by_feature[:] = 0
            by_weight[:] = 0
            for strand in range(np.uint64(len(strands) - 1)):
                x, w, channels = strands[strand, 0], strands[strand, 1], strands[strand, 2]
                for c in range(channels):
                    towards[c] = 0
                for term in range(strands[strand, 3], strands[strand + ONE, 3]):
                    y, factor = terms[term, 0], turned[term]
                    for c in range(channels):
                        towards[c] += factor * by_sums[i, y + c]
                for c in range(channels):
                    by_feature[x + c] += weight[w + c] * towards[c]
                    by_weight[w + c] += feature[x + c] * towards[c]
            for c in range(np.uint64(len(feature))):
                by_receivers[i, c] += by_feature[c]
                by_senders[j, c] += by_feature[c]
            above = place + ONE
            for c in range(np.uint64(len(weight))):
                upper = share * by_weight[c]
                by_rows[above, c] += upper
                by_rows[place, c] += by_weight[c] - upper
