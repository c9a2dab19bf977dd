"""The one way undula writes files: complete under the final name, or not there at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from undula.errors import MachineError

TEMPORARY_PREFIX = ".undula-tmp-"


def write(path: Path, content: bytes | str) -> str:
    """Write a file so that a kill at any moment leaves the old content or the new, never a part.

    A temporary file in the same folder is written, flushed and synced, then renamed over the
    target, and the folder is synced.

    Args:
        path: The final name; missing folders are made.
        content: Bytes, or text that is stored as UTF-8.

    Returns:
        The SHA-256 of what was written, in hexadecimal.

    Raises:
        MachineError: The place is full, read-only or not allowed.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error
    return hashlib.sha256(data).hexdigest()


def publish(temporary: Path, path: Path) -> None:
    """Give a file that was written under another name in the same folder its final name.

    Its content is synced before, the folder after. For what is too large for `write`.

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


def write_array(path: Path, array: np.ndarray) -> str:
    """Write one array as ``.npy`` (never with pickled objects) and return its SHA-256."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return write(path, buffer.getvalue())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
