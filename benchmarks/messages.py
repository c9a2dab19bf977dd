"""Messages of Q-MPNN, forward and backward: ours against e3nn (and cuequivariance, where it is).

    python benchmarks/messages.py [--repetitions 5] [--spacings 2.08 1.295] [--data FOLDER]

The pairs are those of adenylate kinase's surface within a quasi-geodesic window of 9 Å, without a
limit on neighbours: 136,000 at the coarser and a million at the finer spacing. A step goes from
the two parts of the points' features to the sum over pairs of linear layers of tensor products;
the loss is its mean square. e3nn works as it is commonly used, with the radial network and the
linear layer for every pair; a second row gives it our table and our linear layer after the sum.
Peers take at most 150,000 pairs at a time, each with its own way back, so that a million fit into
memory; their memory for a million pairs is what they need for the coarser cloud, scaled.
Memory is by how much a process of its own grows in a step, at most.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, in_turns, keep, one_thread, ratio, shown
from torch import Tensor

from undula.io.structures import load_structure
from undula.nn.irreps import EquivariantLinear, by_degree, joined, width
from undula.nn.messages import MessageGraph, coupling, message_graph, messages
from undula.nn.radial import RadialConfig, RadialNetwork
from undula.surface.clouds import CloudConfig, router_cloud

CHANNELS = {1: (32, 16), 2: (32, 16, 8)}
PEER, LATE, CUE, PLAIN, FUSED = (
    "e3nn",
    "e3nn, table, linear after the sum",
    "cuequivariance",
    "own, plain torch",
    "own, fused",
)
AT_A_TIME = 150_000
GOALS = {  # times faster forward, times faster with backward, part of e3nn's memory
    PLAIN: (None, 2.5, 0.5),
    FUSED: (10.0, 5.0, None),
}


@dataclass(frozen=True)
class Case:
    """What a step starts from; all peers hold the same weights."""

    graph: MessageGraph
    distances: Tensor
    receivers: Tensor
    senders: Tensor
    radial: RadialNetwork
    linear: EquivariantLinear

    @property
    def paths(self):
        return coupling(self.linear_outputs, len(self.linear_outputs) - 1)

    @property
    def linear_outputs(self) -> tuple[int, ...]:
        return tuple(len(weight) for weight in self.linear.weights)

    @property
    def leaves(self) -> list[Tensor]:
        weights = (*self.radial.parameters(), *self.linear.parameters())
        return [self.receivers, self.senders, *weights]


def case_of(data: Path, spacing: float, degree: int) -> Case:
    structure = load_structure(data / "adk" / "adk_dims.pdb")
    cloud = router_cloud(structure, CloudConfig(spacing=spacing, neighbours=100_000))
    cloud = cloud.to(dtype=torch.float32)
    draw, channels = torch.Generator().manual_seed(0), CHANNELS[degree]
    paths = coupling(channels, degree)
    features = [torch.randn(len(cloud), width(channels), generator=draw) for _ in range(2)]
    return Case(
        graph=message_graph(cloud.points, cloud.pairs, degree),
        distances=cloud.distances,
        receivers=features[0].requires_grad_(),
        senders=features[1].requires_grad_(),
        radial=RadialNetwork(RadialConfig(), paths.weights, draw),
        linear=EquivariantLinear(paths.message_channels, channels, draw, bias=False),
    )


def slices(case: Case) -> list[tuple[slice, slice]]:
    """Cut points and their pairs into parts that peers take at a time."""
    starts = case.graph.starts
    parts = ceil(int(starts[-1]) / AT_A_TIME)
    goals = torch.arange(1, parts) * starts[-1] // max(parts, 1)
    ends = [0, *torch.searchsorted(starts, goals).tolist(), len(starts) - 1]
    return [
        (slice(first, last), slice(int(starts[first]), int(starts[last])))
        for first, last in pairwise(ends)
    ]


def whole(case: Case, form: str) -> Callable[[bool], Tensor]:
    """Return a step by one of our forms."""

    def step(backward: bool) -> Tensor:
        with torch.set_grad_enabled(backward):
            sums = messages(
                case.receivers,
                case.senders,
                case.radial.weights(case.distances),
                case.graph,
                case.paths,
                form=form,
            )
            result = case.linear(sums)
        if backward:
            result.square().mean().backward()
        return result.detach()

    return step


def by_pair(
    case: Case, message: Callable[[Tensor, Tensor, Tensor], Tensor], *, components_last: bool
) -> Callable[[bool], Tensor]:
    """Return a step that makes each pair's message whole, in parts that fit into memory."""
    channels, graph = case.linear_outputs, case.graph

    def theirs(features: Tensor) -> Tensor:
        parts = by_degree(features, channels)
        return joined([part.mT for part in parts]) if components_last else features

    def ours(features: Tensor) -> Tensor:
        if not components_last:
            return features
        sizes = [part.shape[1:].numel() for part in by_degree(features, channels)]
        parts = features.split(sizes, dim=1)
        return joined([p.unflatten(1, (c, -1)).mT for p, c in zip(parts, channels, strict=True)])

    def step(backward: bool) -> Tensor:
        results = []
        for points, pairs in slices(case):
            with torch.set_grad_enabled(backward):
                receivers, senders = theirs(case.receivers), theirs(case.senders)
                hears, sends = graph.receivers[pairs], graph.senders[pairs]
                features = receivers[hears] + senders[sends]
                weights = case.radial(case.distances[pairs])
                made = message(features, graph.harmonics[pairs], weights)
                sums = made.new_zeros(points.stop - points.start, made.shape[1])
                result = ours(sums.index_add(0, hears - points.start, made))
            if backward:
                (result.square().sum() / case.receivers.numel()).backward()
            results.append(result.detach())
        return torch.cat(results)

    return step


def by_e3nn(case: Case) -> Callable[[bool], Tensor]:
    """Return e3nn's step: tensor product and linear layer of every pair."""
    import e3nn

    e3nn.set_optimization_defaults(jit_script_fx=False)
    from e3nn import o3

    from undula.nn.messages import _e3nn_product

    paths = case.paths
    product = _e3nn_product(paths)
    back = o3.Irreps([(n, (level, (-1) ** level)) for level, n in enumerate(case.linear_outputs)])
    linear = o3.Linear(product.irreps_out.simplify(), back)
    with torch.no_grad():
        for own, view in zip(case.linear.weights, linear.weight_views(), strict=True):
            view.copy_(own.T * own.shape[1] ** 0.5)

    def message(features: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        return linear(product(features, harmonics, weights))

    return by_pair(case, message, components_last=True)


def by_cuequivariance(case: Case) -> Callable[[bool], Tensor]:
    """Return cuequivariance's step; its weights are its own, so that only its time compares."""
    import cuequivariance as cue
    import cuequivariance_torch as cuet

    channels = case.linear_outputs

    def irreps(counts: tuple[int, ...]) -> Any:
        names = (f"{n}x{level}{'eo'[level % 2]}" for level, n in enumerate(counts))
        return cue.Irreps("O3", "+".join(names))

    single = irreps((1,) * len(channels))
    layout = {"layout": cue.ir_mul, "method": "naive"}
    product = cuet.ChannelWiseTensorProduct(
        irreps(channels),
        single,
        [irrep for _, irrep in single],
        shared_weights=False,
        internal_weights=False,
        **layout,
    )
    linear = cuet.Linear(product.irreps_out, irreps(channels), **layout)

    def message(features: Tensor, harmonics: Tensor, weights: Tensor) -> Tensor:
        return linear(product(features, harmonics, weights))

    return by_pair(case, message, components_last=False)


def contestants(case: Case) -> dict[str, Callable[[bool], Tensor]]:
    """Return all steps: called with whether to go back, they return the result."""
    found = {PEER: by_e3nn(case)}
    if len(case.graph.senders) <= AT_A_TIME:
        found[LATE] = whole(case, "e3nn")
    if all(importlib.util.find_spec(f"cuequivariance{part}") for part in ("", "_torch")):
        found[CUE] = by_cuequivariance(case)
    return found | {PLAIN: whole(case, "plain"), FUSED: whole(case, "fused")}


def gradient(case: Case, step: Callable[[bool], Tensor]) -> Tensor:
    """Return the derivatives of a step by features and the weights of the radial network."""
    for leaf in case.leaves:
        leaf.grad = None
    step(True)
    wanted = (case.receivers, case.senders, *case.radial.parameters())
    return torch.cat([leaf.grad.flatten() for leaf in wanted])


def error(found: Tensor, exact: Tensor) -> float:
    """Return the relative error in the mean square."""
    return float((found - exact).norm() / exact.norm())


def measured(case: Case, repetitions: int) -> dict[str, Any]:
    """Time all contestants on one cloud."""
    steps = contestants(case)
    row: dict[str, Any] = {
        "degree": len(case.linear_outputs) - 1,
        "channels": case.linear_outputs,
        "points": len(case.receivers),
        "pairs": len(case.graph.senders),
        "repetitions": repetitions,
        "knots": case.radial.config.knots,
    }
    for what, backward in (("forward", False), ("both", True)):
        runs = {name: partial(step, backward) for name, step in steps.items()}
        watches = in_turns(runs, repetitions)
        row[what] = {name: watch.summary() for name, watch in watches.items()}
        row[f"{what}_ratios"] = {
            name: ratio(watches[PEER].cpu, watch.cpu) for name, watch in watches.items()
        }
    compared = {name: step for name, step in steps.items() if name != CUE}
    results = {name: step(False) for name, step in compared.items()}
    gradients = {name: gradient(case, step) for name, step in compared.items()}
    row["errors"] = {name: error(one, results[PEER]) for name, one in results.items()}
    row["gradient_errors"] = {name: error(one, gradients[PEER]) for name, one in gradients.items()}
    return row


def memory(data: Path, spacing: float, degree: int, name: str) -> None:
    """Print by how many bytes a pair this process grows in a step, and its peak in MiB."""
    tiny, case = case_of(data, 6.0, degree), case_of(data, spacing, degree)
    contestants(tiny)[name](True)
    step = contestants(case)[name]
    # Making the cloud left freed memory that a step would fill unseen: give it back. Then forget
    # the peak: 5 sets it to what is in use now.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _kib("VmRSS")
    step(True)
    peak = _kib("VmHWM")
    print((peak - before) * 1024 / len(case.distances), peak / 1024)


def _kib(what: str) -> int:
    # The kernel's figures for this program; getrusage would count the parent's memory too.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{what}:")[2].split()[0])


def memories(row: dict[str, Any], data: Path, spacing: float) -> None:
    """Add to a row the memory of every contestant that takes all pairs at once."""
    row["memory"] = {}
    for name in row["both"]:
        if name in (PLAIN, FUSED) or row["pairs"] <= AT_A_TIME:
            command = [sys.executable, __file__, "--data", str(data), "--memory", name]
            command += ["--spacings", str(spacing), "--degree", str(row["degree"])]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            bytes_a_pair, peak = map(float, done.stdout.split())
            row["memory"][name] = {"bytes_a_pair": bytes_a_pair, "peak_mib": peak}


def printed(row: dict[str, Any], peer_bytes: float) -> None:
    """Print one cloud; a peer's bytes a pair come from the coarsest one."""
    print(
        f"\nl ≤ {row['degree']}, channels {row['channels']}: {row['points']} points, "
        f"{row['pairs']} pairs"
    )
    for name in row["both"]:
        forward, both = (1e9 * row[w][name]["cpu_median_s"] for w in ("forward", "both"))
        line = (
            f"  {name:34s} forward {forward / row['pairs']:6.0f} ns a pair, "
            f"{shown(row['forward_ratios'][name])} times; with backward "
            f"{both / row['pairs']:6.0f}, {shown(row['both_ratios'][name])} times"
        )
        if name in row["errors"]:
            line += f"; off by {row['errors'][name]:.0e}, {row['gradient_errors'][name]:.0e}"
        if name in row["memory"]:
            used = row["memory"][name]
            line += f"; {used['bytes_a_pair']:.0f} bytes a pair, peak {used['peak_mib']:.0f} MiB"
        print(line)
    for name, (forward_goal, both_goal, part) in GOALS.items():
        used = row["memory"][name]
        reached = {
            f"forward ≥ {forward_goal}": forward_goal is None
            or row["forward_ratios"][name]["median"] >= forward_goal,
            f"with backward ≥ {both_goal}": row["both_ratios"][name]["median"] >= both_goal,
            f"memory ≤ {part} of e3nn's": part is None or used["bytes_a_pair"] <= part * peer_bytes,
            "error ≤ 1e-5": max(row["errors"][name], row["gradient_errors"][name]) <= 1e-5,
            "peak of the process ≤ 1 GB": used["peak_mib"] * 2**20 <= 1e9,
        }
        words = [f"{goal}: {'reached' if at else 'NOT reached'}" for goal, at in reached.items()]
        print(f"  goals of {name}: " + "; ".join(one for one in words if "None" not in one))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5, help="2 where peers work in parts")
    parser.add_argument("--spacings", type=float, nargs="+", default=[2.08, 1.295], help="Å")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--degree", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="e3nn")
    one_thread()
    torch.set_flush_denormal(True)
    if options.memory:
        memory(options.data, options.spacings[0], options.degree, options.memory)
        return
    if not (options.data / "adk").is_dir():
        parser.error(f"no {options.data / 'adk'}: give --data a folder with adk/adk_dims.pdb")
    rows = []
    for degree in CHANNELS:
        peer_bytes = 0.0
        for spacing in options.spacings:
            case = case_of(options.data, spacing, degree)
            in_one = len(case.distances) <= AT_A_TIME
            rows.append(row := measured(case, options.repetitions if in_one else 2))
            memories(row, options.data, spacing)
            peer_bytes = row["memory"].get(PEER, {}).get("bytes_a_pair", peer_bytes)
            row["peer_memory_for_all_pairs_mib"] = peer_bytes * row["pairs"] / 2**20
            printed(row, peer_bytes)
    if CUE not in rows[0]["both"]:
        print("\ncuequivariance is not installed: not compared")
    keep("messages", [{"cuequivariance": CUE in rows[0]["both"]}, *rows])


if __name__ == "__main__":
    main()
