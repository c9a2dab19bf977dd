"""A training step of a mixture of experts: what experts that nobody chose cost.

    python benchmarks/mixture.py [--repetitions 15]

Forward and backward of 8 proteins with 1,024 points each; experts of 4 layers of 128 (softplus),
two for each protein. Sixteen experts are measured against two, between which there is nothing to
choose, and against calling all sixteen for all points, as a mixture without dispatch does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from measuring import in_turns, keep, one_thread, ratio, shown
from torch import nn

from undula.nn.mixture import Dispatch, Gate, GateConfig, mixture

PROTEINS, POINTS, SIZE, WIDTH = 8, 1024, 32, 128
FEW, MANY, DENSE = "2 experts, 2 chosen", "16 experts, 2 chosen", "16 experts, all called"
MOST = 1.3


def expert() -> nn.Sequential:
    """Return a network from places to one number."""
    sizes = [3, WIDTH, WIDTH, WIDTH, WIDTH]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Softplus(beta=100)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


class Contestant:
    """A gate with its experts, and the data of a step."""

    def __init__(self, experts: int) -> None:
        torch.manual_seed(0)
        draw = torch.Generator().manual_seed(0)
        self.gate = Gate(GateConfig(experts=experts), SIZE, draw)
        self.experts = nn.ModuleList(expert() for _ in range(experts))
        self.code = torch.randn(PROTEINS, SIZE, generator=draw)
        self.points = 2 * torch.rand(PROTEINS * POINTS, 3, generator=draw) - 1
        self.owner = torch.arange(PROTEINS).repeat_interleave(POINTS)

    def step(self, *, dense: bool = False) -> float:
        self.experts.zero_grad(set_to_none=True)
        gating = self.gate(self.code, keys=torch.arange(PROTEINS))
        if dense:
            weights = gating.weights[self.owner]
            answers = [one(self.points) for one in self.experts]
            value = (torch.cat(answers, dim=1) * weights).sum(dim=1)
        else:
            (value,) = mixture(self.experts, Dispatch(gating, self.owner), self.points)
        loss = value.abs().mean() + 0.01 * self.gate.balance(gating)
        loss.backward()
        return float(loss.detach())


def measured(repetitions: int) -> dict[str, Any]:
    """Time the three in turns."""
    few, many, all_of_them = Contestant(2), Contestant(16), Contestant(16)
    contestants: dict[str, Callable[[], float]] = {
        FEW: few.step,
        MANY: many.step,
        DENSE: lambda: all_of_them.step(dense=True),
    }
    watches = in_turns(contestants, repetitions)
    called = Dispatch(many.gate(many.code, keys=torch.arange(PROTEINS)), many.owner).active
    return {
        "proteins": PROTEINS,
        "points": POINTS,
        "repetitions": repetitions,
        "experts_called": len(called),
        "times": {name: watch.summary() for name, watch in watches.items()},
        "cost_against_two": ratio(watches[MANY].cpu, watches[FEW].cpu),
        "speed_up_against_dense": ratio(watches[DENSE].cpu, watches[MANY].cpu),
        "losses": {name: watch.result for name, watch in watches.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    row = measured(options.repetitions)
    for name, times in row["times"].items():
        print(f"  {name:24s} {1000 * times['cpu_median_s']:7.1f} ms")
    cost = row["cost_against_two"]
    print(f"16 experts ({row['experts_called']} called) cost {shown(cost)} times two")
    print(f"calling all costs {shown(row['speed_up_against_dense'])} times choosing")
    reached = "reached" if cost["median"] <= MOST else "NOT reached"
    print(f"goal: 16 experts at most {MOST} times two: {reached}")
    keep("mixture", [row])


if __name__ == "__main__":
    main()
