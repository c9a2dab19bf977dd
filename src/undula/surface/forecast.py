"""From a structure and a trained model to a moving surface: a field at any point and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undula import atomic, estimates
from undula.data.bundled import models
from undula.data.prepare import surface_of
from undula.errors import InputError, Notice, UsageError
from undula.estimates import Estimate
from undula.geometry.isosurface import LevelSet, extract
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.io.datasets import read_structure, write_structure
from undula.io.inspection import require_surface
from undula.learn.checkpoint import described_in
from undula.surface.estimates import (
    KEPT_BYTES,
    MARGIN,
    SurfaceSize,
    SurfaceWork,
    fitted,
    known_bytes,
    what_fits,
)
from undula.surface.posed import KnownPoints, PosedField, SurfaceForecaster
from undula.surface.trained_mixture import TrainedMixture, load_trained
from undula.types import Mesh, Structure

FORMAT = 2
CHUNK = 4096
"""Points per call of the network: larger tensors are slower on a CPU."""


@dataclass(frozen=True, eq=False)
class LatticePoints:
    """The points of a lattice too large to keep what they know: it is found when it is needed.

    Attributes:
        posed: Knows the points.
        lattice: Where they are.
    """

    posed: PosedField
    lattice: Lattice

    def __getitem__(self, rows: Tensor) -> KnownPoints:
        _, y, z = self.lattice.shape
        nodes = torch.stack([rows // (y * z), rows // z % y, rows % z], dim=1)
        return self.posed.known(self.lattice.points_of(nodes))


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
        samples: How many samples beside the typical field; a distributional model only.
        seed: Of the samples.
        kept_bytes: What is known of a lattice's points is kept from one time to the next where
            it takes no more than this.
        chunk: Points per call of the network.
        expected: Memory and time of its meshes, estimated before the work.
    """

    structure: Structure
    trained: SurfaceForecaster
    times_ps: tuple[float, ...]
    spacing: float = 1.0
    probe: float = 1.4
    notices: tuple[Notice, ...] = ()
    samples: int = 0
    seed: int = 0
    kept_bytes: int = KEPT_BYTES
    chunk: int = CHUNK
    expected: Estimate | None = None
    _known: dict[Any, KnownPoints] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.times_ps:
            raise UsageError("a forecast needs at least one time")
        if min(self.times_ps) < 0:
            raise UsageError(f"times count from the first frame; {min(self.times_ps)} ps is before")
        if not self.spacing > 0:
            raise UsageError(f"the spacing should be positive, not {self.spacing}")
        if self.samples < 0:
            raise UsageError(f"samples should not be negative, not {self.samples}")
        if self.samples and not self.trained.distributional:
            raise UsageError("this model forecasts the typical surface only and draws no samples")

    @cached_property
    def first_surface(self) -> MolecularSurface:
        """The exact surface of the first frame."""
        return surface_of(self.structure, self.probe)

    @cached_property
    def size(self) -> SurfaceSize:
        """What memory and time depend on."""
        return measured(self.structure, self.trained)

    @cached_property
    def posed(self) -> PosedField:
        """The model, bound to the structure."""
        return self.trained.posed(self.structure, self.first_surface, self.seed)

    def sdf(
        self, points: Float[Tensor, "n 3"], time_ps: float, sample: int | None = None
    ) -> Float[Tensor, " n"]:
        """Return the signed distance at points in the structure's own pose.

        Args:
            points: Å.
            time_ps: Time since the first frame, ps.
            sample: Which sample of a distributional model, from 0; by default the typical field.

        Returns:
            Å, negative inside.
        """
        self._check_sample(sample)
        values = self.posed.values(self.posed.known(points), time_ps, sample)
        return self._checked(values).to(points.dtype)

    def sample_sdf(
        self, points: Float[Tensor, "n 3"], time_ps: float
    ) -> Float[Tensor, "samples n"]:
        """Return the signed distances of all samples at points, Å; much cheaper than one by one.

        Args:
            points: In the structure's own pose, Å.
            time_ps: Time since the first frame, ps.
        """
        if not self.samples or not len(points):
            return points.new_zeros(self.samples, len(points))
        parts = [
            self.posed.samples(self.posed.known(part), time_ps, self.samples)
            for part in points.split(self.chunk)
        ]
        return self._checked(torch.cat(parts, dim=1)).to(points.dtype)

    def sample_lattice(self, time_ps: float, lattice: Lattice) -> Float[Tensor, "samples nx ny nz"]:
        """Return the signed distances of all samples on a lattice, Å."""
        known = self._known_on(lattice)
        parts = [
            self.posed.samples(known[rows], time_ps, self.samples)
            for rows in torch.arange(lattice.nodes).split(self.chunk)
        ]
        return self._checked(torch.cat(parts, dim=1)).reshape(self.samples, *lattice.shape)

    def level_set(
        self,
        time_ps: float,
        *,
        spacing: float | None = None,
        level: float = 0.0,
        lattice: Lattice | None = None,
        sample: int | None = None,
    ) -> LevelSet:
        """Extract a level set at one time.

        Args:
            time_ps: Time since the first frame, ps.
            spacing: Of the lattice, Å; by default that of the forecast.
            level: Value of the field, Å; 0 is the surface.
            lattice: Where to look; by default around the first frame, and further out as long
                as the level set reaches the border.
            sample: As in `sdf`.

        Returns:
            The mesh (empty if the level set does not exist) and the field on the lattice.
        """
        self._check_sample(sample)
        return estimates.with_less(
            lambda: self._around(time_ps, spacing, level, lattice, sample),
            lambda: self.smaller()._around(time_ps, spacing, level, lattice, sample),
            self.what_fits,
        )

    def _around(
        self,
        time_ps: float,
        spacing: float | None,
        level: float,
        lattice: Lattice | None,
        sample: int | None,
    ) -> LevelSet:
        if lattice is not None:
            return self._level_set(time_ps, level, lattice, sample)
        margin = MARGIN + max(level, 0.0)
        while True:
            around = self.lattice(spacing or self.spacing, margin)
            found = self._level_set(time_ps, level, around, sample)
            if not found.touches_border or margin > 4 * MARGIN:
                return found
            margin *= 2

    def _level_set(
        self, time_ps: float, level: float, lattice: Lattice, sample: int | None
    ) -> LevelSet:
        known = self._known_on(lattice)
        shape = lattice.shape
        last = torch.tensor(shape) - 1

        def values(points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
            # Coarse passes ask a little beyond the far ends; the border's value serves there.
            nodes = ((points - lattice.origin) / lattice.spacing).round().long()
            x, y, z = nodes.minimum(last).unbind(dim=1)
            rows = (x * shape[1] + y) * shape[2] + z
            return self._checked(self.posed.values(known[rows], time_ps, sample)).to(points.dtype)

        return extract(values, lattice, level=level, chunk=self.chunk)

    def _checked(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return what the model forecasts, or raise where that is no number."""
        if not torch.isfinite(values).all():
            raise InputError(
                f"{self.structure.name}: the model forecasts what is not finite; it does not serve "
                "this protein, or its weights are damaged"
            )
        return values

    def _check_sample(self, sample: int | None) -> None:
        if sample is not None and not 0 <= sample < self.samples:
            raise UsageError(f"this forecast has {self.samples} samples, not one numbered {sample}")

    def mesh(
        self,
        time_ps: float,
        *,
        spacing: float | None = None,
        level: float = 0.0,
        sample: int | None = None,
    ) -> Mesh:
        """Return the surface at one time, coloured by how far it is from the first frame's.

        The scalar ``displacement`` is the distance of each vertex from the first frame's
        surface, Å.
        """
        found = self.level_set(time_ps, spacing=spacing, level=level, sample=sample)
        return coloured(found.mesh, self)

    def smaller(self) -> MovingSurface:
        """Return the same forecast in parts half as large, keeping nothing of what was known."""
        self._known.clear()
        return replace(self, kept_bytes=0, chunk=max(self.chunk // 2, 1), _known={})

    def what_fits(self, limit: int | None = None) -> str:
        """Say what does not run out of memory where this did, in one sentence.

        Args:
            limit: Of the process, bytes; by default a tenth less than what there is.
        """
        allowed = int(0.9 * estimates.memory_limit(limit))
        return (
            f"{self.structure.name}: the memory was not enough for a surface forecast at a "
            f"spacing of {self.spacing:g} Å; {what_fits(self.size, self.work, allowed)}"
        )

    @property
    def work(self) -> SurfaceWork:
        """What is asked for, as far as memory and time depend on it."""
        return SurfaceWork(
            spacing=self.spacing,
            times=len(self.times_ps),
            samples=self.samples,
            kept_bytes=self.kept_bytes,
        )

    def lattice(self, spacing: float, margin: float = MARGIN) -> Lattice:
        """Return a lattice around the first frame's atoms."""
        positions = self.structure.positions.double()
        return Lattice.covering(
            positions.amin(dim=0) - margin, positions.amax(dim=0) + margin, spacing
        )

    def _known_on(self, lattice: Lattice) -> KnownPoints:
        key = (tuple(lattice.origin.tolist()), lattice.spacing, lattice.shape)
        if key not in self._known:
            self._known.clear()
            needed = known_bytes(self.size, float(lattice.nodes), lattice.spacing)
            kept = needed <= self.kept_bytes
            points = LatticePoints(self.posed, lattice)
            self._known[key] = self.posed.known(lattice.points()) if kept else points
        return self._known[key]

    def save(self, folder: Path) -> None:
        """Write the forecast: structure, weights, times and report; the last file names it whole.

        Args:
            folder: New, or of an earlier forecast, which is replaced.
        """
        atomic.discard(folder / "forecast.json")
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
                "samples": self.samples,
                "seed": self.seed,
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
        described = atomic.read_json(folder / "forecast.json")
        if described.get("format") != FORMAT or described.get("kind") != "surface":
            raise InputError(f"{folder} holds no surface forecast of format {FORMAT}")
        with described_in(folder / "forecast.json"):
            return cls(
                structure=read_structure(folder),
                trained=load_trained(folder),
                samples=int(described["samples"]),
                seed=int(described["seed"]),
                times_ps=tuple(float(t) for t in described["times_ps"]),
                spacing=float(described["spacing"]),
                probe=float(described["probe"]),
                notices=tuple(Notice(**notice) for notice in described["notices"]),
            )


def forecast(
    structure: Structure,
    times_ps: Sequence[float],
    trained: SurfaceForecaster | None = None,
    *,
    spacing: float = 1.0,
    samples: int = 0,
    seed: int = 0,
    memory_limit: int | str | None = None,
) -> MovingSurface:
    """Forecast the moving surface of a protein from its structure.

    Args:
        structure: The first frame, in any pose.
        times_ps: Times since then at which meshes are wanted, ps.
        trained: A model that can serve this protein (`load_trained` reads one); by default the
            bundled one for any protein.
        spacing: Of the meshes, Å.
        samples: How many samples beside the typical surface.
        seed: Of the samples.
        memory_limit: Of the whole process, bytes or such as "4GiB"; by default what there is.

    Returns:
        The moving surface; nothing is computed before it is asked for.

    Raises:
        InputError: The model cannot serve this protein, or only its Cα are there.
        UsageError: A negative time, no time, no positive spacing, samples of a model that has
            none, or a limit that is none.
        MachineError: Its meshes would not fit into memory; says what would.
    """
    require_surface(structure)
    if trained is None:
        trained = load_trained(models()["any"])
    moving = MovingSurface(
        structure=structure,
        trained=trained,
        times_ps=tuple(float(time) for time in times_ps),
        spacing=spacing,
        probe=float(trained.provenance.get("probe", 1.4)),
        notices=beyond_training(trained, times_ps) + structure.notices,
        samples=samples,
        seed=seed,
    )
    limit = estimates.memory_limit(estimates.asked_bytes(memory_limit))
    work, expected = fitted(moving.size, moving.work, limit, structure.name)
    moving = replace(moving, kept_bytes=work.kept_bytes, expected=expected)
    assert moving.posed is not None  # a protein the model cannot serve is refused here
    return moving


def measured(structure: Structure, trained: SurfaceForecaster) -> SurfaceSize:
    """Return what memory and time of a forecast by a model depend on."""
    local = trained.model.config.local if isinstance(trained, TrainedMixture) else None
    return SurfaceSize.of(structure, local)


def coloured(mesh: Mesh, moving: MovingSurface) -> Mesh:
    """Return a mesh with the scalar ``displacement``: distance from the first frame's surface."""
    distance = moving.first_surface.signed_distance(mesh.vertices.double())
    return Mesh(
        vertices=mesh.vertices,
        faces=mesh.faces,
        scalars={"displacement": distance.abs().to(mesh.vertices.dtype)},
    )


def beyond_training(trained: SurfaceForecaster, times_ps: Sequence[float]) -> tuple[Notice, ...]:
    """Return a notice where times lie beyond those that a model has seen; none where none do."""
    horizon = trained.horizon_ps
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
