"""The loop that sorts distances into shells, compiled, of `undula.motion.observables` alone."""

from __future__ import annotations

from typing import no_type_check

import numba


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def count_shells(squared, excluded, edges, before, scale, counts):
    """Add to each frame's counts how many of its distances lie in each shell.

    Args:
        squared: Squared distances; frames × rows × columns.
        excluded: Pairs that do not count; rows × columns.
        edges: Squared edges of the shells, increasing.
        before: Of each of many equal cells from 0 to the last edge, how many edges lie in earlier
            cells: so many are certainly below what lies in it.
        scale: Cells per squared distance.
        counts: Of each frame and shell; a distance on an edge belongs to the outer shell.
    """
    last = edges[-1]
    for frame in range(squared.shape[0]):
        for row in range(squared.shape[1]):
            for column in range(squared.shape[2]):
                value = squared[frame, row, column]
                if not value < last or excluded[row, column]:
                    continue
                place = before[int(value * scale)]
                while edges[place] <= value:
                    place += 1
                if place > 0:
                    counts[frame, place - 1] += 1
