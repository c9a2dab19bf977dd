"""What a trained model must offer so that a forecast can be made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.surface.baselines import Blur, Shifts
from undula.types import Structure


@runtime_checkable
class KnownPoints(Protocol):
    """Points with all that is known of them before a time is given."""

    def __getitem__(self, rows: Tensor) -> KnownPoints:
        """Return some of the points."""
        ...


@runtime_checkable
class PosedField(Protocol):
    """A trained model bound to one structure: a moving field in that structure's pose."""

    def known(self, points: Float[Tensor, "n 3"]) -> KnownPoints:
        """Return what does not depend on time: it is computed once per place."""
        ...

    def values(self, known: Any, time_ps: float, sample: int | None) -> Float[Tensor, " n"]:
        """Return the signed distance at one time, Å: the typical field, or that of a sample."""
        ...

    def samples(self, known: Any, time_ps: float, count: int) -> Float[Tensor, "count n"]:
        """Return the signed distances of the first few samples at one time, Å.

        Raises:
            UsageError: The model draws no samples.
        """
        ...

    def still(self, lattice: Lattice) -> Mapping[str, Float[Tensor, "nx ny nz"]]:
        """Return trivial forecasts that only this model's training frames make possible."""
        ...


@runtime_checkable
class SurfaceForecaster(Protocol):
    """A trained model with what a forecast and its table need."""

    @property
    def blur(self) -> Blur:
        """σ and cut of the blurred first frame, fitted on the training frames."""
        ...

    @property
    def shifts(self) -> Shifts | None:
        """Offsets of the dilated and the eroded first frame, if they were fitted there."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """What it was trained on and how."""
        ...

    @property
    def horizon_ps(self) -> float:
        """The longest lag it has seen in training, ps."""
        ...

    @property
    def distributional(self) -> bool:
        """Whether it can draw samples."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a page should know of it."""
        ...

    def posed(self, structure: Structure, surface: MolecularSurface, seed: int) -> PosedField:
        """Bind the model to a structure.

        Raises:
            InputError: It cannot serve this structure.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write everything into a folder."""
        ...
