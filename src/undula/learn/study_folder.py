"""The folders of a study: where its runs and scores lie, and how long things took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from undula import atomic
from undula.learn.progress import Progress, silent


@dataclass(eq=False, kw_only=True)
class StudyFolder:
    """Where a study trains and what it keeps.

    Attributes:
        runs: Where the run folders lie.
        out: Where scores and times go.
        progress: Makes a listener for a training.
        say: Told what comes next, in one line.
        keeps_times: Whether ``times.json`` is written: not by one process of several.
        seconds: What took how long.
    """

    runs: Path
    out: Path
    progress: Callable[[], Progress]
    say: Callable[[str], None] = silent
    keeps_times: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    def took(self, seconds: Mapping[str, float]) -> None:
        """Note what took how long, s, at once in ``times.json``."""
        self.seconds.update({name: round(value, 3) for name, value in seconds.items()})
        if not self.seconds or not self.keeps_times:
            return
        path = self.out / "times.json"
        known = atomic.read_json(path)["seconds"] if path.is_file() else {}
        atomic.write_json(path, {"seconds": known | self.seconds})

    def kept(
        self, name: str, asked: Mapping[str, Any], made: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return scores from their file if they are of what is asked for; or make them.

        Args:
            name: Of the scores, with slashes between folders.
            asked: All that they depend on, as plain values.
            made: Makes them.

        Returns:
            The scores as they are read from the file, in the same order each time.
        """
        path = self.out / "scores" / f"{name}.json"
        if path.is_file():
            known = atomic.read_json(path)
            if known.get("of") == asked:
                return dict(known["scores"])
        began = time.perf_counter()
        scores = made()
        self.took({f"score {name}": time.perf_counter() - began})
        atomic.write_json(path, {"of": asked, "scores": scores})
        return dict(atomic.read_json(path)["scores"])
