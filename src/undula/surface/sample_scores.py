"""Scoring a forecast as a distribution, with samples or without, beside forecasts of all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undula.data.prepare import surface_of
from undula.geometry.comparison import Solid, sample_mesh
from undula.geometry.elastic_network import gaussian_network_fluctuations
from undula.geometry.isosurface import level_mesh
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface
from undula.geometry.neighbours import nearest
from undula.surface.baselines import blurred, occupancy
from undula.surface.elastic_ensemble import NETWORK, SurfaceEnsemble
from undula.surface.forecast import MARGIN, MovingSurface
from undula.surface.forecasters import (
    BLURRED,
    COPIED,
    DILATED,
    ERODED,
    UNFITTED,
    Forecaster,
    Kind,
)
from undula.surface.spread import (
    LEVELS,
    SAMPLES,
    TYPICAL,
    Moments,
    SampleScores,
    SpreadRow,
    best_deviation,
    covered,
    crps,
    normal_crps,
    ranks,
)
from undula.types import Mesh, Structure, Trajectory

SHELL = 3.0
"""How far from the first frame's surface distances and occupancies are compared, Å."""
POINTS = 4096
"""At how many places at most."""
SURFACE_SPACING = 1.5
"""Between the points of the first frame's surface whose mobility is compared, Å."""
_DENSITY = 60.0
"""Points per Å² that stand for a mesh when distances to it are wanted: 0.06 Å apart."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """Where forecasts are compared as distributions, and what is true there.

    Which places those are is known from the first frame alone.

    Attributes:
        around: Nodes of a lattice of 1 Å in the first frame's box, within `SHELL` of its surface.
        on: Points of that surface.
        times_ps: Of the true frames, none of which is the first frame itself.
        fields: Their signed distance at all places, first those around, Å.
        volumes: Of the true surfaces, Å³.
        areas: Of the true surfaces, Å².
        lattice: On which meshes are made whose volume and area are taken.
        seed: Of what is drawn by chance.
    """

    around: Float[Tensor, "n 3"]
    on: Float[Tensor, "m 3"]
    times_ps: tuple[float, ...]
    fields: Float[Tensor, "frames places"]
    volumes: list[float]
    areas: list[float]
    lattice: Lattice
    seed: int

    @property
    def places(self) -> Float[Tensor, "places 3"]:
        """All places, Å."""
        return torch.cat([self.around, self.on])

    @property
    def occupancy(self) -> Float[Tensor, " n"]:
        """Part of the frames in which each point around is truly inside."""
        return (self.fields[:, : len(self.around)] < 0).double().mean(dim=0)

    @property
    def mobility(self) -> Float[Tensor, " m"]:
        """True surface-RMSF: deviation of the signed distance at each surface point, Å."""
        return self.fields[:, len(self.around) :].std(dim=0, correction=0)


def ground(
    first: MolecularSurface,
    times_ps: Sequence[float],
    frames: Trajectory,
    meshes: Sequence[Mesh],
    lattice: Lattice,
    seed: int,
) -> Ground | None:
    """Return where forecasts are compared as distributions; nothing without a later frame.

    Args:
        first: The first frame's surface.
        times_ps: Of the frames; those at time 0 are left out.
        frames: The truth in the forecast's pose.
        meshes: Its surfaces.
        lattice: Of the meshes.
        seed: Of the choice of places.
    """
    later = [index for index, time in enumerate(times_ps) if time > 0]
    if not later:
        return None
    around = _around(first, torch.Generator().manual_seed(seed))
    on = first.cloud(SURFACE_SPACING).points.double()
    places = torch.cat([around, on])
    fields = [
        surface_of(frames.frame(index), first.probe).signed_distance(places).double()
        for index in later
    ]
    return Ground(
        around=around,
        on=on,
        times_ps=tuple(times_ps[index] for index in later),
        fields=torch.stack(fields),
        volumes=[meshes[index].volume for index in later],
        areas=[meshes[index].area for index in later],
        lattice=lattice,
        seed=seed,
    )


def sample_scores(
    moving: MovingSurface,
    on: Ground,
    rows: Sequence[Forecaster],
    ensemble: SurfaceEnsemble | None,
) -> SampleScores:
    """Score a forecast as a distribution, beside trivial forecasts and oracles.

    Args:
        moving: The forecast.
        on: Where, and the truth.
        rows: Of the table of single surfaces: the model and the trivial ones.
        ensemble: Of the first frame's elastic network, if it has one.

    Returns:
        The model's rows first.
    """
    typical = typical_fields(moving, on)
    own, counted = model_rows(moving, on, typical)
    copied = moving.first_surface.signed_distance(on.around).double()[None]
    values = typical[:, : len(on.around)]
    truth = on.fields[:, : len(on.around)]
    every = (
        *own,
        *trivial_rows(moving, on, rows, ensemble),
        _one_spread("typical", values, values - truth),
        _one_spread("copied", copied, copied - truth),
    )
    return scored(on, every, samples=moving.samples if counted else 0, ranks=counted)


def scored(
    on: Ground, rows: Sequence[SpreadRow], *, samples: int = 0, ranks: Sequence[int] = ()
) -> SampleScores:
    """Return rows beside the truth.

    Args:
        on: The truth.
        rows: Of forecasts.
        samples: How many the model has.
        ranks: Of the truth among them.
    """
    return SampleScores(
        times_ps=on.times_ps,
        samples=samples,
        rows=tuple(rows),
        ranks=list(ranks),
        occupancy=on.occupancy,
        mobility=on.mobility,
        volumes=on.volumes,
        areas=on.areas,
    )


def model_rows(
    moving: MovingSurface, on: Ground, typical: Float[Tensor, "frames places"]
) -> tuple[list[SpreadRow], list[int]]:
    """Return the rows of a model: its samples, if it has any, and its typical surface.

    Args:
        moving: The forecast.
        on: Where, and the truth.
        typical: Of `typical_fields`.

    Returns:
        The rows, and the ranks of the truth among the samples (none without samples).
    """
    meshes = [moving.level_set(time, lattice=on.lattice).mesh for time in on.times_ps]
    tally = _Tally(on)
    for values in typical:
        tally.add(values[None])
    rows = [tally.row(TYPICAL, "model", meshes)]
    if moving.samples < 2:
        return rows, []
    samples = _Tally(on)
    volumes, areas = [], []
    for time in on.times_ps:
        samples.add(moving.sample_sdf(on.places, time).double())
        for values in moving.sample_lattice(time, on.lattice):
            mesh = level_mesh(values, on.lattice, 0.0)
            volumes.append(mesh.volume)
            areas.append(mesh.area)
    drawn = samples.row(SAMPLES, "model", volumes=volumes, areas=areas)
    return [drawn, *rows], samples.ranks.tolist()


def typical_fields(moving: MovingSurface, on: Ground) -> Float[Tensor, "frames places"]:
    """Return the typical field of a forecast at all places and times, Å."""
    known = moving.posed.known(on.places)
    return torch.stack([moving.posed.values(known, time, None).double() for time in on.times_ps])


def trivial_rows(
    moving: MovingSurface,
    on: Ground,
    rows: Sequence[Forecaster],
    ensemble: SurfaceEnsemble | None,
) -> list[SpreadRow]:
    """Return the rows of surfaces that do not move, and of elastic networks.

    Args:
        moving: The forecast, for its first frame and its trained numbers.
        on: Where, and the truth.
        rows: The surfaces that do not move are those of the kind "trivial".
        ensemble: Of the first frame's elastic network, if it has one.
    """
    found = [_still_row(moving, on, row) for row in rows if row.kind == "trivial"]
    if ensemble is not None:
        found.append(ensemble_row(NETWORK, "trivial", ensemble, on))
    found.append(
        SpreadRow(
            name="Gaussian network",
            kind="trivial",
            mobility=_network_mobility(moving.structure, on.on),
            relative=True,
        )
    )
    return found


def ensemble_row(name: str, kind: Kind, ensemble: SurfaceEnsemble, on: Ground) -> SpreadRow:
    """Return the row of an ensemble of surfaces that is the same at all times."""
    tally = _Tally(on)
    fields = ensemble.signed_distance(on.places).double()
    for _ in on.times_ps:
        tally.add(fields)
    volumes, areas = ensemble.sizes(on.lattice)
    return tally.row(name, kind, volumes=volumes, areas=areas, pooled=True)


class _Tally:
    """What is counted of one forecast frame by frame."""

    def __init__(self, on: Ground) -> None:
        self.truth = on.fields
        self.around = len(on.around)
        self.inside, self.motion = Moments(), Moments()
        self.scores: list[float] = []
        self.members = 1
        self.ranks = torch.zeros(1, dtype=torch.long)
        self.held = dict.fromkeys(LEVELS, 0.0)

    def add(self, fields: Float[Tensor, "members places"]) -> None:
        """Count in what is forecast for the next frame."""
        self.inside.add(fields[:, : self.around] < 0)
        self.motion.add(fields[:, self.around :])
        truth = self.truth[len(self.scores), : self.around]
        drawn = fields[:, : self.around]
        self.members = len(drawn)
        if self.members == 1:
            self.scores.append(float((drawn[0] - truth).abs().mean()))
            return
        self.scores.append(float(crps(drawn, truth).mean()))
        self.ranks = self.ranks + ranks(drawn, truth)
        for level in LEVELS:
            self.held[level] += float(covered(drawn, truth, level)) / len(self.truth)

    def row(
        self,
        name: str,
        kind: Kind,
        meshes: Sequence[Mesh] = (),
        *,
        volumes: Sequence[float] = (),
        areas: Sequence[float] = (),
        pooled: bool = False,
    ) -> SpreadRow:
        """Return what was counted as a row.

        Args:
            name: Of the row.
            kind: Of the row.
            meshes: Whose volumes and areas are taken,
            volumes: or these,
            areas: and these.
            pooled: Whether members are states of one distribution, not courses in time.
        """
        return SpreadRow(
            name=name,
            kind=kind,
            crps=self.scores,
            occupancy=self.inside.mean,
            mobility=self.motion.pooled if pooled else self.motion.deviation,
            members=self.members,
            coverage=self.held if self.members > 1 else None,
            volumes=list(volumes) or [mesh.volume for mesh in meshes],
            areas=list(areas) or [mesh.area for mesh in meshes],
        )


def _still_row(moving: MovingSurface, on: Ground, row: Forecaster) -> SpreadRow:
    """Return the row of a surface that does not move."""
    solid = row.solid(on.times_ps[0])
    field = _still_field(moving, on, row.name, solid)
    if field is None:
        return SpreadRow(name=row.name, kind="trivial", volumes=[0.0], areas=[0.0])
    tally = _Tally(on)
    for _ in on.times_ps:
        tally.add(field[None])
    found = replace(
        tally.row(row.name, "trivial", [solid.mesh]),
        mobility=torch.zeros(len(on.on), dtype=torch.float64),
    )
    if row.name != BLURRED:
        return found
    return replace(found, occupancy=_blurred_share(moving, on))


def _still_field(
    moving: MovingSurface, on: Ground, name: str, solid: Solid
) -> Float[Tensor, " places"] | None:
    """Return the signed distance to a surface that does not move; none if it is empty."""
    shifts = moving.trained.shifts or UNFITTED
    moved = {COPIED: 0.0, DILATED: shifts.dilated, ERODED: -shifts.eroded}
    if name in moved:
        return moving.first_surface.signed_distance(on.places).double() - moved[name]
    if solid.mesh.is_empty:
        return None
    inside = solid.field(on.places) < solid.level
    return _distance_to(solid.mesh, inside, on.places, torch.Generator().manual_seed(on.seed))


def _one_spread(
    name: str, centres: Float[Tensor, "some n"], errors: Float[Tensor, "frames n"]
) -> SpreadRow:
    """Return the row of a forecast that is made uncertain by the same σ everywhere.

    σ is chosen in hindsight, so it is an oracle: samples that do not beat it know how uncertain
    they are, but not where.
    """
    deviation = best_deviation(errors)
    share = torch.special.ndtr(-centres / deviation).mean(dim=0)
    return SpreadRow(
        name=f"{name} ± {deviation:.2f} Å everywhere",
        kind="oracle",
        crps=normal_crps(errors, deviation).mean(dim=1).tolist(),
        occupancy=share,
    )


def _around(first: MolecularSurface, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Return lattice nodes near the first frame's surface, chosen by chance if there are many."""
    atoms = first.positions.double()
    lattice = Lattice.covering(atoms.amin(dim=0) - MARGIN, atoms.amax(dim=0) + MARGIN, 1.0)
    distance = first.lattice_distance(
        lattice.origin, lattice.spacing, lattice.shape, band=SHELL + 1
    )
    near = lattice.points()[distance.reshape(-1).abs() < SHELL].double()
    chosen = torch.randperm(len(near), generator=generator)[:POINTS]
    return near[chosen.sort().values]


def _blurred_share(moving: MovingSurface, on: Ground) -> Float[Tensor, " n"]:
    """Return the blurred first frame's occupancy as a probability."""
    blur = moving.trained.blur
    inside = occupancy(moving.first_surface, on.lattice)
    values = blurred(inside, on.lattice, blur).double()
    return (blur.cut - on.lattice.interpolate(values, on.around)).clamp(0, 1)


def _distance_to(
    mesh: Mesh,
    inside: Bool[Tensor, " n"],
    points: Float[Tensor, "n 3"],
    generator: torch.Generator,
) -> Float[Tensor, " n"]:
    """Approximate the signed distance of points to a mesh by many points drawn on it, Å."""
    drawn = sample_mesh(mesh, max(int(_DENSITY * mesh.area), 1), generator).points.double()
    away = (points - drawn[nearest(points, drawn, 1)[:, 0]]).norm(dim=1)
    return torch.where(inside, -away, away)


def _network_mobility(structure: Structure, points: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Return how far a Gaussian network moves the residue at each point, up to a factor.

    Residues without a Cα get the mean of the others.
    """
    index = torch.from_numpy(structure.residue_index).long()
    on = structure.alpha_carbons
    size = gaussian_network_fluctuations(structure.positions[on].double()).sqrt()
    every = torch.full((int(index.max()) + 1,), float(size.mean()), dtype=torch.float64)
    every[index[on]] = size
    return every[index[nearest(points, structure.positions.double(), 1)[:, 0]]]
