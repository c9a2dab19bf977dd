"""One word for both families: forecasts of surfaces and of atoms, told apart by what they are of.

A structure is forecast as a moving surface, a window as moving atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from undula.errors import Notice, UsageError
from undula.learn.checkpoint import load_weights
from undula.motion.catalog import KINDS, TrainedForecaster, load_forecaster
from undula.motion.forecast import MovingAtoms, forecast_atoms
from undula.motion.forecast_scores import AtomEvaluation, evaluate_atoms
from undula.motion.trained import WEIGHTS
from undula.motion.windows import Window
from undula.surface.evaluation import Evaluation, EvaluationConfig
from undula.surface.evaluation import evaluate as evaluate_surface
from undula.surface.forecast import MovingSurface
from undula.surface.forecast import forecast as forecast_surface
from undula.surface.posed import SurfaceForecaster
from undula.surface.trained_mixture import load_trained as load_surface
from undula.types import Structure, Trajectory
from undula.viz.atoms_export import export_atoms
from undula.viz.export import export as export_surface


def forecast(
    subject: Structure | Window, times_ps: Sequence[float], model: Any = None, **options: Any
) -> MovingSurface | MovingAtoms:
    """Forecast the moving surface of a structure, or the atoms of a window.

    Args:
        subject: A structure (`load_structure`), or what was observed (`window`).
        times_ps: Times since the structure, or after the last observed frame, ps.
        model: From `load_trained`; by default the bundled one that can serve.
        options: Of `undula.surface.forecast.forecast` (spacing, samples, seed, memory_limit) or
            of `undula.motion.forecast.forecast_atoms` (samples, seed, memory_limit).

    Raises:
        InputError: The model cannot serve.
        UsageError: Times that cannot be forecast.
        MachineError: It does not fit into memory; says what does.
    """
    if isinstance(subject, Window):
        return forecast_atoms(subject, times_ps, model, **options)
    return forecast_surface(subject, times_ps, model, **options)


def evaluate(
    result: MovingSurface | MovingAtoms, truth: Trajectory, config: EvaluationConfig | None = None
) -> Evaluation | AtomEvaluation:
    """Score a forecast against what happened, beside the trivial forecasts.

    Args:
        result: The forecast.
        truth: Of a surface, a trajectory that starts at its structure; of atoms, one that goes on
            after the window, on its clock.
        config: Lattices and samples for a surface; scores of atoms need none.

    Returns:
        Scores over time of the forecast and of the trivial ones.

    Raises:
        InputError: The truth is of something else.
        UsageError: There is a ``config`` for atoms.
    """
    if isinstance(result, MovingSurface):
        return evaluate_surface(result, truth, config)
    if config is not None:
        raise UsageError("scores of atoms take no config; leave it out")
    return evaluate_atoms(result, truth)


def export(result: MovingSurface | MovingAtoms, folder: Path, **options: Any) -> list[Notice]:
    """Write a forecast and its exports into a folder.

    Args:
        result: The forecast.
        folder: The result folder.
        options: Of `undula.viz.export.export` (formats, level) or of
            `undula.viz.atoms_export.export_atoms` (formats, wrap).

    Raises:
        UsageError: An unknown format.
    """
    if isinstance(result, MovingAtoms):
        return export_atoms(result, folder, **options)
    return export_surface(result, folder, **options)


def load_trained(folder: Path) -> SurfaceForecaster | TrainedForecaster:
    """Read a trained model of surfaces, or of atoms of any kind of `undula.motion.catalog`.

    Args:
        folder: A run folder of ``undula train``, or bundled weights.

    Raises:
        InputError: No trained model there, or a damaged one.
    """
    path = folder / WEIGHTS
    kinds = {kind.stored for kind in KINDS.values()}
    if path.is_file() and load_weights(path)[1].get("kind") in kinds:
        return load_forecaster(folder)
    return load_surface(folder)
