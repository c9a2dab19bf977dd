"""Local alignment of amino acid sequences, for where no MMseqs2 is: small sets only."""

from __future__ import annotations

from math import exp
from typing import NamedTuple, no_type_check

import numba
import numpy as np
from jaxtyping import Int

LETTERS = "ARNDCQEGHILKMFPSTWYV"
"""The order of the matrix. Every other letter is unknown: it scores −1 and is never identical."""

_BLOSUM62 = """
 4
-1  5
-2  0  6
-2 -2  1  6
 0 -3 -3 -3  9
-1  1  0  0 -3  5
-1  0  0  2 -4  2  5
 0 -2  0 -1 -3 -2 -2  6
-2  0  1 -1 -3  0  0 -2  8
-1 -3 -3 -3 -1 -3 -3 -4 -3  4
-1 -2 -3 -4 -1 -2 -3 -4 -3  2  4
-1  2  0 -1 -3  1  1 -2 -1 -3 -2  5
-1 -1 -2 -3 -1  0 -2 -3 -2  1  2 -1  5
-2 -3 -3 -3 -2 -3 -3 -3 -1  0  0 -3  0  6
-1 -2 -2 -1 -3 -1 -1 -2 -2 -3 -3 -1 -2 -4  7
 1 -1  1  0 -1  0  0  0 -1 -2 -2  0 -1 -2 -1  4
 0 -1  0 -1 -1 -1 -1 -2 -2 -1 -1 -1 -1 -2 -1  1  5
-3 -3 -4 -4 -2 -2 -3 -2 -2 -3 -2 -3 -1  1 -4 -3 -2 11
-2 -2 -2 -3 -2 -1 -2 -3  2 -1 -1 -2 -1  3 -3 -2 -2  2  7
 0 -3 -3 -3 -1 -2 -2 -3 -3  3  1 -2  1 -1 -2 -2  0 -3 -1  4
"""

GAP_OPEN, GAP_EXTEND = 11, 1
"""A gap of n letters costs GAP_OPEN + (n − 1) GAP_EXTEND, the definition of MMseqs2."""
LAMBDA, K = 0.267, 0.041
"""Karlin–Altschul parameters of BLOSUM62 with gap costs 11 and 1 (NCBI BLAST)."""


_UNKNOWN = len(LETTERS)
_NEVER = -(1 << 40)


def _matrix() -> Int[np.ndarray, "21 21"]:
    scores = np.full((_UNKNOWN + 1, _UNKNOWN + 1), -1, dtype=np.int64)
    for row, line in enumerate(_BLOSUM62.split("\n")[1:-1]):
        values = [int(value) for value in line.split()]
        scores[row, : row + 1] = values
        scores[: row + 1, row] = values
    return scores


BLOSUM62 = _matrix()
"""Scores in half bits (Henikoff and Henikoff, 1992), the unknown letter last."""


class Alignment(NamedTuple):
    """The best local alignment of two sequences; spans are half-open, counted from 0.

    Attributes:
        score: In the matrix's unit; 0 if nothing is similar.
        matches: Columns with the same known letter twice.
        columns: All columns, those with a gap included.
        first_start: Where it begins in the first sequence.
        first_end: Behind its last letter there.
        second_start: Where it begins in the second sequence.
        second_end: Behind its last letter there.
    """

    score: int
    matches: int
    columns: int
    first_start: int
    first_end: int
    second_start: int
    second_end: int

    @property
    def identity(self) -> float:
        """Matches among all columns, gaps included; 0 if there are none."""
        return self.matches / self.columns if self.columns else 0.0


def letter_numbers(sequence: str) -> Int[np.ndarray, " letters"]:
    """Return the row of `BLOSUM62` for each letter; U counts as C and O as K."""
    number = {letter: i for i, letter in enumerate(LETTERS)}
    number |= {"U": number["C"], "O": number["K"]}
    return np.array([number.get(letter, _UNKNOWN) for letter in sequence], dtype=np.int64)


def local_alignment(first: Int[np.ndarray, " n"], second: Int[np.ndarray, " m"]) -> Alignment:
    r"""Compute the best local alignment of two sequences under affine gap costs.

    .. math::
        H_{ij} = \max(0, \; H_{i-1,j-1} + s(a_i, b_j), \; E_{ij}, \; F_{ij}), \quad
        E_{ij} = \max(E_{i,j-1} - 1, \; H_{i,j-1} - 11)

    and F as E along i. Memory grows with m only: each cell carries matches, columns and start of
    its best path instead of a trace. Of equally good alignments, the first to end is returned.

    Args:
        first: Of `letter_numbers`.
        second: Of `letter_numbers`.

    Returns:
        The alignment; swapping the sequences swaps its spans, or gives one equally good.

    Source: Smith and Waterman (1981), Gotoh (1982).
    """
    score, count, start, i, j = _align(first, second, BLOSUM62, GAP_OPEN, GAP_EXTEND)
    if score == 0:
        return Alignment(0, 0, 0, 0, 0, 0, 0)
    low = (1 << 32) - 1
    return Alignment(score, count >> 32, count & low, start >> 32, i + 1, start & low, j + 1)


def expectation(score: int, query: int, searched: int) -> float:
    r"""Return how many alignments of such a score to expect by chance.

    .. math:: E = K \, m \, n \, e^{-\lambda S}

    Args:
        score: S.
        query: Letters m of the query.
        searched: Letters n of all sequences that are searched.

    Source: Karlin and Altschul (1990), with the gapped parameters; no correction for ends.
    """
    return K * query * searched * exp(-LAMBDA * score)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _align(first, second, matrix, gap_open, gap_extend):
    """Return score, count, start and last letters of the best path; row by row.

    Two numbers are one: a count is matches and columns, a start its place in each sequence.
    """
    width = len(second)
    above, above_count, above_start = _paths(width, 0)
    vertical, vertical_count, vertical_start = _paths(width, _NEVER)
    best, best_count, best_start, best_i, best_j = 0, 0, 0, 0, 0
    for i in range(len(first)):
        diagonal, diagonal_count, diagonal_start = 0, 0, 0
        left, left_count, left_start = 0, 0, 0
        horizontal, horizontal_count, horizontal_start = _NEVER, 0, 0
        for j in range(width):
            up, up_count, up_start = above[j], above_count[j], above_start[j]
            if up - gap_open >= vertical[j] - gap_extend:
                vertical[j], vertical_count[j], vertical_start[j] = (
                    up - gap_open,
                    up_count,
                    up_start,
                )
            else:
                vertical[j] -= gap_extend
            vertical_count[j] += 1
            if left - gap_open >= horizontal - gap_extend:
                horizontal, horizontal_count = left - gap_open, left_count
                horizontal_start = left_start
            else:
                horizontal -= gap_extend
            horizontal_count += 1
            if diagonal == 0:
                diagonal_count, diagonal_start = 0, (i << 32) | j
            left = diagonal + matrix[first[i], second[j]]
            left_count, left_start = diagonal_count + 1, diagonal_start
            if first[i] == second[j] and first[i] < _UNKNOWN:
                left_count += 1 << 32
            if vertical[j] > left:
                left, left_count, left_start = vertical[j], vertical_count[j], vertical_start[j]
            if horizontal > left:
                left, left_count, left_start = horizontal, horizontal_count, horizontal_start
            left = max(left, 0)
            if left > best:
                best, best_count, best_start, best_i, best_j = left, left_count, left_start, i, j
            above[j], above_count[j], above_start[j] = left, left_count, left_start
            diagonal, diagonal_count, diagonal_start = up, up_count, up_start
    return best, best_count, best_start, best_i, best_j


@numba.njit(cache=True, nogil=True)
@no_type_check
def _paths(width, score):
    """Return a row of scores, of counts and of starts."""
    return (
        np.full(width, score, dtype=np.int64),
        np.zeros(width, dtype=np.int64),
        np.zeros(width, dtype=np.int64),
    )
