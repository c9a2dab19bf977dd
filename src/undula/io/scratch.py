"""Room on disk for frames that memory should not hold: worked on a few at a time, then let go."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from undula.errors import MachineError

HELD_BYTES = 2**24
"""The most that is held in memory as a whole."""
READ_BYTES = 2**26
"""Positions that are read at once: opening a file anew takes a second."""
WORK_BYTES = 2**23
"""Positions that are worked on at once: doubles and what is between take 15 times as much."""


class Scratch:
    """Tensors of which the large ones lie in a nameless file, gone when the process is.

    Args:
        near: Where there is room: in this folder, or the nearest above it that exists. Without
            one everything is held in memory.
        held_bytes: The most that is held in memory as a whole; by default `HELD_BYTES`.
        read_bytes: Positions that are read at once; by default `READ_BYTES`.
    """

    def __init__(
        self,
        near: Path | None = None,
        *,
        held_bytes: int | None = None,
        read_bytes: int | None = None,
    ) -> None:
        self.held_bytes = HELD_BYTES if held_bytes is None else held_bytes
        self.read_bytes = READ_BYTES if read_bytes is None else read_bytes
        self.near = near and next(
            folder for folder in (near, *near.absolute().parents) if folder.is_dir()
        )
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor whose numbers are not yet set.

        Raises:
            MachineError: The disk is full, or nothing may be written there.
        """
        size = math.prod(shape) * dtype.itemsize
        if self.near is None or size <= self.held_bytes:
            return torch.empty(shape, dtype=dtype)
        try:
            with tempfile.TemporaryFile(dir=self.near) as file:
                # Without this a full disk would end the process when a page is written.
                os.posix_fallocate(file.fileno(), 0, size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise MachineError(
                f"cannot keep {size / 2**30:.3g} GiB of frames in {self.near}: "
                f"{error.strerror or error}"
            ) from error
        self._maps.add(mapped)
        return torch.frombuffer(mapped, dtype=dtype).view(shape)

    def release(self) -> None:
        """Let go of what is in memory of the files; it stays in them."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def changed(
        self,
        frames: Float[Tensor, "frames atoms 3"],
        change: Callable[[Tensor, slice], Tensor],
        dtype: torch.dtype,
    ) -> Float[Tensor, "frames atoms 3"]:
        """Return frames that were changed a few at a time.

        Args:
            frames: What to change.
            change: Given some frames and which they are, in order; returns as many.
            dtype: Of the result.
        """
        found = self.empty(*frames.shape, dtype=dtype)
        for some in parts(frames):
            found[some] = change(frames[some], some).to(dtype)
            self.release()
        return found


MEMORY = Scratch()
"""Holds everything in memory."""


def parts(frames: Shaped[Tensor, "frames ..."], size: int | None = None) -> Iterator[slice]:
    """Split frames so that a part in single precision takes few bytes (`WORK_BYTES`)."""
    step = max(1, (size or WORK_BYTES) // (4 * max(math.prod(frames.shape[1:]), 1)))
    for start in range(0, len(frames), step):
        yield slice(start, min(start + step, len(frames)))
