"""A forecaster for tests whose samples are known: the first surface, wider or narrower."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.surface.baselines import Blur, Shifts
from undula.types import Structure


@dataclass(frozen=True)
class BreathingField:
    """The first surface's distance, moved out or in by ``offsets`` that grow as √t."""

    surface: MolecularSurface
    offsets: Float[Tensor, " samples"]

    def known(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
        return self.surface.signed_distance(points).double()

    def values(
        self, known: Float[Tensor, " n"], time_ps: float, sample: int | None
    ) -> Float[Tensor, " n"]:
        return known if sample is None else self.samples(known, time_ps, sample + 1)[sample]

    def samples(
        self, known: Float[Tensor, " n"], time_ps: float, count: int
    ) -> Float[Tensor, "count n"]:
        return known + time_ps**0.5 * self.offsets[:count, None]

    def still(self, lattice: Lattice) -> dict[str, Float[Tensor, "nx ny nz"]]:
        return {}


@dataclass(frozen=True)
class Breathing:
    """A distributional model of any protein; at 1 ps its samples differ by ``offsets``, Å."""

    offsets: tuple[float, ...] = (-0.6, -0.2, 0.2, 0.6)
    blur: Blur = field(default_factory=Blur)
    shifts: Shifts | None = field(default_factory=lambda: Shifts(dilated=0.2, eroded=0.4))
    horizon_ps: float = 100.0
    distributional: bool = True
    notes: tuple[str, ...] = ("Made up.",)

    @property
    def provenance(self) -> dict[str, Any]:
        return {"probe": 1.4}

    def posed(self, structure: Structure, surface: MolecularSurface, seed: int) -> BreathingField:
        return BreathingField(surface, torch.tensor(self.offsets, dtype=torch.float64))

    def save(self, folder: Path) -> None:
        (folder / "breathing").write_text("made up")
