"""How the cost grows: CPU time over the number of atoms, points, nodes, frames and systems.

    python benchmarks/growth.py [--repetitions 3] [--only surface prepare]

A line is fitted to the logarithms of time and size; its slope is the exponent, 1 where the time
is proportional to the size. Fixed costs make small sizes look flat, so the exponent between the
two largest sizes is printed beside it. Atoms are touching copies of villin; points lie in the box
around it; frames and systems are parts and copies of its simulation.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extract import CHUNK, LIPSCHITZ, TIME_PS, bundled_field, tight_box
from field_step import trained_like
from measuring import in_turns, keep, one_thread
from torch import Tensor

from surface import heavy, packed
from undula.data.bundled import villin
from undula.data.prepare import prepare
from undula.data.prepare_config import PrepareConfig
from undula.geometry.isosurface import extract
from undula.geometry.molecular_surface import molecular_surface
from undula.io.structures import load_structure
from undula.io.trajectories import load_trajectory
from undula.surface.forecast import forecast
from undula.surface.trained import TrainedSurface

GOAL = 1.15
COPIES = [(1, 1, 1), (2, 2, 1), (3, 3, 2), (5, 5, 2)]
POINTS = [3_000, 10_000, 30_000, 100_000, 300_000]
STEP_POINTS = [2_048, 4_096, 8_192, 16_384]
NODES = [48, 96, 192]
STRIDES = [16, 8, 4, 2]
SYSTEMS = [1, 2, 4, 8]

Works = Mapping[int, Callable[[], Any]]
"""What to time for each size."""


def small() -> tuple[Tensor, Tensor]:
    """Return positions and radii of villin's heavy atoms."""
    topology, frames, _ = villin()
    trajectory = heavy(load_trajectory(topology, frames))
    return trajectory.positions[0].double(), trajectory.structure.vdw_radii.double()


def copies() -> dict[int, tuple[Tensor, Tensor]]:
    """Return positions and radii of ever more touching copies, by their number of atoms."""
    positions, radii = small()
    return {
        len(radii) * int(np.prod(each)): (packed(positions, each), radii.repeat(int(np.prod(each))))
        for each in COPIES
    }


def clouds() -> Works:
    """Surface and points at 1 Å, over atoms."""
    return {
        atoms: lambda given=given: molecular_surface(*given).cloud(1.0)
        for atoms, given in copies().items()
    }


def meshes() -> Works:
    """Surface and mesh at 0.7 Å, over atoms."""
    return {
        atoms: lambda given=given: molecular_surface(*given).mesh(0.7)
        for atoms, given in copies().items()
    }


def anywhere(positions: Tensor, count: int) -> Tensor:
    """Return points in the box around a molecule and 4 Å more."""
    low, high = positions.amin(dim=0) - 4, positions.amax(dim=0) + 4
    draw = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(count, 3, generator=draw, dtype=torch.float64)


def distances() -> Works:
    """Exact distances of one protein, over points."""
    positions, radii = small()
    surface = molecular_surface(positions, radii)
    return {count: partial(surface.signed_distance, anywhere(positions, count)) for count in POINTS}


def distances_of_larger() -> Works:
    """Exact distances at 30,000 points, over atoms."""
    return {
        atoms: partial(
            molecular_surface(positions, radii).signed_distance, anywhere(positions, 30_000)
        )
        for atoms, (positions, radii) in copies().items()
    }


def forecasts() -> Works:
    """The bundled model's field at one time, over points."""
    topology, _, model = villin()
    structure = load_structure(topology)
    moving = forecast(structure, [TIME_PS], TrainedSurface.load(model))
    positions = structure.positions.double()

    def work(points: Tensor) -> Callable[[], None]:
        def run() -> None:
            for part in points.split(CHUNK):
                moving.sdf(part, TIME_PS)

        return run

    return {count: work(anywhere(positions, count)) for count in POINTS}


def field_steps() -> Works:
    """Value, gradient and their way back in a network of 8×512, over points."""
    network, draw = trained_like(), torch.Generator().manual_seed(2)
    condition = torch.randn(network.config.condition, generator=draw) / 8

    def work(points: Tensor) -> Callable[[], None]:
        def run() -> None:
            network.zero_grad(set_to_none=True)
            for part in points.split(CHUNK):
                value, gradient = network.value_and_gradient(part, condition)
                (value.abs().sum() + (gradient.norm(dim=1) - 1).square().sum()).backward()

        return run

    return {count: work(2 * torch.rand(count, 3, generator=draw) - 1) for count in STEP_POINTS}


def extractions() -> Works:
    """The bundled model's level set, over nodes of the lattice."""
    field = bundled_field()
    lattices = [tight_box(nodes) for nodes in NODES]
    return {
        int(np.prod(lattice.shape)): partial(
            extract, field, lattice, lipschitz=LIPSCHITZ, chunk=CHUNK
        )
        for lattice in lattices
    }


def preparing() -> Works:
    """A data set of one simulation, over frames."""
    topology, frames, _ = villin()
    total = len(load_trajectory(topology, frames))

    def work(stride: int) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                prepare(topology, [frames], Path(folder) / "set", PrepareConfig(stride=stride))

        return run

    return {len(range(0, total, stride)): work(stride) for stride in STRIDES}


def preparing_systems() -> Works:
    """Data sets of a few frames each, over systems."""
    topology, frames, _ = villin()

    def work(count: int) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                for index in range(count):
                    prepare(
                        topology, [frames], Path(folder) / f"set-{index}", PrepareConfig(stride=50)
                    )

        return run

    return {count: work(count) for count in SYSTEMS}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Return the slope of the logarithm of time over the logarithm of size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def measured(name: str, over: str, works: Works, repetitions: int) -> dict[str, Any]:
    """Time all sizes in turns and fit."""
    watches = in_turns({str(size): work for size, work in works.items()}, repetitions)
    sizes, seconds = list(works), [min(watch.cpu) for watch in watches.values()]
    return {
        "name": name,
        "over": over,
        "sizes": sizes,
        "cpu_min_s": seconds,
        "exponent": exponent(sizes, seconds),
        "exponent_of_the_two_largest": exponent(sizes[-2:], seconds[-2:]),
        "times": {size: watch.summary() for size, watch in watches.items()},
    }


def printed(row: dict[str, Any]) -> None:
    """Print one curve."""
    reached = "reached" if row["exponent"] <= GOAL else "NOT reached"
    print(
        f"{row['name']}, over {row['over']}: exponent {row['exponent']:.2f}, of the two largest "
        f"{row['exponent_of_the_two_largest']:.2f} (goal ≤ {GOAL}: {reached})"
    )
    for size, seconds in zip(row["sizes"], row["cpu_min_s"], strict=True):
        print(f"  {size:12,d} {1e3 * seconds:10.1f} ms {1e6 * seconds / size:10.2f} µs each")


BENCHMARKS: dict[str, tuple[str, str, Callable[[], Works]]] = {
    "surface": ("surface and points at 1 Å", "atoms", clouds),
    "mesh": ("surface and mesh at 0.7 Å", "atoms", meshes),
    "distance": ("exact distances", "points", distances),
    "distance-atoms": ("exact distances at 30,000 points", "atoms", distances_of_larger),
    "forecast": ("bundled forecast's field", "points", forecasts),
    "field-step": ("training step 8×512", "points", field_steps),
    "extract": ("bundled forecast's level set", "nodes", extractions),
    "prepare": ("preparing", "frames", preparing),
    "systems": ("preparing 2 frames each", "systems", preparing_systems),
}
"""Title, what it grows with, and the work, by name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    rows = []
    for name in options.only:
        title, over, works = BENCHMARKS[name]
        rows.append(measured(title, over, works(), options.repetitions))
        printed(rows[-1])
    keep("growth", rows)


if __name__ == "__main__":
    main()
