"""Scoring the samples of a moving surface as a distribution, beside forecasts without a spread."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undula.data.prepare import surface_of
from undula.geometry.comparison import sample_mesh
from undula.geometry.elastic_network import gaussian_network_fluctuations
from undula.geometry.isosurface import level_mesh
from undula.geometry.lattice import Lattice
from undula.geometry.neighbours import nearest
from undula.surface.baselines import blurred, occupancy
from undula.surface.forecast import MovingSurface
from undula.surface.spread import (
    LEVELS,
    SAMPLES,
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


def sample_scores(
    moving: MovingSurface,
    times_ps: tuple[float, ...],
    frames: Trajectory,
    lattice: Lattice,
    seed: int,
) -> SampleScores | None:
    """Score the samples of a forecast against the true frames.

    Distances and occupancies are compared at lattice nodes (1 Å) within `SHELL` of the first
    frame's surface, at most `POINTS` of them; mobility at points of that surface. Frames at time
    0 are the first frame itself and say nothing.

    Args:
        moving: The forecast.
        times_ps: Of the frames.
        frames: The truth in the forecast's pose.
        lattice: Where the first frame is blurred.
        seed: Of the choice of places.

    Returns:
        The scores, or nothing where there are fewer than two samples or no later frame.
    """
    later = [index for index, time in enumerate(times_ps) if time > 0]
    if moving.samples < 2 or not later:
        return None
    generator = torch.Generator().manual_seed(seed)
    around = _around(moving, generator)
    on = moving.first_surface.cloud(SURFACE_SPACING).points.double()
    still, share = _still(moving, lattice, around, generator)
    tally = _Tally(len(around), moving.samples, still)
    places = torch.cat([around, on])
    for index in later:
        truth = surface_of(frames.frame(index), moving.probe).signed_distance(places)
        typical, samples = (
            moving.sdf(places, times_ps[index]),
            moving.sample_sdf(places, times_ps[index]),
        )
        tally.add(truth.double(), typical.double(), samples.double())
    return SampleScores(
        times_ps=tuple(times_ps[index] for index in later),
        samples=moving.samples,
        rows=(
            *tally.rows(),
            *_still_rows(tally, share, len(on)),
            SpreadRow(
                name="elastic network",
                kind="trivial",
                mobility=_network_mobility(moving.structure, on),
                relative=True,
            ),
            _one_spread(
                "typical", torch.stack(tally.typical), torch.stack(tally.errors["typical"])
            ),
            _one_spread("copied", still["copied"][None], torch.stack(tally.errors["copied"])),
        ),
        ranks=tally.ranks.tolist(),
        coverage={level: held / len(later) for level, held in tally.held.items()},
        occupancy=tally.inside["truth"].mean,
        mobility=tally.motion["truth"].deviation,
    )


class _Tally:
    """What is counted frame by frame: first come the points around, then those on the surface."""

    def __init__(self, around: int, samples: int, still: dict[str, Float[Tensor, " n"]]) -> None:
        self.around = around
        self.still = still
        self.inside = {name: Moments() for name in ("truth", "typical", "samples")}
        self.motion = {name: Moments() for name in ("truth", "typical", "samples")}
        self.typical: list[Tensor] = []
        self.errors: dict[str, list[Tensor]] = {name: [] for name in ("typical", *still)}
        self.scores: list[float] = []
        self.ranks = torch.zeros(samples + 1, dtype=torch.long)
        self.held = dict.fromkeys(LEVELS, 0.0)

    def add(
        self,
        truth: Float[Tensor, " places"],
        typical: Float[Tensor, " places"],
        samples: Float[Tensor, "samples places"],
    ) -> None:
        """Count in a frame."""
        fields = {"truth": truth[None], "typical": typical[None], "samples": samples}
        for name, values in fields.items():
            self.inside[name].add(values[:, : self.around] < 0)
            self.motion[name].add(values[:, self.around :])
        truth, drawn = truth[: self.around], samples[:, : self.around]
        self.typical.append(typical[: self.around])
        for name, values in {"typical": self.typical[-1], **self.still}.items():
            self.errors[name].append(values - truth)
        self.scores.append(float(crps(drawn, truth).mean()))
        self.ranks += ranks(drawn, truth)
        for level in LEVELS:
            self.held[level] += float(covered(drawn, truth, level))

    def error(self, name: str) -> list[float] | None:
        """Return the mean absolute error of a forecast without a spread, frame by frame."""
        if name not in self.errors:
            return None
        return [float(error.abs().mean()) for error in self.errors[name]]

    def rows(self) -> tuple[SpreadRow, SpreadRow]:
        """Return the rows of the samples and of the typical surface."""
        samples, typical = (
            SpreadRow(
                name=name,
                kind="model",
                crps=scores,
                occupancy=self.inside[key].mean,
                mobility=self.motion[key].deviation,
            )
            for key, name, scores in (
                ("samples", SAMPLES, self.scores),
                ("typical", "typical surface", self.error("typical")),
            )
        )
        return samples, typical


def _still(
    moving: MovingSurface,
    lattice: Lattice,
    points: Float[Tensor, "n 3"],
    generator: torch.Generator,
) -> tuple[dict[str, Float[Tensor, " n"]], Float[Tensor, " n"]]:
    """Return the distances of the surfaces that do not move, and the blurred one's occupancy."""
    still = {"copied": moving.first_surface.signed_distance(points).double()}
    mesh, share = _blurred(moving, lattice, points)
    if not mesh.is_empty:
        still["blurred"] = _distance_to(mesh, share > moving.trained.blur.cut, points, generator)
    return still, share


def _still_rows(tally: _Tally, share: Float[Tensor, " n"], on: int) -> tuple[SpreadRow, SpreadRow]:
    copied = SpreadRow(
        name="copied first frame",
        kind="trivial",
        crps=tally.error("copied"),
        occupancy=(tally.still["copied"] < 0).double(),
        mobility=torch.zeros(on, dtype=torch.float64),
    )
    blurred_row = SpreadRow(
        name="blurred first frame",
        kind="trivial",
        crps=tally.error("blurred"),
        occupancy=share,
    )
    return copied, blurred_row


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


def _around(moving: MovingSurface, generator: torch.Generator) -> Float[Tensor, "n 3"]:
    """Return lattice nodes near the first frame's surface, chosen by chance if there are many."""
    lattice = moving.lattice(1.0)
    distance = moving.first_surface.lattice_distance(
        lattice.origin, lattice.spacing, lattice.shape, band=SHELL + 1
    )
    near = lattice.points()[distance.reshape(-1).abs() < SHELL].double()
    chosen = torch.randperm(len(near), generator=generator)[:POINTS]
    return near[chosen.sort().values]


def _blurred(
    moving: MovingSurface, lattice: Lattice, points: Float[Tensor, "n 3"]
) -> tuple[Mesh, Float[Tensor, " n"]]:
    """Return the surface of the blurred first frame, and its occupancy at points."""
    blur = moving.trained.blur
    values = blurred(occupancy(moving.first_surface, lattice), lattice, blur).double()
    share = (blur.cut - lattice.interpolate(values, points)).clamp(0, 1)
    return level_mesh(values, lattice, 0.0), share


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
