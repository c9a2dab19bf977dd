"""The compact form of a data set's rows: 14 bytes instead of 44.

A row of 11 float32 holds five lengths and two directions (`undula.io.datasets`). Packed, a
length is one of 65,536 steps between the least and the greatest of its frame, and a direction a
pair of int8 on the unfolded octahedron, so that a row is seven int16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, no_type_check

import numba
import numpy as np
from jaxtyping import Float, Float32, Int16

Kind = Literal["surface", "pool"]
LENGTHS: dict[Kind, tuple[int, ...]] = {"surface": (0, 1, 2, 6, 7), "pool": (0, 1, 2, 3, 7)}
"""Columns that hold lengths: a point's coordinates first."""
DIRECTIONS: dict[Kind, tuple[slice, slice]] = {
    "surface": (slice(3, 6), slice(8, 11)),
    "pool": (slice(4, 7), slice(8, 11)),
}
"""Columns that hold a direction of length one."""
_STEPS = 65_535
_EDGE = 127


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """Packed rows of a frame that unpack the part that is asked for.

    Attributes:
        numbers: Five lengths in steps, then two directions; may be memory-mapped.
        least: The value of step −32,768 of each length, Å.
        step: Å; 0 for a length that is the same in all rows.
        kind: Which columns the rows have.
    """

    numbers: Int16[np.ndarray, "rows 7"]
    least: Float[np.ndarray, " 5"]
    step: Float[np.ndarray, " 5"]
    kind: Kind

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | np.ndarray) -> Float32[np.ndarray, "some 11"]:
        """Return some rows (a slice or indices) as they were before, up to rounding."""
        return unpacked(replace(self, numbers=self.numbers[rows]))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows, for `numpy.array` and its like."""
        del copy
        return np.asarray(unpacked(self), dtype=dtype)


def packed(rows: Float[np.ndarray, "rows 11"], kind: Kind) -> PackedRows:
    r"""Pack the rows of one frame.

    A length is rounded by at most half a step: :math:`\Delta / 131{,}070` in a frame where it
    spans Δ, 0.0005 Å for coordinates that span 65 Å. A direction turns by 0.34° on average and
    by at most 0.95°.

    Args:
        rows: Columns as `undula.io.datasets` names them, Å.
        kind: Which columns they are.

    Returns:
        The packed rows, in the same order.
    """
    lengths = rows[:, LENGTHS[kind]].astype(np.float64)
    least, greatest = (
        (lengths.min(axis=0), lengths.max(axis=0)) if len(rows) else (np.zeros(5), np.zeros(5))
    )
    step = (greatest - least) / _STEPS
    numbers = np.empty((len(rows), 7), np.int16)
    numbers[:, :5] = np.rint((lengths - least) / np.where(step > 0, step, 1)) - 32_768
    for column, place in enumerate(DIRECTIONS[kind], start=5):
        numbers[:, column] = octahedral(rows[:, place]).view(np.int16)[:, 0]
    return PackedRows(numbers=numbers, least=least, step=step, kind=kind)


def unpacked(rows: PackedRows) -> Float32[np.ndarray, "rows 11"]:
    """Return packed rows as they were before, up to rounding."""
    result = np.empty((len(rows), 11), np.float32)
    first, second = DIRECTIONS[rows.kind]
    _unpack(
        rows.numbers,
        rows.least,
        rows.step,
        np.array(LENGTHS[rows.kind]),
        (first.start, second.start),
        _directions(),
        result,
    )
    return result


@numba.njit(cache=True, nogil=True, error_model="numpy")
@no_type_check
def _unpack(numbers, least, step, lengths, places, directions, result):
    """Fill the columns of the lengths, and from each of two places on those of a direction."""
    for row in range(len(numbers)):
        for column in range(5):
            steps = numbers[row, column] + 32_768
            result[row, lengths[column]] = least[column] + step[column] * steps
        for which in range(2):
            pair = numbers[row, 5 + which] & 0xFFFF
            for axis in range(3):
                result[row, places[which] + axis] = directions[pair, axis]


def octahedral(directions: Float[np.ndarray, "n 3"]) -> np.ndarray:
    r"""Round unit vectors to a lattice on the octahedron :math:`|x| + |y| + |z| = 1`.

    The upper half is seen from above; the faces of the lower half are folded outward over the
    edges of the square.

    Args:
        directions: Of length one.

    Returns:
        Two int8 per direction, each from −127 to 127.

    Source: Cigolle et al., A survey of efficient representations for independent unit vectors
    (2014), §3.1 ("oct16").
    """
    flat = directions / np.abs(directions).sum(axis=1, keepdims=True)
    sign = np.where(flat[:, :2] < 0, -1, 1)
    folded = (1 - np.abs(flat[:, 1::-1])) * sign
    square = np.where(flat[:, 2:] < 0, folded, flat[:, :2])
    return np.rint(_EDGE * square).astype(np.int8)


def from_octahedral(numbers: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Return the unit vectors of what `octahedral` returned."""
    square = numbers / _EDGE
    height = 1 - np.abs(square).sum(axis=1, keepdims=True)
    below = np.maximum(-height, 0)
    vectors = np.concatenate((square - np.where(square < 0, -below, below), height), axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@cache
def _directions() -> Float32[np.ndarray, "65536 3"]:
    """Return the direction of every pair of int8, at the pair read as a uint16."""
    pairs = np.arange(65_536, dtype=np.uint16).view(np.int8).reshape(-1, 2)
    return from_octahedral(pairs).astype(np.float32)
