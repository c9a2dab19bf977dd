"""From a structure and a trained model to a moving surface: a field at any point and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undula import atomic
from undula.data.prepare import surface_of
from undula.errors import InputError, Notice, UsageError
from undula.geometry.frames import rmsd, superposition
from undula.geometry.isosurface import LevelSet, extract
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface, molecular_surface
from undula.io.datasets import read_json, read_structure, write_structure
from undula.io.inspection import require_surface
from undula.surface.trained import TrainedSurface
from undula.types import Mesh, Structure

FORMAT = 1
MARGIN = 6.0
"""Space between the first frame's atoms and the lattice of extraction, Å; doubled if too small."""
CHUNK = 4096
"""Points per call of the network: larger tensors are slower on a CPU."""


@dataclass(frozen=True, eq=False)
class MovingSurface:
    """A forecast: the signed distance to the surface at any point and time.

    Attributes:
        structure: The first frame, in the pose in which it was given.
        trained: The model.
        times_ps: The times that were asked for; the field answers at any other time too.
        spacing: Of the meshes, Å.
        probe: Radius of the solvent probe, Å.
        notices: What was dropped, assumed or guessed.
    """

    structure: Structure
    trained: TrainedSurface
    times_ps: tuple[float, ...]
    spacing: float = 1.0
    probe: float = 1.4
    notices: tuple[Notice, ...] = ()
    _bases: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.times_ps:
            raise UsageError("a forecast needs at least one time")
        if min(self.times_ps) < 0:
            raise UsageError(f"times count from the first frame; {min(self.times_ps)} ps is before")
        if not self.spacing > 0:
            raise UsageError(f"the spacing should be positive, not {self.spacing}")

    @cached_property
    def system(self) -> int:
        """Which of the model's systems the structure is."""
        return self.trained.model.system_of(self.structure)

    @cached_property
    def first_surface(self) -> MolecularSurface:
        """The exact surface of the first frame."""
        return surface_of(self.structure, self.probe)

    @cached_property
    def to_model(self) -> tuple[Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
        """Rotation R and translation t into the model's pose: R x + t."""
        on = self.structure.alpha_carbons
        known = self.trained.model.alpha_carbons(self.system)
        return superposition(self.structure.positions[on].double(), known)

    @cached_property
    def start(self) -> int:
        """Which training trajectory began nearest to the structure, by RMSD of the Cα."""
        rotation, translation = self.to_model
        on = self.structure.alpha_carbons
        posed = self.structure.positions[on].double() @ rotation.T + translation
        known = self.trained.model.trajectories
        distances = {
            index: float(rmsd(posed, start.positions[start.alpha_carbons]))
            for index, start in enumerate(self.trained.starts)
            if known[index][1] == self.system
        }
        return min(distances, key=lambda index: distances[index])

    @cached_property
    def known_surface(self) -> MolecularSurface:
        """The exact surface of that trajectory's first frame, in the model's pose."""
        start = self.trained.starts[self.start]
        return molecular_surface(start.positions, start.radii, probe=self.probe)

    def sdf(self, points: Float[Tensor, "n 3"], time_ps: float) -> Float[Tensor, " n"]:
        """Return the signed distance at points in the structure's own pose.

        Args:
            points: Å.
            time_ps: Time since the first frame, ps.

        Returns:
            Å, negative inside.
        """
        bases = self._bases_at(points) if self._has_base else None
        return self._field(points, time_ps, bases)

    def level_set(
        self,
        time_ps: float,
        *,
        spacing: float | None = None,
        level: float = 0.0,
        lattice: Lattice | None = None,
    ) -> LevelSet:
        """Extract a level set at one time.

        Args:
            time_ps: Time since the first frame, ps.
            spacing: Of the lattice, Å; by default that of the forecast.
            level: Value of the field, Å; 0 is the surface.
            lattice: Where to look; by default around the first frame, and further out as long
                as the level set reaches the border.

        Returns:
            The mesh (empty if the level set does not exist) and the field on the lattice.
        """
        if lattice is not None:
            return self._level_set(time_ps, level, lattice)
        margin = MARGIN + max(level, 0.0)
        while True:
            found = self._level_set(time_ps, level, self.lattice(spacing or self.spacing, margin))
            if not found.touches_border or margin > 4 * MARGIN:
                return found
            margin *= 2

    def _level_set(self, time_ps: float, level: float, lattice: Lattice) -> LevelSet:
        bases = self._bases_on(lattice) if self._has_base else None
        last = torch.tensor(lattice.shape) - 1

        def values(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
            known = None
            if bases is not None:
                # Coarse passes ask a little beyond the far ends; the border's value serves there.
                nodes = ((points - lattice.origin) / lattice.spacing).round().long()
                x, y, z = nodes.minimum(last).unbind(dim=1)
                known = bases[:, x, y, z]
            return self._field(points, time_ps, known)

        return extract(values, lattice, level=level, chunk=CHUNK)

    def mesh(self, time_ps: float, *, spacing: float | None = None, level: float = 0.0) -> Mesh:
        """Return the surface at one time, coloured by how far it is from the first frame's.

        The scalar ``displacement`` is the distance of each vertex from the first frame's
        surface, Å.
        """
        return coloured(self.level_set(time_ps, spacing=spacing, level=level).mesh, self)

    def lattice(self, spacing: float, margin: float = MARGIN) -> Lattice:
        """Return a lattice around the first frame's atoms."""
        positions = self.structure.positions.double()
        return Lattice.covering(
            positions.amin(dim=0) - margin, positions.amax(dim=0) + margin, spacing
        )

    @property
    def _has_base(self) -> bool:
        return self.trained.model.config.base == "first-frame"

    def _bases_at(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "2 n"]:
        """Return the distances to the structure's own surface and to the one the model knows."""
        rotation, translation = self.to_model
        moved = points.double() @ rotation.T + translation
        own = self.first_surface.signed_distance(points)
        return torch.stack([own.double(), self.known_surface.signed_distance(moved)])

    def _bases_on(self, lattice: Lattice) -> Float[Tensor, "2 nx ny nz"]:
        key = (tuple(lattice.origin.tolist()), lattice.spacing, lattice.shape)
        if key not in self._bases:
            self._bases.clear()
            self._bases[key] = self._bases_at(lattice.points()).reshape(2, *lattice.shape)
        return self._bases[key]

    @torch.no_grad()
    def _field(
        self, points: Float[Tensor, "n 3"], time_ps: float, bases: Float[Tensor, "2 n"] | None
    ) -> Float[Tensor, " n"]:
        r"""Return the field; its base fades from the structure's own surface to the known one.

        .. math:: b(x, t) = d_{known}(x) + e^{-t/\tau} (d_{own}(x) - d_{known}(x))

        The network corrects the known first frame. What the given structure has of its own is
        a deviation, and that is forgotten as fast as deviations were in training (τ).
        """
        model = self.trained.model
        rotation, translation = self.to_model
        latent = model.latents[self.start]
        lag = torch.tensor([time_ps], dtype=torch.float64, device=latent.device)
        condition = model.conditions(lag, latent[None])[0]
        moved = points.double() @ rotation.T + translation
        base = None
        if bases is not None:
            own, known = bases
            kept = math.exp(-time_ps / self.trained.memory_ps[self.system])
            base = (known + kept * (own - known)).to(condition.dtype)
        return model.field(moved, condition, self.system, base).to(points.dtype)

    def save(self, folder: Path) -> None:
        """Write the forecast: structure, weights, times and report; the last file names it whole.

        Args:
            folder: New, or of an earlier forecast, which is replaced.
        """
        write_structure(folder, self.structure)
        self.trained.save(folder)
        atomic.write_json(
            folder / "forecast.json",
            {
                "format": FORMAT,
                "kind": "surface",
                "times_ps": list(self.times_ps),
                "spacing": self.spacing,
                "probe": self.probe,
                "provenance": self.trained.provenance,
                "notices": [notice.as_dict() for notice in self.notices],
            },
        )

    @classmethod
    def load(cls, folder: Path) -> MovingSurface:
        """Read what `save` wrote.

        Raises:
            InputError: No forecast there, or a damaged or newer one.
        """
        described = read_json(folder / "forecast.json")
        if described.get("format") != FORMAT or described.get("kind") != "surface":
            raise InputError(f"{folder} holds no surface forecast of format {FORMAT}")
        try:
            return cls(
                structure=read_structure(folder),
                trained=TrainedSurface.load(folder),
                times_ps=tuple(float(t) for t in described["times_ps"]),
                spacing=float(described["spacing"]),
                probe=float(described["probe"]),
                notices=tuple(Notice(**notice) for notice in described["notices"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / 'forecast.json'} is damaged: {error}") from error


def forecast(
    structure: Structure,
    times_ps: Sequence[float],
    trained: TrainedSurface,
    *,
    spacing: float = 1.0,
) -> MovingSurface:
    """Forecast the moving surface of a protein from its structure.

    Args:
        structure: The first frame, in any pose.
        times_ps: Times since then at which meshes are wanted, ps.
        trained: A model that knows this protein.
        spacing: Of the meshes, Å.

    Returns:
        The moving surface; nothing is computed before it is asked for.

    Raises:
        InputError: The model was not trained on this protein, or only its Cα are there.
        UsageError: A negative time, no time, or no positive spacing.
    """
    require_surface(structure)
    moving = MovingSurface(
        structure=structure,
        trained=trained,
        times_ps=tuple(float(time) for time in times_ps),
        spacing=spacing,
        probe=float(trained.provenance.get("probe", 1.4)),
        notices=_extrapolation(trained, times_ps) + structure.notices,
    )
    trained.model.system_of(structure)
    return moving


def coloured(mesh: Mesh, moving: MovingSurface) -> Mesh:
    """Return a mesh with the scalar ``displacement``: distance from the first frame's surface."""
    distance = moving.first_surface.signed_distance(mesh.vertices.double())
    return Mesh(
        vertices=mesh.vertices,
        faces=mesh.faces,
        scalars={"displacement": distance.abs().to(mesh.vertices.dtype)},
    )


def _extrapolation(trained: TrainedSurface, times_ps: Sequence[float]) -> tuple[Notice, ...]:
    horizon = trained.model.horizon_ps
    later = [time for time in times_ps if time > horizon * (1 + 1e-9)]
    if not later:
        return ()
    return (
        Notice(
            code="beyond-training",
            message=f"{len(later)} times lie beyond the {horizon:g} ps seen in training",
            count=len(later),
        ),
    )
