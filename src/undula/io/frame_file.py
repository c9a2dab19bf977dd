"""What every trajectory format offers: how many frames and atoms, and a way to read some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from undula.errors import InputError, Notice

_SEARCH_BLOCK = 2**22


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Some frames as they were read.

    Attributes:
        positions: Å, single precision.
        box: Edge vectors in rows, Å; zeros where a frame has none.
        velocities: Å/ps, or none.
        notices: What is odd about these frames.
    """

    positions: Float[np.ndarray, "frames atoms 3"]
    box: Float[np.ndarray, "frames 3 3"]
    velocities: Float[np.ndarray, "frames atoms 3"] | None = None
    notices: tuple[Notice, ...] = ()


@runtime_checkable
class FrameFile(Protocol):
    """A trajectory file whose headers were all read and found sound."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def atoms(self) -> int:
        """Atoms in every frame."""

    @property
    def times_ps(self) -> np.ndarray | None:
        """Time of each frame as written; none if the format or the writer gives none."""

    @property
    def frames(self) -> int:
        """Number of whole frames."""

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What is odd about the file."""

    def read(self, frames: Int[np.ndarray, " some"], atoms: Int[np.ndarray, " few"]) -> Frames:
        """Read some atoms of some frames, both in the given order."""


@runtime_checkable
class FrameHeader(Protocol):
    """What the walk over a file needs to know of a frame."""

    @property
    def start(self) -> int:
        """Offset of the first byte."""

    @property
    def end(self) -> int:
        """Offset behind the last byte."""


Header = TypeVar("Header", bound=FrameHeader)


def walk(
    path: Path, parse: Callable[[BinaryIO, int], Header | str], signature: Callable[[Header], bytes]
) -> tuple[list[Header], tuple[Notice, ...]]:
    """Read the headers of all frames of a file in which frames follow each other.

    No more is read than the headers, and nothing is allocated by what they claim: a frame has
    to end within the file. What follows the last sound frame is searched for another one. If
    there is one, the middle of the file is damaged; if not, the file was cut or has a tail of
    something else.

    Args:
        path: The file.
        parse: Reads the header at an offset; says what is wrong in words if it cannot be.
        signature: The first bytes that every frame of the file has in common.

    Returns:
        The headers, and a notice if the file was cut or has a tail.

    Raises:
        InputError: There is no whole frame, or a frame in the middle is damaged.
    """
    size = path.stat().st_size
    headers: list[Header] = []
    offset = 0
    with path.open("rb") as file:
        while offset < size:
            header = parse(file, offset)
            problem = header if isinstance(header, str) else ""
            if not isinstance(header, str) and header.end > size:
                problem = "the file ends within the frame"
            if problem:
                break
            assert not isinstance(header, str)
            headers.append(header)
            offset = header.end
        else:
            return headers, ()
        if not headers:
            raise InputError(f"{path}: there is no whole frame: {problem}")
        number = len(headers) + 1
        if _find(file, signature(headers[0]), offset + 1) is not None:
            raise InputError(
                f"{path}: frame {number} (or the end of frame {number - 1}) is damaged: {problem}"
            )
    return headers, (tail_notice(path, len(headers), size - offset),)


def tail_notice(path: Path, frames: int, rest: int) -> Notice:
    """Return the notice for bytes behind the last whole frame."""
    return Notice(
        code="file-cut",
        message=(
            f"{rest} bytes after {frames} whole frames are no frame: the file was cut or has a "
            f"tail; {frames} frames were used"
        ),
        place=str(path),
    )


def _find(file: BinaryIO, pattern: bytes, start: int) -> int | None:
    file.seek(start)
    position, kept = start, b""
    while block := file.read(_SEARCH_BLOCK):
        found = (kept + block).find(pattern)
        if found >= 0:
            return position - len(kept) + found
        position += len(block)
        kept = (kept + block)[-(len(pattern) - 1) :]
    return None


def check_same_atoms(path: Path, counts: Sequence[int]) -> None:
    """Raise where a frame has another number of atoms than the first.

    Raises:
        InputError: The number of the frame and both counts.
    """
    for number, count in enumerate(counts, start=1):
        if count != counts[0]:
            raise InputError(
                f"{path}: frame {number} has {count} atoms, the first frame has {counts[0]}"
            )
