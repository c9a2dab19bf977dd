"""One training step of DSR's network (8×512): ours against the double backward of autograd.

    python benchmarks/field_step.py [--repetitions 5] [--points 16384 15360] [--compiled]

The loss is that of DSR on values and gradients. The weights are drawn with the spread of trained
ones: what enters a softplus spreads by 0.2 to 0.4, as in a network trained on villin (0.17 to
0.46), where fresh ones give 0.08. 16,384 points make tensors just over 32 MB, 15,360 just under.
Numbers below 1e-38 are set to zero for all but the contestant that says otherwise; it goes first,
so that the double backward that all are measured against finds its memory mapped already.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from measuring import Stopwatch, in_turns, keep, one_thread, ratio, shown
from torch import Tensor
from torch.nn import functional

from undula.nn.implicit import ImplicitConfig, ImplicitNetwork
from undula.nn.products import product

CONFIG = ImplicitConfig(harmonics="paper", degree=3, condition=65, condition_start="random")
CHUNK = 4096
PEER, OWN, REDUCED = "double backward, whole batch", "own, float32", "own, bfloat16"
GOALS = {OWN: (1.25, 1e-5), REDUCED: (3.3, 5e-3)}


def trained_like() -> ImplicitNetwork:
    """Return a network with the spread of a trained one."""
    network = ImplicitNetwork(CONFIG, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for entry in (network.first, network.skip):
            entry.points.normal_(0, 0.08, generator=draw)
        for layer in network.hidden:
            layer.weight *= 1.15
            if layer.bias is not None:
                layer.bias.normal_(0, 0.02, generator=draw)
        network.last.weight.normal_(0, 0.04, generator=draw)
    return network


def activations(network: ImplicitNetwork, points: Tensor, condition: Tensor) -> list[Tensor]:
    """Return what enters each softplus, computed as DSR does, by joining point and condition."""
    condition = condition.expand(len(points), -1)
    entering = torch.cat((network._features(points), condition), dim=1)
    first = torch.cat((network.first.points, network.first.condition), dim=1)
    found = [functional.linear(entering, first, network.first.bias)]
    for layer, linear in enumerate(network.hidden, start=1):
        hidden = functional.softplus(found[-1], CONFIG.beta)
        weight, bias = linear.weight, linear.bias
        if layer == CONFIG.skip_at:
            hidden = torch.cat((hidden, entering), dim=1) / 2**0.5
            weight = torch.cat((weight, network.skip.points, network.skip.condition), dim=1)
            bias = network.skip.bias
        found.append(functional.linear(hidden, weight, bias))
    return found


def by_autograd(
    network: ImplicitNetwork, points: Tensor, condition: Tensor
) -> tuple[Tensor, Tensor]:
    """Return value and gradient as DSR does: autograd with a graph of its own."""
    points = points.detach().requires_grad_()
    entering = activations(network, points, condition)[-1]
    value = network.last(functional.softplus(entering, CONFIG.beta))[:, 0]
    (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    return value, gradient


def loss(value: Tensor, gradient: Tensor, normals: Tensor, total: int) -> Tensor:
    """Return DSR's losses of all terms at once, of a chunk's share in the mean."""
    eikonal = (gradient.norm(dim=1) - 1).square().sum()
    return (value.abs().sum() + (gradient - normals).norm(dim=1).sum() + eikonal) / total


@contextmanager
def products_by_torch():
    """Give the float32 products to torch's own choice (MKL), as if oneDNN were not there."""
    with mock.patch("undula.nn.trunk.product", functional.linear):
        yield


def rate(work: Callable[[], Any], operations: float) -> float:
    """Return GFLOP/s of CPU time, the best of 30."""
    best = float("inf")
    for _ in range(30):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return operations / best / 1e9


def product_rates() -> dict[str, float]:
    """Return the rates of a product of the size that matters, of all libraries."""
    left, right = torch.randn(1024, 512), torch.randn(512, 512)
    left16, right16 = left.bfloat16(), right.bfloat16()
    operations = 2 * 1024 * 512 * 512
    return {
        "float32, torch's choice": rate(lambda: left @ right.T, operations),
        "float32, ours (oneDNN)": rate(lambda: product(left, right), operations),
        "bfloat16": rate(lambda: left16 @ right16.T, operations),
    }


def measured(count: int, repetitions: int, *, compiled: bool) -> dict[str, Any]:
    """Time all contestants on so many points; compiling takes minutes."""
    network, draw = trained_like(), torch.Generator().manual_seed(2)
    points = 2 * torch.rand(count, 3, generator=draw) - 1
    normals = functional.normalize(torch.randn(count, 3, generator=draw), dim=1)
    condition = torch.randn(CONFIG.condition, generator=draw) / 8

    def step(method: Callable[..., Any], chunk: int, *, reduced: bool = False) -> Tensor:
        network.zero_grad(set_to_none=True)
        for start in range(0, count, chunk):
            rows = slice(start, start + chunk)
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                value, gradient = method(points[rows], condition)
            loss(value, gradient, normals[rows], count).backward()
        return torch.cat([one.grad.flatten() for one in network.parameters()])

    def peer(points: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        return by_autograd(network, points, condition)

    def with_denormals() -> Tensor:
        torch.set_flush_denormal(False)
        try:
            return step(peer, count)
        finally:
            torch.set_flush_denormal(True)

    def by_torch() -> Tensor:
        with products_by_torch():
            return step(network.value_and_gradient, CHUNK)

    explicit = network.explicit_value_and_gradient
    contestants = {
        f"{PEER}, denormals kept": with_denormals,
        PEER: lambda: step(peer, count),
        f"double backward, chunks of {CHUNK}": lambda: step(peer, CHUNK),
        "explicit gradient by autograd": lambda: step(explicit, CHUNK),
        "own, float32, products by torch's choice": by_torch,
        OWN: lambda: step(network.value_and_gradient, CHUNK),
        REDUCED: lambda: step(network.value_and_gradient, CHUNK, reduced=True),
    }
    if compiled:
        quick = torch.compile(explicit, dynamic=False)
        contestants["explicit gradient, compiled"] = lambda: step(quick, CHUNK)
        contestants["explicit gradient, compiled, bfloat16"] = lambda: step(
            quick, CHUNK, reduced=True
        )
    watches = in_turns(contestants, repetitions)
    exact = watches[PEER].result
    with torch.no_grad():
        spread = activations(network, points[:4096], condition)
    return {
        "points": count,
        "repetitions": repetitions,
        "chunk": CHUNK,
        "parameters": sum(one.numel() for one in network.parameters()),
        "spread_of_activations": [float(one.std()) for one in spread],
        "part_beyond_87_over_beta": [
            float((CONFIG.beta * one.abs() > 87).double().mean()) for one in spread
        ],
        "times": {name: watch.summary() for name, watch in watches.items()},
        "ratios": {name: ratio(watches[PEER].cpu, watch.cpu) for name, watch in watches.items()},
        "gradient_errors": {name: error(watch, exact) for name, watch in watches.items()},
    }


def error(watch: Stopwatch, exact: Tensor) -> float:
    """Return the relative error of the parameters' gradient."""
    return float((watch.result - exact).norm() / exact.norm())


def printed(row: dict[str, Any]) -> None:
    """Print one size."""
    spread, beyond = row["spread_of_activations"], row["part_beyond_87_over_beta"]
    print(
        f"\n{row['points']} points, 8×512; activations spread by {min(spread):.2f} to "
        f"{max(spread):.2f}, up to {max(beyond):.1%} denormal"
    )
    for name, times in row["times"].items():
        ratios, off = row["ratios"][name], row["gradient_errors"][name]
        print(
            f"  {name:46s} {times['cpu_median_s']:6.2f} s, {shown(ratios)} times faster, "
            f"gradient off by {off:.1e}"
        )
    for name, (least, most) in GOALS.items():
        reached = row["ratios"][name]["median"] >= least and row["gradient_errors"][name] <= most
        print(
            f"  goal {name}: ≥ {least} at ≤ {most:.0e}: {'reached' if reached else 'NOT reached'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--points", type=int, nargs="+", default=[16_384, 15_360])
    parser.add_argument("--compiled", action="store_true", help="also by torch.compile")
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    rates = product_rates()
    for name, value in rates.items():
        print(f"products in {name}: {value:.0f} GFLOP/s a core")
    rows = []
    for count in options.points:
        rows.append(measured(count, options.repetitions, compiled=options.compiled))
        printed(rows[-1])
    keep("field_step", [{"product_rates_gflops": rates}, *rows])


if __name__ == "__main__":
    main()
