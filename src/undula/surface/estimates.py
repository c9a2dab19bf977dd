"""Memory and time of a surface forecast, from a structure's extent alone.

The constants were fitted to peaks of fresh processes (``benchmarks/memory.py`` measures and
prints them); what is kept and what is passing is told apart as the code does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from undula.errors import MachineError
from undula.estimates import (
    Estimate,
    check_fits,
    first_that_fits,
    memory_limit,
    peak_bytes,
    room_bytes,
    shown_memory,
)
from undula.geometry.blocks import EDGE
from undula.geometry.elastic_network import LARGEST_DENSE
from undula.geometry.extent import Extent, extent, nodes_around, own_extent
from undula.surface.clouds import AT_ONCE
from undula.surface.first_frame import BLUR_SPACING, REACH, SLAB, LocalConfig
from undula.types import Structure

if TYPE_CHECKING:
    from undula.surface.mixture_task import MixtureBatchConfig

MARGIN = 6.0
"""Space between the first frame's atoms and the lattice of extraction, Å; doubled if too small."""
KEPT_BYTES = 2**30
"""What is known of a lattice's points is kept if it takes no more than this."""
SHOWN_SAMPLES = 4
"""How many samples a page shows at most."""
SHOWN_VERTICES = 400_000
"""Of all their meshes together, about 6 MB; larger forecasts show fewer samples, at least one."""
WIDEST_SPACING = 4.0
"""Å; a wider one shows no surface."""

PER_ATOM = 1600
"""Bytes of three exact surfaces and the structure."""
PER_ROUTED, PER_ROUTER_POINT = 13_000, 2_200
"""Bytes for each point that is sent messages at once, and for each point."""
PER_BLURRED, PER_SLAB = 24, 24
"""Bytes for each node of the blurred first frame, and more for those worked on at once."""
BLOCKED_REACH = 9.5
"""How far from the surface the blocks of a large blurred first frame go on average, Å."""
PER_NODE, PER_NEAR = 110, 850
"""Bytes for each node of a lattice whose points are kept, and for each near the surface."""
PER_LATTICE_NODE = 45
"""Bytes for each node while a level set is found."""
PER_VERTEX = 170
"""Bytes for each vertex of all meshes."""
PER_DENSE = 4 * 8
"""Bytes for each entry of a dense network."""
PER_CONTACT = 6_000
"""Bytes for each residue of a larger network."""
PER_ATOM_SAMPLE = 24
"""Bytes for each atom and sample."""
BLUR_REACH = 27
"""Nodes that the widest Gaussian usually reaches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceSize:
    """What the cost of a protein's surface depends on.

    Attributes:
        positions: Of the atoms, Å.
        residues: How many there are.
        extent: Of the surface.
        blurred: Nodes of the blurred first frame; 0 for a model that needs none, nor a router.
        plane: Of them, those of a plane.
        scale: Of a structure so many times as large; 1 for this one.
    """

    positions: Float[Tensor, "atoms 3"]
    residues: int
    extent: Extent
    blurred: int
    plane: int
    scale: float = 1.0

    @classmethod
    def of(cls, structure: Structure, config: LocalConfig | None) -> SurfaceSize:
        """Measure a structure, in a second at most.

        Args:
            structure: The first frame.
            config: What a model for any protein tells its points; none for another model.
        """
        positions = structure.positions.double()
        blurred = plane = 0
        if config is not None:
            own, margin = own_extent(positions), REACH + 2 * max(config.blurs)
            blurred = nodes_around(own, margin, BLUR_SPACING)
            plane = nodes_around(own[:, 1:], margin, BLUR_SPACING)
        return cls(
            positions=positions,
            residues=structure.residues,
            extent=extent(positions, REACH, BLOCKED_REACH),
            blurred=blurred,
            plane=plane,
        )

    def nodes(self, spacing: float, margin: float) -> float:
        """Return the nodes of a lattice around the atoms."""
        return self.scale * nodes_around(self.positions, margin, spacing)


def known_bytes(size: SurfaceSize, nodes: float, spacing: float) -> float:
    """Return what keeping all that is known of the points of a lattice takes."""
    return PER_NODE * nodes + PER_NEAR * size.scale * size.extent.shells[0] / spacing**3


def blurred_nodes(size: SurfaceSize) -> tuple[float, float]:
    """Return how many nodes of the blurred first frame are kept, and worked on at once."""
    nodes = size.scale * size.blurred
    if nodes <= SLAB:
        return nodes, nodes
    blocked = size.scale * size.extent.shells[1] / BLUR_SPACING**3
    plane = size.scale ** (2 / 3) * size.plane
    halo = 2 * BLUR_REACH
    return min(blocked, nodes), min(nodes, max(float(SLAB), plane * (halo + 2 * EDGE)))


@dataclass(frozen=True, kw_only=True)
class SurfaceWork:
    """What is asked for.

    Attributes:
        spacing: Of the meshes, Å.
        times: How many.
        samples: Drawn at each.
        level: Of the level set, Å.
        kept_bytes: As in `undula.surface.forecast.MovingSurface`.
    """

    spacing: float = 1.0
    times: int = 1
    samples: int = 0
    level: float = 0.0
    kept_bytes: int = KEPT_BYTES

    def meshes(self, vertices: float) -> float:
        """Return how many meshes of so many vertices are held at once at the end."""
        shown = max(min(SHOWN_SAMPLES, SHOWN_VERTICES / max(vertices * self.times, 1)), 1)
        return float(self.times * (1 + min(self.samples, shown)))


def forecast_bytes(size: SurfaceSize, work: SurfaceWork) -> float:
    """Return how much a forecast adds to what the process holds, at its peak, bytes."""
    atoms, residues = (size.scale * count for count in (size.extent.atoms, size.residues))
    points = size.scale * size.extent.area / 4
    nodes = size.nodes(work.spacing, MARGIN + max(work.level, 0.0))
    vertices = 1.6 * size.scale * size.extent.area / work.spacing**2
    kept, at_once = blurred_nodes(size)
    if not size.blurred:
        points = 0.0
    routed = PER_ROUTED * min(points, 2 * AT_ONCE) + PER_ROUTER_POINT * points
    known = known_bytes(size, nodes, work.spacing)
    known = known if known <= work.kept_bytes else 0.0
    small = 3 * residues <= LARGEST_DENSE
    network = PER_DENSE * (9 if work.samples else 1) * residues**2
    if not small:
        network = PER_DENSE * (LARGEST_DENSE / 1.2) ** 2 * bool(work.samples)
        network += PER_CONTACT * residues
    moving = PER_ATOM_SAMPLE * atoms * work.samples
    extraction = PER_LATTICE_NODE * nodes + moving
    held = PER_BLURRED * kept + min(routed, 120e6)
    passing = max(PER_SLAB * at_once, network + 0.6 * known, known + extraction)
    meshes = PER_VERTEX * vertices * work.meshes(vertices)
    return PER_ATOM * atoms + max(routed, held + passing) + meshes


def forecast_seconds(size: SurfaceSize, work: SurfaceWork) -> float:
    """Return about how long a forecast and its page take on one core, s."""
    area = size.scale * size.extent.area
    vertices, near = (
        1.6 * area / work.spacing**2,
        size.scale * size.extent.shells[0] / work.spacing**3,
    )
    blurred, evaluations = size.scale * size.blurred, 4.5 * vertices
    kept = known_bytes(size, size.nodes(work.spacing, MARGIN), work.spacing) <= work.kept_bytes
    first = 1.5e-4 * size.extent.atoms * size.scale + 1e-4 * area + 1e-6 * blurred
    each = 6e-6 * evaluations + (0.0 if kept else 3e-5 * evaluations) + 1e-4 * vertices
    spread = 1.5e-6 * vertices * work.samples
    return 3 + first + (3e-5 * near if kept else 0.0) + work.meshes(vertices) * (each + spread)


def estimate(size: SurfaceSize, work: SurfaceWork) -> Estimate:
    """Estimate a forecast from now on."""
    return Estimate(
        memory_bytes=peak_bytes(forecast_bytes(size, work)),
        seconds=forecast_seconds(size, work),
    )


def fitted(
    size: SurfaceSize, work: SurfaceWork, limit: int, name: str
) -> tuple[SurfaceWork, Estimate]:
    """Cut a forecast into parts so that it fits, or say at once that it does not.

    Args:
        size: Of the structure.
        work: What is asked for.
        limit: Memory of the process, bytes.
        name: Of the structure, for the message.

    Returns:
        The same work, keeping less if need be, and what it takes.

    Raises:
        MachineError: It does not fit; says which spacing does, or else what.
    """
    for kept in (work.kept_bytes, 0):
        asked = replace(work, kept_bytes=kept)
        if (found := estimate(size, asked)).memory_bytes <= limit:
            return asked, found
    what = f"{name}: a surface forecast at a spacing of {work.spacing:g} Å"
    check_fits(found, limit, what, what_fits(size, asked, limit))
    raise MachineError(f"{what} does not fit")


def what_fits(size: SurfaceSize, work: SurfaceWork, limit: int) -> str:
    """Say which spacing fits, or else how many times, or how large a structure."""
    room = room_bytes(limit)

    def spaced(spacing: float) -> float:
        return forecast_bytes(size, replace(work, spacing=spacing, kept_bytes=0))

    steps = int(WIDEST_SPACING * 10) + 1
    wider = [k / 10 for k in range(1, steps) if k / 10 > work.spacing]
    if (spacing := first_that_fits(wider, spaced, room)) is not None:
        return f"a spacing of {spacing:g} Å fits"

    def scaled(scale: float, bare: SurfaceWork) -> float:
        return forecast_bytes(replace(size, scale=scale * size.scale), bare)

    fewer = replace(work, kept_bytes=0, times=1, samples=0)
    alone = first_that_fits(
        [work.spacing, *wider], lambda spacing: scaled(1.0, replace(fewer, spacing=spacing)), room
    )
    if alone is not None:
        return f"one time without samples at a spacing of {alone:g} Å fits, in several runs"
    bare = replace(fewer, spacing=max(work.spacing, 1.0))
    scale = first_that_fits([0.9**k for k in range(1, 100)], partial(scaled, bare=bare), room)
    if scale is None:
        needed = peak_bytes(scaled(0.0, bare))
        return f"no structure fits, undula alone takes {shown_memory(needed)}"
    atoms = float(f"{scale * size.scale * size.extent.atoms:.1g}")
    return (
        f"no spacing fits, about {atoms:,.0f} atoms at {bare.spacing:g} Å do: choose chains "
        "with --chain"
    )


TRAINING_BYTES = 80_000_000
"""Of optimiser, loop and what a training loads, beside its data."""
PER_TRAINED_POINT = 40_000
"""Bytes for each point of the routers' clouds of a step, for the way back."""
PER_TRAINED_ROW = 5_000
"""Bytes for each point at which experts are asked in a step."""
PER_KEPT_POINT, PER_KEPT_ATOM, PER_KEPT_PROTEIN = 1_000, 2_000, 1_500_000
"""Bytes that stay for each training protein: of its cloud, surface and fixed points."""


def training_estimate(
    sizes: Sequence[SurfaceSize], batch: MixtureBatchConfig, steps: int
) -> Estimate:
    """Estimate the training of a model for any protein, from now on.

    Args:
        sizes: Of the first frames of all training trajectories.
        batch: What a step sees.
        steps: How many.
    """
    clouds = sorted((size.extent.area / 4 for size in sizes), reverse=True)
    met = sum(clouds[: batch.proteins])
    rows = batch.proteins * batch.frames * batch.points
    kept = sum(
        PER_KEPT_POINT * size.extent.area / 4 + PER_KEPT_ATOM * size.extent.atoms for size in sizes
    )
    blurred = max((blurred_nodes(size)[0] for size in sizes), default=0.0)
    step = PER_TRAINED_POINT * met + PER_TRAINED_ROW * rows
    added = TRAINING_BYTES + kept + PER_KEPT_PROTEIN * len(sizes)
    added += max((PER_BLURRED + PER_SLAB) * blurred, step)
    mean = batch.proteins * sum(clouds) / max(len(clouds), 1)
    return Estimate(
        memory_bytes=peak_bytes(added),
        seconds=10 + 3e-4 * sum(clouds) + steps * (1.2e-4 * mean + 1.5e-5 * rows),
    )


def check_training(
    sizes: Sequence[SurfaceSize], batch: MixtureBatchConfig, steps: int, asked: int | None
) -> Estimate:
    """Estimate a training, or refuse it before it begins.

    Args:
        sizes: Of the first frames of all training trajectories.
        batch: What a step sees.
        steps: How many.
        asked: The memory limit, bytes; by default what there is.

    Raises:
        MachineError: It does not fit; says how many proteins in a step do.
    """
    limit = memory_limit(asked)
    found = training_estimate(sizes, batch, steps)

    def needed(proteins: int) -> float:
        fewer = replace(batch, proteins=proteins)
        return float(training_estimate(sizes, fewer, steps).memory_bytes)

    if found.memory_bytes > limit:
        fit = first_that_fits(range(batch.proteins - 1, 0, -1), needed, float(limit))
        instead = f"batch.proteins={fit} fits" if fit else "train on fewer or smaller proteins"
        check_fits(found, limit, f"a training with {batch.proteins} proteins in a step", instead)
    return found


PER_STATIC_ATOM = 20_000
"""Bytes for each atom of what the trivial rows and the first frames of a protein take."""
PER_NEURON = 12
"""Bytes for each point and neuron of a step, for the way back."""


def check_protein_training(
    atoms: int, rows: int, neurons: int, steps: int, asked: int | None
) -> Estimate:
    """Estimate the training of a model for its training proteins alone, or refuse it.

    Args:
        atoms: Of all proteins.
        rows: Points in a step.
        neurons: Hidden ones of the network; 0 for grids.
        steps: How many.
        asked: The memory limit, bytes; by default what there is.

    Raises:
        MachineError: It does not fit; says how many points in a step do.
    """
    limit = memory_limit(asked)
    other = TRAINING_BYTES + PER_STATIC_ATOM * atoms
    found = Estimate(
        memory_bytes=peak_bytes(other + PER_NEURON * rows * neurons),
        seconds=10 + steps * (1e-8 * rows * neurons + 0.1),
    )
    fit = int((room_bytes(limit) - other) // max(PER_NEURON * neurons, 1))
    instead = f"{fit} points fit: lower batch.frames, batch.surface or batch.pool"
    if fit < 1:
        instead = "train on fewer or smaller proteins"
    check_fits(found, limit, f"a training with {rows} points in a step", instead)
    return found
