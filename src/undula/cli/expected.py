"""What a forecast from a file would take, told when the file is inspected."""

from __future__ import annotations

from pathlib import Path

from undula.estimates import Estimate
from undula.io.inspection import Inspection
from undula.io.structures import load_structure
from undula.motion.estimates import MotionSize
from undula.motion.estimates import estimate as estimate_motion
from undula.motion.trained import FIRST_PASSES, PASSES_EACH, TIMES_AT_ONCE
from undula.surface.estimates import SurfaceSize, SurfaceWork
from undula.surface.estimates import estimate as estimate_surface
from undula.surface.first_frame import LocalConfig

TIMES = 10
"""For so many times a forecast is estimated."""
LONGEST_WINDOW = 1025
"""Frames of a window that the bundled models take at most."""
FEATURES, NEIGHBOURS = 32, 20.0
"""Of the bundled models of liquids."""


def estimate_for(inspection: Inspection) -> dict[str, Estimate]:
    """Estimate a forecast at ten times from a file, with the defaults and the bundled models.

    Args:
        inspection: What is in the file.

    Returns:
        By family, for those that the file serves: ``surface``, ``motion``.
    """
    found: dict[str, Estimate] = {}
    if "surface" in inspection.families:
        found["surface"] = _of_surface(inspection.path)
    if "motion" in inspection.families:
        found["motion"] = estimate_motion(
            MotionSize(
                atoms=inspection.atoms,
                observed=min(inspection.frames, LONGEST_WINDOW),
                times=TIMES,
                samples=0,
                features=FEATURES,
                neighbours=NEIGHBOURS,
                at_once=TIMES_AT_ONCE,
                states=1,
                passes=FIRST_PASSES + PASSES_EACH * TIMES,
            )
        )
    return found


def _of_surface(path: Path) -> Estimate:
    size = SurfaceSize.of(load_structure(path), LocalConfig())
    return estimate_surface(size, SurfaceWork(times=TIMES))


def told(estimates: dict[str, Estimate]) -> list[str]:
    """Return a line for each family."""
    names = {"surface": "surface", "motion": "atoms"}
    return [
        f"  a forecast of its {names[family]} at {TIMES} times: about {estimate}"
        for family, estimate in estimates.items()
    ]
