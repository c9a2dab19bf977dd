"""undula: continuous-time forecasting of molecular motion.

The names below are loaded when first used, so that ``import undula`` is quick and starts nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undula.data.prepare import prepare
    from undula.errors import InputError, MachineError, Notice, UndulaError, UsageError
    from undula.forecasts import evaluate, export, forecast, load_trained
    from undula.io.datasets import open_dataset
    from undula.io.inspection import inspect
    from undula.io.structures import load_structure
    from undula.io.trajectories import load_trajectory
    from undula.motion.forecast import MovingAtoms
    from undula.motion.observed import window
    from undula.surface.forecast import MovingSurface

__version__ = "0.1.0"

_HOMES = {
    "InputError": "undula.errors",
    "MachineError": "undula.errors",
    "MovingAtoms": "undula.motion.forecast",
    "MovingSurface": "undula.surface.forecast",
    "Notice": "undula.errors",
    "UndulaError": "undula.errors",
    "UsageError": "undula.errors",
    "evaluate": "undula.forecasts",
    "export": "undula.forecasts",
    "forecast": "undula.forecasts",
    "inspect": "undula.io.inspection",
    "load_structure": "undula.io.structures",
    "load_trained": "undula.forecasts",
    "load_trajectory": "undula.io.trajectories",
    "open_dataset": "undula.io.datasets",
    "prepare": "undula.data.prepare",
    "window": "undula.motion.observed",
}

__all__ = [
    "InputError",
    "MachineError",
    "MovingAtoms",
    "MovingSurface",
    "Notice",
    "UndulaError",
    "UsageError",
    "__version__",
    "evaluate",
    "export",
    "forecast",
    "inspect",
    "load_structure",
    "load_trained",
    "load_trajectory",
    "open_dataset",
    "prepare",
    "window",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'undula' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
