"""What an earlier forecast left in a result folder: removed before another takes its place."""

from __future__ import annotations

from pathlib import Path

from undula import atomic

_EXPORTS = (
    "forecast.json",
    "report.json",
    "evaluation.json",
    "index.html",
    "surface.html",
    "surface.json",
    "surface.csv",
    "surface.md",
    "scores.csv",
    "scores.md",
    "score.png",
    "strip.png",
    "calibration.png",
    "now.pdb",
    "mean.xtc",
    "sample-*.xtc",
    "forecast.pdb",
    "meshes/mesh-*.ply",
)


def discard_earlier(folder: Path) -> None:
    """Remove the exports and scores of an earlier forecast, first the file that names it whole.

    What was made of other weights or for other times would otherwise stand beside the new
    forecast as if it were its own.

    Args:
        folder: The result folder; need not exist.

    Raises:
        MachineError: A file may not be removed.
    """
    for pattern in _EXPORTS:
        for path in sorted(folder.glob(pattern)):
            atomic.discard(path)
