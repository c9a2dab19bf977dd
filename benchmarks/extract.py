"""Level sets of trained fields: from coarse to fine against every node of the lattice.

    python benchmarks/extract.py [--nodes 128 256] [--repetitions 3] [--depth 4 --width 256]

Two fields: the bundled forecast of villin (splines on grids that correct an exact distance), and
a network of DSR's kind, trained here for about a minute on the distances of villin's first
frame. The lattice is DSR's cube, [-1, 1]³ in the units of the model. The dense lattice at 256³
is evaluated once; memory is that of a process that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Stopwatch, keep, one_thread, ratio, shown
from torch import Tensor

from undula.data.bundled import villin
from undula.geometry.isosurface import Field, LevelSet, extract
from undula.geometry.lattice import Lattice
from undula.geometry.molecular_surface import molecular_surface
from undula.io.structures import load_structure
from undula.nn.implicit import ImplicitConfig, ImplicitNetwork
from undula.surface.forecast import forecast
from undula.surface.trained import TrainedSurface

TIME_PS = 100.0
LIPSCHITZ = 1.3
CHUNK = 4096
STEPS = 400


def cube(nodes: int) -> Lattice:
    """Return DSR's cube around villin."""
    trained = TrainedSurface.load(villin()[2])
    centre, scale = trained.model.centres[0], float(trained.model.scales[0])
    return Lattice(
        origin=(centre - scale).double(), spacing=2 * scale / (nodes - 1), shape=(nodes,) * 3
    )


def tight_box(nodes: int) -> Lattice:
    """Return a lattice of about nodes³ nodes over villin's atoms and 3 Å around them."""
    positions = load_structure(villin()[0]).positions.double()
    low, high = positions.amin(dim=0) - 3, positions.amax(dim=0) + 3
    return Lattice.covering(low, high, float((high - low).prod()) ** (1 / 3) / (nodes - 1))


def bundled_field() -> Field:
    """Return the bundled model's forecast at one time."""
    topology, _, model = villin()
    structure = load_structure(topology)
    moving = forecast(structure, [TIME_PS], TrainedSurface.load(model))
    return lambda points: moving.sdf(points, TIME_PS)


def network_field(depth: int, width: int) -> Field:
    """Train a network of DSR's kind on the distances of villin's first frame."""
    structure = load_structure(villin()[0])
    surface = molecular_surface(structure.positions.double(), structure.vdw_radii.double())
    lattice = cube(2)
    centre, scale = lattice.origin + lattice.spacing / 2, lattice.spacing / 2
    chance = torch.Generator().manual_seed(0)
    cloud = surface.cloud(0.5).points
    near = cloud[torch.randint(len(cloud), (150_000,), generator=chance)]
    near = near + torch.randn(near.shape, generator=chance, dtype=torch.float64)
    anywhere = centre + scale * (2 * torch.rand(50_000, 3, generator=chance).double() - 1)
    points = torch.cat([near, anywhere])
    labels = (surface.signed_distance(points) / scale).float()
    inputs = ((points - centre) / scale).float()
    network = ImplicitNetwork(
        ImplicitConfig(depth=depth, width=width, skip_at=depth // 2, geometric_radius=0.7), chance
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    nothing = torch.zeros(0)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (CHUNK,), generator=chance)
        loss = (network(inputs[rows], nothing) - labels[rows]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    print(f"trained {depth}×{width}: mean error {scale * float(loss.detach()):.2f} Å")

    def field(points: Tensor) -> Tensor:
        values = network(((points - centre) / scale).float(), nothing)
        return (scale * values).to(points.dtype)

    return field


def compared(name: str, field: Field, lattice: Lattice, repetitions: int) -> dict[str, Any]:
    """Extract a level set both ways, in turns."""

    def found(lipschitz: float) -> Callable[[], LevelSet]:
        return lambda: extract(field, lattice, lipschitz=lipschitz, chunk=CHUNK)

    own, dense = Stopwatch(), Stopwatch()
    for _ in range(repetitions):
        own.run(found(LIPSCHITZ))
        dense.run(found(math.inf))
    a, b = own.result.inside, dense.result.inside
    return {
        "field": name,
        "nodes": " × ".join(map(str, lattice.shape)),
        "spacing_angstrom": lattice.spacing,
        "evaluations_own": own.result.evaluations,
        "evaluations_dense": dense.result.evaluations,
        "evaluations_ratio": dense.result.evaluations / own.result.evaluations,
        "iou": float((a & b).sum() / (a | b).sum()),
        "filled": float(b.double().mean()),
        "time_ratio": ratio(dense.cpu, own.cpu),
        "times": {"own": own.summary(), "dense": dense.summary()},
    }


def printed(row: dict[str, Any]) -> None:
    """Print one comparison."""
    print(
        f"{row['field']}, {row['nodes']}: own {row['times']['own']['cpu_median_s']:.2f} s, "
        f"dense {row['times']['dense']['cpu_median_s']:.2f} s, "
        f"{shown(row['time_ratio'])} times; evaluations 1/{row['evaluations_ratio']:.2f}, "
        f"IoU {row['iou']:.6f}, {100 * row['filled']:.0f} % inside",
        flush=True,
    )


def memory(nodes: int) -> None:
    """Print by how many MiB the largest extraction raises this process's peak, and the peak."""
    field = bundled_field()
    extract(field, cube(48), lipschitz=LIPSCHITZ, chunk=CHUNK)
    before = _peak_mib()
    extract(field, cube(nodes), lipschitz=LIPSCHITZ, chunk=CHUNK)
    print(_peak_mib() - before, _peak_mib())


def _peak_mib() -> int:
    # The kernel's figure for this program; getrusage would count the parent's memory too.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[128, 256], help="along an axis")
    parser.add_argument("--repetitions", type=int, default=3, help="at 128³; 1 at larger ones")
    parser.add_argument("--depth", type=int, default=4, help="of the network")
    parser.add_argument("--width", type=int, default=256, help="of the network")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    if options.memory:
        memory(options.memory)
        return
    fields = {
        "splines on grids, bundled": bundled_field(),
        f"network {options.depth}×{options.width}": network_field(options.depth, options.width),
    }
    rows = []
    for name, field in fields.items():
        extract(field, cube(32), lipschitz=LIPSCHITZ, chunk=CHUNK)
        for nodes in options.nodes:
            repetitions = options.repetitions if nodes <= 128 else 1
            for lattice in (cube(nodes), tight_box(nodes)):
                rows.append(row := compared(name, field, lattice, repetitions))
                printed(row)
    largest = max(options.nodes)
    done = subprocess.run(
        [sys.executable, __file__, "--memory", str(largest)],
        capture_output=True,
        text=True,
        check=True,
    )
    more, peak = map(int, done.stdout.split())
    print(f"memory at {largest}³: {more} MiB more, {peak} MiB at most with all libraries")
    rows.append({"nodes": f"{largest}³", "more_memory_mib": more, "peak_memory_mib": peak})
    keep("extract", rows)


if __name__ == "__main__":
    main()
