"""Arrays of others: ``.npy`` files and ``.npz`` archives, never with pickled objects.

numpy raises many kinds of errors for damaged headers and believes sizes that are promised; here
all of them are one, and nothing is unpacked that does not fit its promise.
"""

from __future__ import annotations

import io
import tokenize
import warnings
from pathlib import Path

import numpy as np

from undula.errors import InputError, one_line
from undula.io.archives import ArchiveLimits, read_members

DAMAGE = (OSError, ValueError, TypeError, EOFError, SyntaxError, OverflowError, tokenize.TokenError)
"""What numpy raises for a damaged array."""
LARGEST_ARCHIVE = 8 * 2**30
"""Bytes of all arrays of an archive, unpacked; 250,000 frames of 1,000 atoms in two bytes."""
_ENDING = ".npy"


def load_array(path: Path) -> np.ndarray:
    """Map an ``.npy`` file into memory.

    Raises:
        InputError: It is missing, damaged, cut, longer than promised, or holds pickled objects.
    """
    try:
        with warnings.catch_warnings():
            # numpy warns of headers that it takes for those of Python 2.
            warnings.simplefilter("error", UserWarning)
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except (*DAMAGE, UserWarning) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(stored, np.memmap):
        raise InputError(f"{path} is no array, but an archive of some")
    if stored.offset + stored.nbytes != path.stat().st_size:
        raise InputError(f"{path} is damaged: it is longer than its header promises")
    return stored.view(np.ndarray)


def load_archive(path: Path, limits: ArchiveLimits | None = None) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` archive.

    Raises:
        InputError: It is no archive, unsafe (`undula.io.archives`), too large, damaged, or holds
            something else than plain arrays.
    """
    found = {}
    for name, content in read_members(path, limits or ArchiveLimits(total=LARGEST_ARCHIVE)):
        if not name.endswith(_ENDING):
            raise InputError(f"{path} holds {name}, which is no array")
        try:
            found[name.removesuffix(_ENDING)] = _array(content)
        except (*DAMAGE, UserWarning) as error:
            raise InputError(f"{path}: {name} is no plain array: {one_line(error)}") from error
    return found


def _array(content: bytes) -> np.ndarray:
    """Read an array whose header promises just what is there."""
    file = io.BytesIO(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        major, minor = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        if minor or major not in read:
            raise ValueError(f"it has the format {major}.{minor}")
        shape, by_columns, kind = read[major](file)
    if kind.hasobject:
        raise ValueError("it holds pickled objects, which are never opened")
    count = 1
    for length in shape:
        count *= length
    if len(content) - file.tell() != count * kind.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"it promises {count} numbers in {len(content) - file.tell()} bytes")
    values = np.frombuffer(content, dtype=kind, count=count, offset=file.tell())
    return values.reshape(shape, order="F" if by_columns else "C")
