"""What the compiled loops over the pairs of a graph share: when they serve, and their threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from undula.errors import UsageError

Result = TypeVar("Result")

Form = Literal["auto", "plain", "fused"]
"""How to compute messages; "auto" is "fused" on a CPU and "plain" elsewhere."""


def fuses(form: Form, like: Tensor, network: str) -> bool:
    """Tell whether messages are to be computed by a compiled loop.

    Args:
        form: See `Form`.
        like: Has the device and the dtype of the pairs.
        network: Its name, for the message.

    Raises:
        UsageError: The form cannot serve this device or dtype.
    """
    device, dtype = like.device, like.dtype
    if form == "auto":
        return device.type == "cpu"
    if form == "fused" and (device.type != "cpu" or dtype not in (torch.float32, torch.float64)):
        raise UsageError(
            f'the form "fused" of {network} needs float32 or float64 on a CPU, not '
            f'{dtype} on {device}; choose "auto" or "plain"'
        )
    return form == "fused"


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
