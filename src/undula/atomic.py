"""The one way undula writes files: complete under the final name, or not there at all."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from undula.errors import InputError, MachineError, one_line

OWN_PREFIX = ".undula-"
"""With which names begin that are no part of a result."""
TEMPORARY_PREFIX = f"{OWN_PREFIX}tmp-"


def write(path: Path, content: bytes | str) -> str:
    r"""Write a file so that a kill at any moment leaves the old content or the new, never a part.

    Args:
        path: The final name; missing folders are made.
        content: Bytes, or text that is stored as UTF-8. Bytes of a file name that are no UTF-8
            (lone surrogates in Python) become ``\udcff`` and the like, which JSON reads back.

    Returns:
        The SHA-256 of what was written, in hexadecimal.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary name in the folder of a file; what is written there gets the final name.

    The content is synced, then renamed over the target, and the folder is synced. Where the block
    or any of this fails, the old file stands and the temporary one is gone; of a process that was
    killed it stays, until the next writer claims the folder (`undula.locks.claimed`).

    Args:
        path: The final name; missing folders are made.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    # Final names may be as long as the file system allows.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error


def discard(path: Path) -> None:
    """Remove a file, if it is there: the one that names a result whole, before that changes.

    Raises:
        MachineError: It may not be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot remove {path}: {error.strerror or error}") from error


def publish(temporary: Path, path: Path) -> None:
    """Give a file that was written under another name in the same folder its final name.

    Its content is synced before, the folder after. `replacing` does this and tidies up.

    Raises:
        OSError: The place is full, read-only or not allowed; the old file or the new, whole,
            stands under the final name.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> str:
    """Write JSON with a stable layout (sorted keys, no NaN) and return its SHA-256."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return write(path, text + "\n")


def parsed_json(content: bytes | str) -> Any:
    """Return the value of JSON as `write_json` writes it: without NaN and what is infinite.

    Raises:
        ValueError: It is no such JSON, or nested too deeply.
    """

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text} is not finite")
        return value

    try:
        return json.loads(content, parse_constant=number, parse_float=number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: The file is missing, not JSON, or not an object.
    """
    try:
        value = parsed_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object")
    return value


def write_array(path: Path, array: np.ndarray) -> str:
    """Write one array as ``.npy`` (never with pickled objects) and return its SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return write(path, buffer.getvalue())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
