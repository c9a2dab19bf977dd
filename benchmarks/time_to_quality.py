"""How long until a learned surface is good: splines on grids against DSR's network and loss.

    python benchmarks/time_to_quality.py [--limit 10] [--tasks frame ensemble]

``frame``: one frame of villin learned from a sphere, until the IoU with its solid is 0.9.
``ensemble``: the first half of villin's simulation; IoU with the last fifth of those frames,
which training does not see, until 95 % of what the grids gain on the copied first frame.

DSR runs at its published learning rate with all surface points in a step, and at higher rates
with fewer points, which is its best use of a short time; all with our explicit gradient, which
makes it faster than it is with autograd. It is stopped at ``limit`` times our time. CPU seconds;
measuring the IoU is not counted; making the labelled points is counted as ours, but not as DSR's.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import cpu_seconds, keep, one_thread
from torch import Tensor

from undula.data.bundled import villin
from undula.data.prepare import prepare, surface_of
from undula.data.prepare_config import PrepareConfig
from undula.geometry.comparison import intersection_over_union
from undula.geometry.lattice import Lattice
from undula.geometry.sampling import around_surface, local_scale, near_surface, uniform_in_box
from undula.io.datasets import Dataset
from undula.io.structures import load_structure
from undula.nn.grid import GridConfig, GridField
from undula.nn.implicit import ImplicitConfig, ImplicitNetwork
from undula.surface.losses import (
    LossConfig,
    distance_loss,
    eikonal_loss,
    manifold_loss,
    normal_loss,
)
from undula.surface.model import SurfaceModelConfig
from undula.surface.task import BatchConfig, SurfaceTask
from undula.surface.time import TimeConfig

OWN, PUBLISHED = "splines on grids, exact distances", "DSR, lr 1e-4, all points"
FASTER = {f"DSR, lr {rate:g}, 512 points": rate for rate in (3e-4, 1e-3, 3e-3)}
SPACING, CHUNK, NOTHING = 1.2, 4096, torch.zeros(0)
GOAL, UNTIL_PS = 0.9, 247.5

Curve = list[tuple[float, float]]


def curve(
    step: Callable[[int], Tensor],
    parameters: list[dict[str, Any]],
    quality: Callable[[], float],
    *,
    spent: float = 0.0,
    steps: int | None = None,
    goal: float = math.inf,
    budget: float = math.inf,
) -> Curve:
    """Train by Adam until a goal, a number of steps or a budget; return (CPU seconds, quality).

    A number of steps brings a cosine schedule with it; quality is looked at ever more rarely.
    """
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.0)
    rates = [group["lr"] for group in optimiser.param_groups]
    found, due, done = [(spent, quality())], spent, 0
    while done != steps and spent < budget:
        start = cpu_seconds()
        if steps is not None:
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * done / steps)) / 2
        optimiser.zero_grad()
        step(done).backward()
        optimiser.step()
        spent, done = spent + cpu_seconds() - start, done + 1
        if spent >= due or done == steps or spent >= budget:
            found.append((spent, quality()))
            due = spent + max(0.15 * (spent - found[0][0]), 0.02)
            if found[-1][1] >= goal:
                break
    return found


def evaluated(field: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Return a field's values in chunks, without a graph."""
    with torch.no_grad():
        return torch.cat([field(part) for part in points.split(CHUNK)])


def first_frame(limit: float) -> dict[str, Any]:
    """Learn one surface from a sphere."""
    structure = load_structure(villin()[0])
    structure = structure.select(structure.elements != "H")
    surface = surface_of(structure)
    centre = structure.positions.mean(dim=0)
    scale = 1.1 * float((structure.positions - centre).norm(dim=1).max())
    low, high = centre - scale, centre + scale
    lattice = Lattice.covering(low, high, SPACING)
    solid = surface.lattice_distance(lattice.origin, SPACING, lattice.shape, band=2.0) < 0
    cloud = surface.cloud(1.0)
    draw = torch.Generator().manual_seed(0)

    def normalised(points: Tensor) -> Tensor:
        return ((points - centre) / scale).float()

    nodes = normalised(lattice.points())

    def quality(network: GridField | ImplicitNetwork) -> Callable[[], float]:
        def of() -> float:
            values = evaluated(lambda part: network(part, NOTHING), nodes)
            return intersection_over_union(values.reshape(lattice.shape) < 0, solid)

        return of

    start = cpu_seconds()
    chosen = torch.randint(len(cloud), (60_000,), generator=draw)
    near = near_surface(cloud.points[chosen], torch.ones(len(chosen)), draw)
    pool = torch.cat([near, uniform_in_box(low, high, 20_000, draw)])
    distances = (surface.signed_distance(pool) / scale).float()
    pool = normalised(pool)
    labels = cpu_seconds() - start

    field = GridField(GridConfig(geometric_radius=0.5), torch.Generator().manual_seed(0))

    def own(_: int) -> Tensor:
        rows = torch.randint(len(pool), (CHUNK,), generator=draw)
        return distance_loss(field(pool[rows], NOTHING), distances[rows])

    groups = [{"params": field.parameters(), "lr": 0.01}]
    curves = {OWN: curve(own, groups, quality(field), spent=labels, goal=GOAL)}
    budget = limit * curves[OWN][-1][0]
    deviations = local_scale(cloud.points)

    def peer(count: int, rate: float) -> Curve:
        network = ImplicitNetwork(ImplicitConfig(), torch.Generator().manual_seed(0))

        def step(_: int) -> Tensor:
            rows = torch.randperm(len(cloud), generator=draw)[:count]
            points, deviation = cloud.points[rows], deviations[rows]
            around = around_surface(points, deviation, low, high, draw, reading="dsr")
            return _dsr_loss(
                network, normalised(points), cloud.normals[rows].float(), normalised(around)
            )

        groups = [{"params": network.parameters(), "lr": rate}]
        return curve(step, groups, quality(network), goal=GOAL, budget=budget)

    curves[PUBLISHED] = peer(len(cloud), 1e-4)
    for name, rate in FASTER.items():
        curves[name] = peer(512, rate)
    return _row("frame", curves, GOAL, labels_s=labels)


def _dsr_loss(network: ImplicitNetwork, on: Tensor, normals: Tensor, around: Tensor) -> Tensor:
    value, gradient = network.value_and_gradient(on, NOTHING)
    _, slope = network.value_and_gradient(around, NOTHING)
    return manifold_loss(value) + normal_loss(gradient, normals) + 0.1 * eikonal_loss(slope)


def ensemble(limit: float, folder: Path) -> dict[str, Any]:
    """Learn how a surface moves."""
    topology, trajectory, _ = villin()
    start = cpu_seconds()
    dataset = prepare(topology, [trajectory], folder, PrepareConfig())
    labels = cpu_seconds() - start
    grids = SurfaceModelConfig(grid=GridConfig(), time=TimeConfig(scales=3), latent=8)
    dsr = SurfaceModelConfig(
        network=ImplicitConfig(), time=TimeConfig(kind="linear"), latent=192, base="none"
    )
    dsr_loss = LossConfig(
        distance=0, manifold=1, normal=1, eikonal=0.1, latent=1e-3, units="normalised"
    )
    batch = BatchConfig(until_ps=UNTIL_PS)
    few = replace(batch, surface=512, pool=576, frames=1)
    task = SurfaceTask([dataset], grids, LossConfig(), batch)
    seen = _Validation(dataset, task)
    curves = {
        OWN: curve(
            _stepping(task),
            _groups(task, 0.01, decay=1.0),
            seen.quality(task),
            spent=labels,
            steps=300,
        )
    }
    copied, best = curves[OWN][0][1], max(value for _, value in curves[OWN])
    goal = copied + 0.95 * (best - copied)
    budget = limit * _reached(curves[OWN], goal)
    rows = len(task.trajectories[0].surface(0))
    contestants = {PUBLISHED: (1e-4, replace(few, surface=rows, pool=rows * 9 // 8))}
    contestants |= {name: (rate, few) for name, rate in FASTER.items()}
    for name, (rate, seen_at_once) in contestants.items():
        peer = SurfaceTask([dataset], dsr, dsr_loss, seen_at_once)
        curves[name] = curve(
            _stepping(peer), _groups(peer, rate), seen.quality(peer), goal=goal, budget=budget
        )
    return _row("ensemble", curves, goal, labels_s=labels, copied=copied)


class _Validation:
    """The solids of some frames that training does not see."""

    def __init__(self, dataset: Dataset, task: SurfaceTask) -> None:
        positions = dataset.structure.positions
        low, high = positions.min(dim=0).values - 4, positions.max(dim=0).values + 4
        self.lattice = Lattice.covering(low, high, SPACING)
        self.nodes = self.lattice.points().float()
        trajectory = task.trajectories[0]
        frames = [frame.frame for frame in task.validation[::2]]
        self.lags = [float(trajectory.times_ps[frame]) for frame in frames]
        self.solids = [self._distance(dataset, trajectory.positions[frame]) < 0 for frame in frames]
        self.base = self._distance(dataset, trajectory.positions[0], band=None)

    def _distance(self, dataset: Dataset, positions: Any, band: float | None = 2.0) -> Tensor:
        structure = replace(dataset.structure, positions=torch.tensor(positions))
        lattice = self.lattice
        values = surface_of(structure).lattice_distance(
            lattice.origin, lattice.spacing, lattice.shape, band=band
        )
        return values.flatten().float()

    def quality(self, task: SurfaceTask) -> Callable[[], float]:
        model = task.module
        has_base = model.config.base == "first-frame"

        def of() -> float:
            total = 0.0
            for lag, solid in zip(self.lags, self.solids, strict=True):
                latent = model.latents[:1].detach()
                condition = model.conditions(torch.tensor([lag]), latent)[0].detach()
                values = evaluated(
                    lambda part, condition=condition: model.field(part, condition, 0), self.nodes
                )
                inside = (values + self.base if has_base else values) < 0
                total += intersection_over_union(inside, solid)
            return total / len(self.solids)

        return of


def _stepping(task: SurfaceTask) -> Callable[[int], Tensor]:
    draw = torch.Generator().manual_seed(0)
    return lambda step: task.loss(task.batch(step, draw), step)[0]


def _groups(task: SurfaceTask, rate: float, decay: float = 0.0) -> list[dict[str, Any]]:
    return [
        {
            "params": list(group.parameters),
            "lr": rate * group.learning_rate_factor,
            "weight_decay": decay if group.name == "network" else 0.0,
        }
        for group in task.parameter_groups()
    ]


def _reached(found: Curve, goal: float) -> float:
    return next((spent for spent, value in found if value >= goal), math.inf)


def _row(task: str, curves: dict[str, Curve], goal: float, **more: float) -> dict[str, Any]:
    own = _reached(curves[OWN], goal)
    print(f"\n{task}: until the IoU is {goal:.3f} ({more})")
    for name, found in curves.items():
        spent, value = found[-1]
        reached = _reached(found, goal)
        if math.isfinite(reached):
            print(f"  {name:36s} {reached:7.1f} s, {reached / own:.1f} times ours")
        else:
            print(f"  {name:36s} > {spent:5.1f} s, > {spent / own:.1f} times ours: IoU {value:.3f}")
    least = min(found[-1][0] / own for name, found in curves.items() if name != OWN)
    print(f"  goal ≥ 10 times: {'reached' if least >= 10 else 'NOT reached'}")
    return {"task": task, "goal_iou": goal, "curves": curves, **more}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=10.0)
    parser.add_argument("--tasks", nargs="+", default=["frame", "ensemble"])
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    rows = []
    if "frame" in options.tasks:
        rows.append(first_frame(options.limit))
    if "ensemble" in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(ensemble(options.limit, Path(folder) / "villin"))
    keep("time_to_quality", rows)


if __name__ == "__main__":
    main()
