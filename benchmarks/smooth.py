"""Normals smoothed by a Gaussian: the grid against the sum over all pairs in torch.

    python benchmarks/smooth.py [--repetitions 5]

The points are those of the exact surface of a protein (363 residues where the shared data are
here, the bundled villin elsewhere), as dense as it takes for 20,000 and shuffled, so that fewer
are an even choice of them. The sum over all pairs is taken as a user would write it, in slices of
rows of several sizes, and as `exactly_smoothed_normals` does it, which avoids exponents that
underflow; the fastest of all counts. All have one thread. Errors are angles between the grid's
normals and those of the sum in double precision.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from measuring import DATA, in_turns, keep, one_thread, ratio, shown
from torch import Tensor
from torch.nn import functional

from undula.data.bundled import villin
from undula.data.prepare import surface_of
from undula.geometry.smoothing import exactly_smoothed_normals, smoothed_normals
from undula.io.structures import load_structure
from undula.types import SurfaceCloud

SIZES = (2_000, 8_000, 20_000)
DEVIATIONS = (3.0, 9.0)
SLICES = (200, 1_000, 4_000)
OWN, EXACT = "own, the grid", "own, all pairs"
GOAL_RATIO, GOAL_ERROR = 100.0, 0.5


def shuffled_cloud(least: int) -> tuple[str, SurfaceCloud]:
    """Return the name of a protein and at least so many points of its surface."""
    large = DATA / "structures" / "5h73_A.pdb.gz"
    structure = load_structure(large if large.is_file() else villin()[0])
    surface = surface_of(structure)
    spacing = 1.0
    while len(cloud := surface.cloud(spacing)) < least:
        spacing *= 0.9
    order = torch.randperm(len(cloud), generator=torch.Generator().manual_seed(0))
    chosen = SurfaceCloud(points=cloud.points[order].float(), normals=cloud.normals[order].float())
    return f"{structure.name}, spacing {spacing:.2f} Å", chosen


def dense(points: Tensor, normals: Tensor, deviation: float, rows: int) -> Tensor:
    """Return what a user would write in torch."""
    parts = []
    for some in points.split(rows):
        weight = torch.cdist(some, points).square_().mul_(-0.5 / deviation**2).exp_()
        parts.append(weight @ normals)
    return functional.normalize(torch.cat(parts), dim=1)


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles between directions, in degrees."""
    chord = (first.double() - second.double()).norm(dim=1)
    return torch.rad2deg(2 * torch.asin(chord.clamp(max=2) / 2))


def measured(
    name: str, cloud: SurfaceCloud, count: int, deviation: float, repetitions: int
) -> dict[str, Any]:
    """Time all contestants on so many points."""
    points, normals = cloud.points[:count].contiguous(), cloud.normals[:count].contiguous()

    def torch_in_slices_of(rows: int) -> Callable[[], Tensor]:
        return lambda: dense(points, normals, deviation, rows)

    contestants = {
        OWN: lambda: smoothed_normals(points, normals, deviation),
        EXACT: lambda: exactly_smoothed_normals(points, normals, deviation),
    } | {f"torch, {rows} rows at once": torch_in_slices_of(rows) for rows in SLICES if rows < count}
    watches = in_turns(contestants, repetitions)
    truth = exactly_smoothed_normals(points.double(), normals.double(), deviation)
    error = angles(watches[OWN].result, truth)
    return {
        "protein": name,
        "points": count,
        "deviation": deviation,
        "mean_error_degrees": float(error.mean()),
        "error_of_one_in_a_hundred_degrees": float(error.quantile(0.99)),
        "largest_error_degrees": float(error.max()),
        "times": {key: watch.summary() for key, watch in watches.items()},
        "ratios": {key: ratio(watch.cpu, watches[OWN].cpu) for key, watch in watches.items()},
    }


def printed(row: dict[str, Any]) -> None:
    """Print one size and width."""
    print(f"\n{row['points']} points, σ = {row['deviation']:g} Å")
    for name, times in row["times"].items():
        milliseconds = 1e3 * times["cpu_median_s"]
        print(f"  {name:26s} {milliseconds:9.2f} ms, {shown(row['ratios'][name])} times ours")
    print(
        f"  off by {row['mean_error_degrees']:.3f}° on average, "
        f"{row['error_of_one_in_a_hundred_degrees']:.2f}° at one point in a hundred, "
        f"{row['largest_error_degrees']:.1f}° at most"
    )
    if row["points"] == SIZES[-1]:
        peers = [row["ratios"][name]["median"] for name in row["times"] if name != OWN]
        least, error = min(peers, default=math.nan), row["mean_error_degrees"]
        fast = "reached" if least >= GOAL_RATIO else "NOT"
        exact = "reached" if error <= GOAL_ERROR else "NOT"
        print(f"  goal: ≥ {GOAL_RATIO:g} times the fastest sum over pairs: {least:.0f}, {fast}")
        print(f"  goal: mean error ≤ {GOAL_ERROR:g}°: {exact}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    one_thread()
    name, cloud = shuffled_cloud(SIZES[-1])
    print(f"{name}: {len(cloud)} points")
    rows = []
    for count in SIZES:
        for deviation in DEVIATIONS:
            rows.append(measured(name, cloud, count, deviation, options.repetitions))
            printed(rows[-1])
    keep("smooth", rows)


if __name__ == "__main__":
    main()
