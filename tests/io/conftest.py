"""What the tests of readers share: a way to write a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes lines, or bytes, to a file and returns its path."""

    def written(content: list[str] | bytes, name: str = "a.pdb") -> Path:
        path = tmp_path / name
        text = content if isinstance(content, bytes) else ("\n".join(content) + "\n").encode()
        path.write_bytes(text)
        return path

    return written
