"""The rows of a table: a model, the trivial forecasts that stand beside it, and oracles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool
from torch import Tensor

from undula.geometry.comparison import Solid
from undula.geometry.lattice import Lattice
from undula.geometry.solids import exact_solid, lattice_solid
from undula.surface.baselines import (
    Shifts,
    best_ellipsoid,
    blurred,
    distances,
    majority_of_others,
)
from undula.surface.elastic_ensemble import MAJORITY, SurfaceEnsemble
from undula.surface.forecast import MovingSurface
from undula.surface.posed import SurfaceForecaster

COPIED, DILATED, ERODED = "copied first frame", "dilated first frame", "eroded first frame"
BLURRED, ELLIPSOID = "blurred first frame", "best ellipsoid"
OTHERS = "majority of the other frames"
"""Name of the oracle that knows all true frames but the one that is forecast."""
OTHER_FRAMES = 25
"""How many of those it reads at least, if there are so many."""
UNFITTED = Shifts()
"""Shifts of a model that comes without fitted ones; they are told to be so."""
_BAND = 4.0

Kind = Literal["model", "trivial", "oracle"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecaster:
    """One row of the table.

    Attributes:
        name: Of the row.
        kind: Whether it is a model, something a model must beat (a surface that does not move),
            or an oracle, which has seen the truth and shows what there is to reach.
        solid: What it forecasts for a time in ps.
    """

    name: str
    kind: Kind
    solid: Callable[[float], Solid]


def forecasters(
    moving: MovingSurface, lattice: Lattice, ensemble: SurfaceEnsemble | None
) -> list[Forecaster]:
    """Return the model and the trivial forecasts that stand beside it.

    *copied first frame*: the exact surface the forecast starts from. *dilated* and *eroded*: the
    same moved out and in, by offsets fitted on the model's training frames. *blurred*: with σ and
    cut fitted on them. *best ellipsoid*: fitted on the first frame. *majority of the elastic
    network*: what most of its members have in common. *averaged training frames*: the majority
    shape of the frames that trained the model, which is trivial for a protein that was trained on.

    Args:
        moving: The forecast.
        lattice: Where the trivial surfaces are laid down.
        ensemble: Of the first frame's elastic network; none for a structure that has none.
    """
    first = moving.first_surface
    away = distances(first, lattice, _BAND)
    shifts = moving.trained.shifts or UNFITTED
    rounded = {
        BLURRED: blurred(away < 0, lattice, moving.trained.blur),
        ELLIPSOID: best_ellipsoid(away < 0, lattice),
        **({} if ensemble is None else {MAJORITY: ensemble.majority(lattice)}),
        **moving.posed.still(lattice),
    }
    model = Forecaster(
        name="model", kind="model", solid=lambda time: _forecast_solid(moving, lattice, time)
    )
    return [
        model,
        _still(COPIED, exact_solid(first, lattice)),
        _still(DILATED, lattice_solid(away - shifts.dilated, lattice, lipschitz=1.0)),
        _still(ERODED, lattice_solid(away + shifts.eroded, lattice, lipschitz=1.0)),
        *(
            _still(name, lattice_solid(values.to(lattice.origin), lattice, lipschitz=None))
            for name, values in rounded.items()
        ),
    ]


def fitted_numbers(trained: SurfaceForecaster) -> str:
    """Say how the trivial rows came by their numbers."""
    shifts, blur = trained.shifts or UNFITTED, trained.blur
    how = "fitted on training frames" if trained.shifts else "not fitted: the weights hold none"
    return (
        f"Dilated by {shifts.dilated:g} Å, eroded by {shifts.eroded:g} Å ({how}); blurred by "
        f"{blur.width:g} Å and cut at {blur.cut:g}."
    )


def majority_oracle(
    occupied: Mapping[int, Bool[Tensor, "nx ny nz"]], frames: Mapping[float, int], lattice: Lattice
) -> Forecaster:
    """Return the row of the majority shape of all true frames but the one that is forecast.

    Args:
        occupied: Frame → occupancy of the true surface.
        frames: Time in ps → frame, each among those.
        lattice: Of all.
    """

    def solid(time: float) -> Solid:
        values = majority_of_others(occupied, frames[time])
        return lattice_solid(values.to(lattice.origin), lattice)

    return Forecaster(name=OTHERS, kind="oracle", solid=solid)


def even(frames: range, count: int) -> list[int]:
    """Return up to ``count`` of some frames, evenly spaced, the last one among them."""
    if len(frames) <= count:
        return list(frames)
    step = len(frames) / count
    return [frames[int((i + 1) * step + 1e-9) - 1] for i in range(count)]


def _still(name: str, solid: Solid) -> Forecaster:
    return Forecaster(name=name, kind="trivial", solid=lambda _: solid)


def _forecast_solid(moving: MovingSurface, lattice: Lattice, time: float) -> Solid:
    found = moving.level_set(time, lattice=lattice)
    return lattice_solid(found.values, lattice, lipschitz=None, mesh=found.mesh)
