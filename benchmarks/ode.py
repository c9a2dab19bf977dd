"""Levels of moving atoms as differential equations: evaluations, their cost, and plain MD beside.

    python benchmarks/ode.py [--repetitions 9] [--features 64] [--data FOLDER]

One frame of 250 argon atoms with a cutoff of 7.5 Å, PaiNN of two layers with drawn weights as the
right-hand side, in three parts:

- evaluations: at 210 times in one segment, as a training step of the public code asks for, ours
  against torchdiffeq's rk4, whose steps end at the times asked for; both are compared with dopri5
  in double precision. torchdiffeq with a step size and cubic interpolation is shown as well;
- cost of one evaluation, against the same function as public code computes it: the network φ for
  each pair, and distances, radial basis and radial network again in each evaluation (the same
  weights, so the numbers agree; the neighbour search is given to it for nothing);
- the whole horizon of 8,000 frames on three levels (1, 20 and 400 segments), and what OpenMM needs
  for the same time, by steps of 10 fs on one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from measuring import DATA, in_turns, keep, one_thread, ratio, shown
from torch import Tensor
from torch.nn import functional

from undula.data.fluids import load_fluid
from undula.geometry.periodic import pair_vectors, periodic_pairs
from undula.nn.atom_graph import AtomGraph, repeated
from undula.nn.ode.solve import Solution, SolverConfig, State, solve
from undula.nn.painn import PaiNN, PaiNNConfig

TIMES, ACCURACY = 210, 1e-4
SEGMENTS, FRAMES, STEPS = (1, 20, 400), (8000, 400, 20), 20
FUSED, PLAIN, EDGES = "own, fused", "own, plain torch", "edge by edge"
FEWER, FASTER, MOST = 8.0, 4.0, 240
MD_STEPS, HORIZON_STEPS = 8_000, 80_000


class Case:
    """A frame of argon and a network."""

    def __init__(self, data: Path, features: int) -> None:
        _, frames = load_fluid(data / "argon" / "argon_0.npz")
        self.positions, self.box = frames.positions[2000], frames.box.float()
        config = PaiNNConfig(features=features)
        draw = torch.Generator().manual_seed(0)
        self.pairs, self.shift = periodic_pairs(self.positions, self.box, config.radial.window)
        self.graph = AtomGraph(
            pairs=self.pairs,
            vectors=pair_vectors(self.positions, self.pairs, self.shift),
            atoms=len(self.positions),
        )
        self.net = PaiNN(config, draw)
        self.clock = torch.randn(features, generator=draw)
        self.start: State = (
            torch.randn(self.graph.atoms, features, generator=draw),
            torch.randn(self.graph.atoms, 3, features, generator=draw),
        )

    def double(self) -> Case:
        """Return the case in double precision, with the same numbers."""
        other = object.__new__(Case)
        other.__dict__ = dict(self.__dict__)
        config, pairs = self.net.config, self.pairs
        other.net = PaiNN(config, torch.Generator()).double()
        other.net.load_state_dict(self.net.state_dict())
        other.graph = AtomGraph(
            pairs=pairs, vectors=self.graph.vectors.double(), atoms=self.graph.atoms
        )
        other.clock, other.start = self.clock.double(), tuple(one.double() for one in self.start)
        return other

    def flow(self, form: str, copies: int = 1) -> Callable[[Tensor, State], State]:
        """Return the right-hand side: what the network changes, with filters made once."""
        filters = self.net.filters(repeated(self.graph, copies), form)
        return self.changes(lambda s, v: self.net(s, v, filters))

    def edge_flow(self) -> Callable[[Tensor, State], State]:
        """Return the right-hand side that computes everything again for each pair."""
        return self.changes(
            lambda s, v: edge_by_edge(self.net, s, v, self.positions, self.pairs, self.shift)
        )

    def changes(self, network: Callable[..., State]) -> Callable[[Tensor, State], State]:
        def flow(time: Tensor, state: State) -> State:
            scalars, vectors = state
            first, second = network(scalars + time * self.clock, vectors)
            return first - scalars, second - vectors

        return flow


def edge_by_edge(
    net: PaiNN, s: Tensor, v: Tensor, positions: Tensor, pairs: Tensor, shift: Tensor
) -> State:
    """Compute what PaiNN computes with everything for each pair."""
    receivers, senders = pairs
    for message, update in zip(net.messages, net.updates, strict=True):
        vectors = positions[senders] - positions[receivers] + shift
        distances = vectors.norm(dim=1)
        weights = message.radial(distances) * message.share
        own, carried = message.norm(s, v)
        hidden = functional.silu(message.inner(own[senders]))
        parts = (message.outer(hidden) * weights).chunk(3, dim=1)
        direction = (vectors / distances[:, None])[:, :, None]
        said = parts[1][:, None] * carried[senders] + parts[2][:, None] * direction
        s = s + torch.zeros_like(s).index_add(0, receivers, parts[0])
        v = v + torch.zeros_like(v).index_add(0, receivers, said)
        s, v = update(s, v)
    return s, v


def error(found: State, reference: State) -> float:
    """Return the largest error at any time, relative to the state's size there."""
    worst = 0.0
    for ours, theirs in zip(zip(*found, strict=True), zip(*reference, strict=True), strict=True):
        away = sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
        size = sum(float(b.square().sum()) for b in theirs)
        worst = max(worst, (away / size) ** 0.5)
    return worst


def theirs(
    start: State, times: Tensor, flow: Callable[[Tensor, State], State], **options: Any
) -> tuple[State, int]:
    """Solve by torchdiffeq with output at sorted times; return states and evaluations."""
    calls = 0

    def counted(time: Tensor, state: State) -> State:
        nonlocal calls
        calls += 1
        return flow(time, state)

    grid = torch.cat((times.new_zeros(1), times))
    found = import_module("torchdiffeq").odeint(counted, start, grid, **options)
    return tuple(one[1:] for one in found), calls


@torch.no_grad()
def evaluations(case: Case) -> dict[str, Any]:
    """Count the evaluations for 210 times at equal accuracy."""
    times = torch.rand(TIMES, generator=torch.Generator().manual_seed(1)).double().sort().values
    exact = case.double()
    flow = exact.flow("fused")
    reference, _ = theirs(exact.start, times, flow, method="dopri5", rtol=1e-9, atol=1e-9)
    peer, peer_calls = theirs(exact.start, times, flow, method="rk4")
    rows = []
    for steps in (2, 3, 4, 5, 6, 8, 10, 15, 20):
        solution = solve(flow, exact.start, SolverConfig(steps=steps))
        cubic, cubic_calls = theirs(
            exact.start,
            times,
            flow,
            method="rk4",
            options={"step_size": 1 / steps, "interp": "cubic"},
        )
        rows.append(
            {
                "steps": steps,
                "evaluations": solution.evaluations,
                "error": error(solution.at(times), reference),
                "torchdiffeq_cubic_evaluations": cubic_calls,
                "torchdiffeq_cubic_error": error(cubic, reference),
            }
        )
    enough = next(row for row in rows if row["error"] <= ACCURACY)
    return {
        "times": TIMES,
        "rows": rows,
        "output_grid_evaluations": peer_calls,
        "output_grid_error": error(peer, reference),
        "enough": enough,
        "fewer": peer_calls / enough["evaluations"],
    }


def stepping(
    flow: Callable[[Tensor, State], State], start: State, leaves: list[Tensor]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return one evaluation, and one with the way back to state and parameters."""
    middle = torch.tensor(0.5)

    @torch.no_grad()
    def forward() -> State:
        return flow(middle, start)

    def backward() -> Any:
        state = tuple(one.detach().requires_grad_() for one in start)
        made = flow(middle, state)
        slopes = [torch.ones_like(one) for one in made]
        return torch.autograd.grad(made, [*state, *leaves], slopes, retain_graph=True)

    return forward, backward


def cost(case: Case, repetitions: int) -> dict[str, Any]:
    """Time one evaluation in each manner, alone and with the way back."""
    leaves = [one for part in (case.net.messages, case.net.updates) for one in part.parameters()]
    every = {form: case.flow(name) for form, name in ((FUSED, "fused"), (PLAIN, "plain"))}
    every[EDGES] = case.edge_flow()
    ways = {name: stepping(flow, case.start, leaves) for name, flow in every.items()}
    with torch.no_grad():
        numbers = {name: torch.cat([o.flatten() for o in way[0]()]) for name, way in ways.items()}
    apart = float((numbers[FUSED] - numbers[EDGES]).norm() / numbers[EDGES].norm())
    result: dict[str, Any] = {"pairs": case.graph.pairs.shape[1], "table_error": apart}
    for number, what in enumerate(("forward", "with_backward")):
        watches = in_turns({name: way[number] for name, way in ways.items()}, 3 * repetitions)
        result[what] = {
            "times": {name: watch.summary() for name, watch in watches.items()},
            "faster_than_edges": ratio(watches[EDGES].cpu, watches[FUSED].cpu),
            "faster_than_plain": ratio(watches[PLAIN].cpu, watches[FUSED].cpu),
        }
    return result


def batches(case: Case, repetitions: int) -> dict[int, float]:
    """Time an evaluation of several segments at once; return seconds a segment."""
    ways: dict[str, Callable[[], Any]] = {}
    for copies in (1, 4, 20):
        start = tuple(torch.cat([one] * copies) for one in case.start)
        ways[str(copies)] = stepping(case.flow("fused", copies), start, [])[0]
    watches = in_turns(ways, repetitions)
    return {int(n): watch.summary()["cpu_median_s"] / int(n) for n, watch in watches.items()}


def horizon() -> dict[str, Any]:
    """Count the evaluations for all frames of all levels, all segments of a level at once."""
    start = (torch.zeros(1, 1),)

    def still(_: Tensor, state: State) -> State:
        return tuple(torch.zeros_like(one) for one in state)

    ours: list[Solution] = [solve(still, start, SolverConfig(steps=STEPS)) for _ in SEGMENTS]
    peers = [
        theirs(start, torch.arange(1, frames + 1) / frames, still, method="rk4")[1]
        for frames in FRAMES
    ]
    return {
        "steps": STEPS,
        "evaluations": sum(one.evaluations for one in ours),
        "output_grid_evaluations": sum(peers),
    }


def molecular_dynamics(case: Case) -> float | None:
    """Return the CPU time of OpenMM for 8,000 steps of argon on one thread, in seconds."""
    if util.find_spec("openmm") is None:
        return None
    openmm = import_module("openmm")
    system, force = openmm.System(), openmm.NonbondedForce()
    edges = case.box / 10
    system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in edges.tolist()))
    for _ in range(case.graph.atoms):
        system.addParticle(39.948)
        force.addParticle(0.0, 0.34, 120 * 0.0083144626)
    force.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    force.setCutoffDistance(1.02)
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(0.9)
    system.addForce(force)
    integrator = openmm.NoseHooverIntegrator(100.0, 25.0, 0.010)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": "1"})
    context.setPositions((case.positions / 10).tolist())
    context.setVelocitiesToTemperature(100.0, 1)
    integrator.step(100)
    watches = in_turns({"md": lambda: integrator.step(MD_STEPS)}, 3)
    return watches["md"].summary()["cpu_median_s"]


def measured(case: Case, repetitions: int) -> dict[str, Any]:
    """Measure all three parts."""
    row = {
        "atoms": case.graph.atoms,
        "features": case.net.config.features,
        "repetitions": repetitions,
        "evaluations": evaluations(case),
        "cost": cost(case, repetitions),
        "seconds_a_segment": batches(case, repetitions),
        "horizon": horizon(),
        "openmm_8000_steps_s": molecular_dynamics(case),
    }
    each = row["seconds_a_segment"]
    row["horizon"]["seconds"] = {
        steps: 4 * steps * (each[1] + min(each.values()) * sum(SEGMENTS[1:]))
        for steps in (row["evaluations"]["enough"]["steps"], STEPS)
    }
    return row


def goal(text: str, reached: bool) -> None:
    print(f"goal: {text}: {'reached' if reached else 'NOT reached'}")


def show(row: dict[str, Any]) -> None:
    """Print what came out."""
    counted, costs, whole = row["evaluations"], row["cost"], row["horizon"]
    print(f"{row['atoms']} atoms, {costs['pairs']} pairs, {row['features']} features")
    print(f"{TIMES} times in a segment: evaluations and error")
    for one in counted["rows"]:
        print(
            f"  {one['steps']:3d} steps: own {one['evaluations']:3d}, {one['error']:.1e};"
            f" torchdiffeq, cubic {one['torchdiffeq_cubic_evaluations']:3d},"
            f" {one['torchdiffeq_cubic_error']:.1e}"
        )
    print(
        f"  torchdiffeq on the output grid: {counted['output_grid_evaluations']},"
        f" {counted['output_grid_error']:.1e}"
    )
    goal(
        f"{FEWER:g} times fewer at {ACCURACY:g} ({counted['fewer']:.1f})", counted["fewer"] >= FEWER
    )
    print(f"one evaluation (numbers {costs['table_error']:.0e} apart by the radial table)")
    for what in ("forward", "with_backward"):
        for name, times in costs[what]["times"].items():
            print(f"  {what:14s} {name:18s} {1000 * times['cpu_median_s']:7.2f} ms")
        print(f"    faster than edge by edge {shown(costs[what]['faster_than_edges'])}")
    faster = costs["forward"]["faster_than_edges"]["median"]
    goal(f"{FASTER:g} times faster an evaluation ({faster:.1f})", faster >= FASTER)
    each = ", ".join(f"{n}: {1000 * t:.2f}" for n, t in row["seconds_a_segment"].items())
    print(f"ms a segment, by segments at once: {each}")
    print(
        f"whole horizon, {STEPS} steps a level: {whole['evaluations']} batched evaluations"
        f" (on the output grid {whole['output_grid_evaluations']})"
    )
    goal(f"at most {MOST} batched evaluations", whole["evaluations"] <= MOST)
    for steps, seconds in whole["seconds"].items():
        print(f"  by {steps} steps a level about {seconds:.1f} s of one core, from the times above")
    if row["openmm_8000_steps_s"] is None:
        print("  OpenMM is not installed: its time is left out")
    else:
        md = row["openmm_8000_steps_s"]
        print(
            f"  OpenMM {md:.1f} s for {MD_STEPS:,} steps of 10 fs, so about"
            f" {md * HORIZON_STEPS / MD_STEPS:.1f} s for the horizon of {HORIZON_STEPS:,}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    one_thread()
    torch.set_flush_denormal(True)
    row = measured(Case(options.data, options.features), options.repetitions)
    show(row)
    keep("ode", [row])


if __name__ == "__main__":
    main()
