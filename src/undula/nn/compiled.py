"""What the compiled loops over the pairs of a graph share: how, when and in which threads they run.

Numba keeps a compiled function for as long as its own file stays: after a change of `compiled`
or `inlined`, touch the files of the loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Literal, TypeVar

import numba
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from undula.errors import UsageError
from undula.nn.atom_graph import AtomGraph

Result = TypeVar("Result")

Form = Literal["auto", "plain", "fused"]
"""How to compute messages; "auto" is "fused" on a CPU and "plain" elsewhere."""

# Sums may be reordered; infinities and NaN stay what they are, so that they can be found.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
"""Compiles a loop over pairs."""
inlined = numba.njit(nogil=True, error_model="numpy", fastmath=_FAST, forceinline=True)
"""Compiles what such a loop, in the same file, does for a pair or a channel."""
ONE = np.uint64(1)
"""Indices are unsigned: see `undula.nn.painn_kernels`."""


def fuses(form: Form, like: Tensor, network: str) -> bool:
    """Tell whether messages are to be computed by a compiled loop.

    Args:
        form: See `Form`.
        like: Has the device and the dtype of the pairs.
        network: Its name, for the message.

    Raises:
        UsageError: The form cannot serve this device or dtype.
    """
    if form == "auto":
        return like.device.type == "cpu"
    if form == "fused":
        check_fused(like, network)
    return form == "fused"


def check_fused(like: Tensor, network: str) -> None:
    """Refuse a device or a dtype that a compiled loop cannot serve.

    Raises:
        UsageError: It is another than float32 or float64 on a CPU.
    """
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        raise UsageError(
            f'the form "fused" of {network} needs float32 or float64 on a CPU, not '
            f'{like.dtype} on {like.device}; choose "auto" or "plain"'
        )


def in_parts(
    work: Callable[[int, int], Result], starts: Int[Tensor, " starts"], least: int
) -> list[Result]:
    """Call a function for consecutive receivers with equally many pairs, one part a thread.

    Args:
        work: Takes the first receiver and the one after the last.
        starts: Where the pairs of each receiver begin, and the number of pairs.
        least: Pairs below which a second thread costs more than it saves.

    Returns:
        What it returned, part by part.
    """
    pairs = int(starts[-1])
    parts = max(1, min(torch.get_num_threads(), pairs // least))
    goals = torch.arange(1, parts) * pairs // parts
    ends = [0, *torch.searchsorted(starts, goals).tolist(), len(starts) - 1]
    if parts == 1:
        return [work(*ends)]
    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(work, ends[:-1], ends[1:]))


def added_in_parts(
    add: Callable[..., None], starts: Int[Tensor, " starts"], least: int, like: Sequence[Tensor]
) -> list[Tensor]:
    """Let a loop add to arrays that its parts cannot share, and sum those of all parts.

    Args:
        add: Takes the first receiver, the one after the last, and an array of zeros for each
            of ``like``.
        starts: As `in_parts`.
        least: As `in_parts`.
        like: Have the shapes and dtypes of the arrays.

    Returns:
        The sums, in the order of the parts.
    """

    def work(first: int, last: int) -> list[Tensor]:
        made = [torch.zeros(one.shape, dtype=one.dtype) for one in like]
        add(first, last, *(one.numpy() for one in made))
        return made

    parts = zip(*in_parts(work, starts, least), strict=True)
    return [reduce(Tensor.add_, some) for some in parts]


def pair_arrays(graph: AtomGraph, tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Return what a loop over the pairs of a graph takes, its indices unsigned.

    Args:
        graph: Who hears whom.
        tensors: What else; the last two are the places of the pairs in a table, and the parts of
            the row above (`undula.nn.radial.RadialWeights`).
    """
    *others, lower, part = (one.detach().contiguous().numpy() for one in tensors)
    return [
        graph.starts.numpy().view(np.uint64),
        graph.senders.numpy().view(np.uint64),
        graph.directions.numpy(),
        *others,
        lower.view(np.uint64),
        part,
    ]
