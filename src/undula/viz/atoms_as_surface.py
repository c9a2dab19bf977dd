"""A forecast of a molecule's atoms as a moving surface: shown like one, scored like one.

What a forecast of atoms and a surface have in common is geometry: the solvent-excluded surface of
atoms that are somewhere. No family of models knows of the other here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from undula import atomic
from undula.errors import UsageError
from undula.geometry.comparison import Solid, compare_surfaces
from undula.geometry.frames import centre
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import MolecularSurface, molecular_surface
from undula.geometry.solids import exact_solid, lattice_solid
from undula.io.meshes import write_ply
from undula.motion.forecast import MovingAtoms
from undula.report.table import Metric, Row, Table
from undula.types import Mesh, MolecularSystem
from undula.viz.atoms_export import SHOWN_SAMPLES, evenly
from undula.viz.page import Page, write_page

SURFACE_PAGE = "surface.html"
SURFACE_METRICS = (
    Metric(key="iou", label="IoU"),
    Metric(key="chamfer_angstrom", label="Chamfer Å", higher_is_better=False),
    Metric(key="hausdorff_95_angstrom", label="Hausdorff 95% Å", higher_is_better=False, digits=2),
    Metric(key="normal_consistency_both", label="NC both ways"),
    Metric(key="volume_error", label="volume error", higher_is_better=False),
)
"""Columns of the table; the first one judges."""
MEAN_ROW, TYPICAL_ROW = "surface of the mean", "typical surface of the samples"
COPIED_ROW = "copied last frame"
SHOWN_TIMES = 40
"""How many times a page shows at most: a surface takes much more room than atoms."""
_MARGIN = 5.0


@dataclass(frozen=True, kw_only=True)
class SurfaceConfig:
    """How atoms become surfaces and how these are compared.

    Attributes:
        spacing: Of the lattices and meshes, Å.
        probe: Radius of the solvent probe, Å.
        points: Drawn on each mesh for the distances.
        seed: Of these points.
    """

    spacing: float = 0.5
    probe: float = 1.4
    points: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.spacing > 0:
            raise UsageError(f"spacing should be positive, not {self.spacing}")
        if not self.probe > 0:
            raise UsageError(f"probe should be positive, not {self.probe}")
        if self.points < 1:
            raise UsageError(f"points should be at least 1, not {self.points}")


def check_outside(system: MolecularSystem, *, boxed: bool) -> None:
    """Raise where atoms have no surface that could be looked at.

    Raises:
        UsageError: Several molecules in a box: a liquid has no outside.
    """
    if boxed and system.molecule_count > 1:
        raise UsageError(
            f"{system.structure.name}: a surface is for one molecule; {system.molecule_count} in a "
            "box have no outside"
        )


class AtomSurfaces:
    """Surfaces of a molecule's atoms wherever a forecast, a sample or the truth puts them."""

    def __init__(
        self,
        moving: MovingAtoms,
        config: SurfaceConfig,
        truth: Float[Tensor, "times atoms 3"] | None = None,
    ) -> None:
        """Lay a lattice around all there is to see.

        Args:
            moving: The forecast of one molecule, or of several without a box.
            config: Lattice and probe.
            truth: What happened at the same times, Å.

        Raises:
            UsageError: Several molecules in a box: a liquid has no outside.
        """
        check_outside(moving.system, boxed=moving.box is not None)
        self.moving, self.config, self.truth = moving, config, truth
        self.radii = moving.system.structure.vdw_radii.double()
        rows = [moving.now[None], moving.expected.mean, *moving.samples]
        rows += [] if truth is None else [truth]
        everything = torch.cat([row.double().reshape(-1, 3) for row in rows])
        self.lattice = Lattice.covering(
            everything.amin(dim=0) - _MARGIN, everything.amax(dim=0) + _MARGIN, config.spacing
        )
        self.first = self.surface(moving.now)

    def surface(self, positions: Float[Tensor, "atoms 3"]) -> MolecularSurface:
        """Return the solvent-excluded surface of the atoms at some positions, Å."""
        return molecular_surface(positions.double(), self.radii, probe=self.config.probe)

    def solid(self, positions: Float[Tensor, "atoms 3"]) -> Solid:
        """Return the body of the atoms at some positions, Å."""
        return exact_solid(self.surface(positions), self.lattice)

    def typical(self, row: int) -> Solid:
        """Return the body where the mean of the samples' signed distances is negative."""
        fields = [
            self.surface(sample[row]).lattice_distance(
                self.lattice.origin, self.lattice.spacing, self.lattice.shape, band=_MARGIN
            )
            for sample in self.moving.samples
        ]
        return lattice_solid(torch.stack(fields).mean(dim=0), self.lattice)

    def coloured(self, mesh: Mesh, row: int | None) -> Mesh:
        """Add ``displacement``, from the last observed surface, and ``spread`` of the samples, Å.

        Args:
            mesh: At one time.
            row: Which time; none for a mesh that the samples say nothing about.
        """
        points = mesh.vertices.double()
        scalars = {"displacement": self.first.signed_distance(points).abs()}
        if row is not None and len(self.moving.samples) > 1 and not mesh.is_empty:
            samples = [
                self.surface(sample[row]).signed_distance(points) for sample in self.moving.samples
            ]
            scalars["spread"] = torch.stack(samples).std(dim=0)
        kept = {name: value.to(mesh.vertices.dtype) for name, value in scalars.items()}
        return Mesh(vertices=mesh.vertices, faces=mesh.faces, scalars=kept)


def write_surface(
    moving: MovingAtoms,
    path: Path,
    config: SurfaceConfig,
    *,
    ply: bool = False,
    truth: Float[Tensor, "times atoms 3"] | None = None,
) -> Table | None:
    """Write the page of a forecast of atoms as a moving surface.

    The surface of the mean, coloured by its displacement and by how far the samples' surfaces
    lie apart; single samples may be looked at instead. With a truth its surface stands beside,
    and a JSON, a CSV and a Markdown file of the page's name hold the scores.

    Args:
        moving: The forecast, at the times wanted.
        path: The page, such as ``surface.html``.
        config: Lattice and probe.
        ply: Whether to write ``meshes/mesh-0000.ply`` and so on beside it, too.
        truth: What happened at the same times, unwrapped and in the forecast's pose, Å.

    Returns:
        The scores, if there is a truth.

    Raises:
        UsageError: Several molecules in a box.
    """
    chosen = evenly(len(moving.lags_ps), SHOWN_TIMES)
    left = len(moving.lags_ps) - len(chosen)
    few = moving.at(chosen)
    true = None if truth is None else truth[torch.tensor(chosen)]
    surfaces = AtomSurfaces(few, config, true)
    means = [surfaces.solid(frame) for frame in few.expected.mean]
    forecast = [surfaces.coloured(one.mesh, row) for row, one in enumerate(means)]
    table = None if true is None else _table(surfaces, means, true)
    page = _page(surfaces, forecast, table)
    if left:
        note = f"This page shows {len(chosen)} of {len(moving.lags_ps)} times."
        page = replace(page, notes=[*page.notes, note])
    write_page(path, page)
    if ply:
        for index, mesh in enumerate(forecast):
            write_ply(path.parent / "meshes" / f"mesh-{index:04d}.ply", mesh)
    if table is not None:
        atomic.write_json(path.with_suffix(".json"), table.as_dict())
        atomic.write(path.with_suffix(".csv"), table.csv())
        atomic.write(path.with_suffix(".md"), table.markdown())
    return table


def _table(
    surfaces: AtomSurfaces, means: Sequence[Solid], truth: Float[Tensor, "times atoms 3"]
) -> Table:
    """Score the surfaces of the mean, of the samples and of the trivial rows."""
    moving, config = surfaces.moving, surfaces.config
    copied = surfaces.solid(moving.now)
    middle = centre(moving.now.double())
    scale = 1.1 * float((moving.now.double() - middle).norm(dim=-1).max())
    typical = len(moving.samples) > 1
    scores: dict[str, dict[str, list[float]]] = {}
    for row, frame in enumerate(truth):
        true = surfaces.solid(frame)
        bodies = {MEAN_ROW: means[row]}
        if typical:
            bodies[TYPICAL_ROW] = surfaces.typical(row)
        bodies[COPIED_ROW] = copied
        for name, forecast in moving.trivial.items():
            if name not in ("last position", "ballistic"):
                bodies[name] = surfaces.solid(forecast.mean[row])
        for name, body in bodies.items():
            measured = compare_surfaces(
                body,
                true,
                centre=middle,
                scale=scale,
                generator=torch.Generator().manual_seed(config.seed),
                samples=config.points,
                spacing=config.spacing,
            )
            mine = scores.setdefault(name, {})
            for metric in SURFACE_METRICS:
                mine.setdefault(metric.key, []).append(measured[metric.key])
    return Table(
        title=f"{moving.system.structure.name}: atoms as a moving surface, {len(truth)} times "
        f"from {moving.lags_ps[0]:g} to {moving.lags_ps[-1]:g} ps after the last observed frame, "
        "mean ± std",
        metrics=SURFACE_METRICS,
        rows=tuple(
            Row(
                name=name,
                kind="model" if name in (MEAN_ROW, TYPICAL_ROW) else "trivial",
                values=values,
            )
            for name, values in scores.items()
        ),
        times_ps=moving.lags_ps,
    )


def _page(surfaces: AtomSurfaces, forecast: Sequence[Mesh], table: Table | None) -> Page:
    moving = surfaces.moving
    samples = moving.samples[:SHOWN_SAMPLES]
    further = {}
    if len(moving.samples) > 1:
        further["spread"] = f"spread: standard deviation of {len(moving.samples)} samples, Å"
    scores, series, verdicts = [], None, []
    if table is not None:
        shown = [table.metrics[index] for index in (0, 1, 3)]
        labels = [metric.label for metric in shown]
        for line in table.cells(shown)[1:]:
            scores.append((line[0], dict(zip([*labels, "skill"], line[1:], strict=True))))
        series = {row.name: list(row.values["iou"]) for row in table.rows}
        verdicts = table.verdicts()
    truth = surfaces.truth
    return Page(
        title=f"{moving.system.structure.name}: forecast atoms as a moving surface",
        times_ps=list(moving.lags_ps),
        forecast=list(forecast),
        truth=None
        if truth is None
        else [surfaces.coloured(surfaces.solid(frame).mesh, None) for frame in truth],
        scalar_label="distance from the surface of the last observed frame, Å",
        further_scalars=further,
        scores=scores,
        score_series=series,
        notes=[
            *verdicts,
            "The solvent-excluded surface of forecast atoms, "
            f"probe {surfaces.config.probe:g} Å; times count from the last observed frame.",
            *moving.notes,
        ],
        truth_label="truth",
        form=MEAN_ROW,
        others={
            f"sample {number + 1} of {len(moving.samples)}": [
                surfaces.coloured(surfaces.solid(frame).mesh, row)
                for row, frame in enumerate(sample)
            ]
            for number, sample in enumerate(samples)
        },
    )
