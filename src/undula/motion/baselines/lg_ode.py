r"""LG-ODE: a window to one latent state per atom, moved by one graph ODE over the whole horizon.

.. math::
    z_i(0) \sim q(z_i \mid \text{window}), \qquad \frac{dz_i}{d\tau} = g(z_1, \ldots, z_N), \qquad
    \hat r_i(t) = r_i + u_i(t) \, D z_i(\tau(t))

What is observed of each atom in each of a few frames is a node of one large graph. Attention
carries messages along its edges, which lead from an atom's neighbours, and from the atom itself,
in the frames beside its own; then each atom's frames are pooled into a normal posterior.

**It forecasts shifted and relabelled windows alike, but not turned ones**: as published,
components of positions and velocities are numbers like any others. A turned window gives another
forecast than the turned one, and nothing but training on turned windows would teach it otherwise.

Source: Huang, Sun, Wang, "Learning Continuous System Dynamics from Irregularly-Sampled Partial
Observations" (LG-ODE, NeurIPS 2020); the function g is that of Kipf et al., Neural Relational
Inference (ICML 2018). Differs from them: atoms are known by their kind; positions are ways from
now and between neighbours (shortest image), because absolute coordinates do not survive a wall
of the box; targets are unwrapped; larger systems and all in a box have a radius graph instead of
all pairs (`LGODEConfig.all_pairs`); edges of the encoder span a few frames. By default positions
are measured in what atoms usually go in that time and the clock is logarithmic; ``unit`` and
``clock`` have the published choices too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log1p, sqrt
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.geometry.periodic import pair_vectors, pairs_of_frames
from undula.motion.baselines.background import Scales
from undula.motion.encoder import EncoderConfig
from undula.motion.observation import velocities_of
from undula.motion.windows import Window
from undula.nn.atom_graph import AtomGraph
from undula.nn.gated import linear
from undula.nn.ode.solve import Solution, SolverConfig, solve
from undula.nn.products import through
from undula.nn.rows import rows_of

INPUTS = 7
"""Way from now, velocity, whether velocities were recorded."""
_WAY = 4
"""What an edge says of the way along it: three components and a length."""


@dataclass(frozen=True, kw_only=True)
class LGODEConfig:
    """Sizes and choices of LG-ODE.

    Attributes:
        features: Width of the encoder.
        layers: Rounds of messages in the encoder.
        oldest: How many frames back the oldest frame lies that is looked at; frames are taken
            at doubling distances, as by `undula.motion.encoder`.
        reach: Edges of the encoder join frames that are so many apart in that list.
        cutoff: Atoms closer than this are neighbours, Å.
        all_pairs: Up to so many atoms without a box all are neighbours, as published.
        latent: Numbers in the sampled state.
        augment: Zeros that the state starts with beside them.
        hidden: Width of the function g.
        solver: How the ODE is solved over the horizon.
        clock: Whether τ grows with the "logarithmic" or, as published, "linear" time.
        unit: Whether u(t) is the "usual" way of an atom of this kind in that time, or as
            published "constant", the usual way over the horizon.
        observed_spread: Fixed standard deviation of what is observed, in units of u; 0.01 in
            the public code, where every far error then counts some thousand times.
    """

    features: int = 64
    layers: int = 2
    oldest: int = 1024
    reach: int = 1
    cutoff: float = 7.5
    all_pairs: int = 64
    latent: int = 16
    augment: int = 64
    hidden: int = 128
    solver: SolverConfig = field(default_factory=lambda: SolverConfig(steps=20))
    clock: Literal["logarithmic", "linear"] = "logarithmic"
    unit: Literal["usual", "constant"] = "usual"
    observed_spread: float = 1.0

    def __post_init__(self) -> None:
        at_least = {"features": 2, "layers": 1, "oldest": 0, "reach": 0, "all_pairs": 0}
        at_least |= {"latent": 1, "augment": 0, "hidden": 1}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UsageError(
                    f"lg_ode.{name} must be at least {least}, not {getattr(self, name)}"
                )
        if self.features % 2:
            raise UsageError(f"lg_ode.features should be even, not {self.features}")
        for name in ("cutoff", "observed_spread"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"lg_ode.{name} must be positive, not {getattr(self, name)}")
        if self.clock not in ("logarithmic", "linear"):
            raise UsageError(f'lg_ode.clock must be "logarithmic" or "linear", not {self.clock!r}')
        if self.unit not in ("usual", "constant"):
            raise UsageError(f'lg_ode.unit must be "usual" or "constant", not {self.unit!r}')

    def ages(self, observed: int) -> tuple[int, ...]:
        """Return how many frames back each frame lies that is looked at, now first."""
        return EncoderConfig(oldest=self.oldest).ages(observed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """Some windows of one system as LG-ODE takes them; the last frame comes first.

    Attributes:
        kinds: Number of each atom's kind.
        ages: How many frames back each frame lies.
        positions: Å, unwrapped.
        inputs: What is known of each atom in each frame, see `INPUTS`.
        boxes: Edge vectors now, Å; none without a box.
    """

    kinds: Int[Tensor, " atoms"]
    ages: Int[Tensor, " frames"]
    positions: Float[Tensor, "windows frames atoms 3"]
    inputs: Float[Tensor, "windows frames atoms inputs"]
    boxes: Float[Tensor, "windows 3 3"] | None


def observed(windows: Sequence[Window], scales: Scales, ages: Sequence[int]) -> Observed:
    """Gather windows of one system, all with boxes or all without.

    Args:
        windows: With more frames than the oldest age.
        scales: Usual sizes, the units of the inputs.
        ages: Frames back, now (0) first.
    """
    positions, inputs = [], []
    device = windows[0].positions.device
    rows = scales.rows(windows[0].system).to(device)
    unit = scales.units(
        torch.tensor(ages, device=device).to(windows[0].positions).clamp(1, scales.horizon), rows
    )
    for window in windows:
        frames = torch.tensor([len(window) - 1 - age for age in ages], device=device)
        seen = window.positions[frames]
        way = (seen - window.now) / unit[..., None]
        speed = scales.speed.to(seen)[rows][:, None]
        recorded = torch.full_like(seen[..., :1], float(window.velocities is not None))
        positions.append(seen)
        inputs.append(torch.cat([way, velocities_of(window, ages) / speed, recorded], dim=-1))
    boxes = [window.box for window in windows if window.box is not None]
    return Observed(
        kinds=rows,
        ages=torch.tensor(ages, device=device),
        positions=torch.stack(positions),
        inputs=torch.stack(inputs),
        boxes=torch.stack(boxes).to(positions[0]) if boxes else None,
    )


def neighbours(
    positions: Float[Tensor, "frames atoms 3"],
    boxes: Float[Tensor, "frames 3 3"] | None,
    config: LGODEConfig,
) -> AtomGraph:
    """Join all atoms of each frame, or in a box or beyond `LGODEConfig.all_pairs` the near ones."""
    frames, atoms, _ = positions.shape
    if boxes is None and atoms <= config.all_pairs:
        one = torch.ones(atoms, atoms, device=positions.device).fill_diagonal_(0).nonzero().T
        first = torch.arange(frames, device=positions.device) * atoms
        pairs = (one[:, None] + first[:, None]).flatten(1)
        shift = positions.new_zeros(pairs.shape[1], 3)
    else:
        pairs, shift = pairs_of_frames(positions, boxes, config.cutoff)
    vectors = pair_vectors(positions.detach().flatten(0, 1), pairs, shift)
    return AtomGraph(pairs=pairs, vectors=vectors, atoms=frames * atoms)


@dataclass(frozen=True, kw_only=True, eq=False)
class TemporalGraph:
    """Who hears whom across frames.

    Attributes:
        graph: Nodes are the atoms of all frames, window by window; kinds tell an atom itself (0)
            from others (1). The way of a pair is that in the sender's frame.
        elapsed: Time of the sender less that of the receiver, frames.
    """

    graph: AtomGraph
    elapsed: Float[Tensor, " pairs"]


def temporal_graph(seen: Observed, config: LGODEConfig) -> TemporalGraph:
    """Join every atom with itself and its neighbours in the same frame and those beside it.

    Neighbours are those in the frame of the sender.
    """
    windows, frames, atoms = seen.positions.shape[:3]
    boxes = None if seen.boxes is None else seen.boxes.repeat_interleave(frames, dim=0)
    near = neighbours(seen.positions.flatten(0, 1), boxes, config)
    selves = torch.arange(windows * frames * atoms, device=seen.positions.device)
    senders = torch.cat([selves, near.senders])
    heard_by = torch.cat([selves, near.receivers])
    vectors = torch.cat([near.vectors.new_zeros(len(selves), 3), near.vectors])
    others = (torch.arange(len(senders), device=selves.device) >= len(selves)).long()
    frame = senders // atoms % frames
    parts = []
    for step in range(-config.reach, config.reach + 1):
        [there] = ((frame + step >= 0) & (frame + step < frames)).nonzero(as_tuple=True)
        parts.append((heard_by[there] + step * atoms, there, frame[there] + step))
    receivers = torch.cat([part[0] for part in parts])
    order = receivers.argsort(stable=True)
    chosen = torch.cat([part[1] for part in parts])[order]
    arrival = torch.cat([part[2] for part in parts])[order]
    ages = seen.ages.to(seen.positions)
    return TemporalGraph(
        graph=AtomGraph(
            pairs=torch.stack([receivers[order], senders[chosen]]),
            vectors=vectors[chosen],
            atoms=windows * frames * atoms,
            kinds=others[chosen],
        ),
        elapsed=ages[arrival] - ages[frame[chosen]],
    )


def time_encoding(times: Float[Tensor, " times"], width: int) -> Float[Tensor, "times width"]:
    r"""Encode times as waves.

    .. math:: \sin(t / 10000^{2k / d}), \qquad \cos(t / 10000^{2k / d})

    Args:
        times: t, frames; of either sign.
        width: d, even.

    Source: LG-ODE, eq. 3.
    """
    rate = 10000 ** (-torch.arange(0, width, 2, dtype=times.dtype, device=times.device) / width)
    angle = times[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def attention_weights(scores: Float[Tensor, " pairs"], graph: AtomGraph) -> Float[Tensor, " pairs"]:
    """Compute the softmax of scores over the pairs of each receiver; they sum to 1."""
    largest = scores.new_full((graph.atoms,), -torch.inf)
    largest = largest.scatter_reduce(0, graph.receivers, scores.detach(), "amax")
    raised = (scores - largest[graph.receivers]).exp()
    return raised / graph.from_receivers(graph.sums(raised)[:, None])[:, 0]


class GTrans(nn.Module):
    r"""One round of messages by attention along the edges of a temporal graph.

    .. math::
        \hat h_s = h_s + \mathrm{TE}(\Delta t), \qquad
        \alpha_{st} = \operatorname{softmax}_s \frac{(W_k \hat h_s)^T W_q h_t}{\sqrt d}, \qquad
        h_t' = h_t + \phi\Big(\sum_s \alpha_{st} W_v \hat h_s\Big)

    W_k and W_v differ for an atom itself and for others. Of others both also see the way.

    Source: LG-ODE, eqs. 2 to 5, one head. Differs from it: the way of a pair.
    """

    def __init__(self, features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.keys = linear(features, 2 * features, generator, bias=False)
        self.values = linear(features, 2 * features, generator, bias=False)
        self.asked = linear(features, features, generator, bias=False)
        self.way_keys = linear(_WAY, features, generator, bias=False)
        self.way_values = linear(_WAY, features, generator, bias=False)

    def forward(
        self,
        nodes: Float[Tensor, "nodes features"],
        heard: TemporalGraph,
        way: Float[Tensor, "pairs way"],
    ) -> Float[Tensor, "nodes features"]:
        """Return the nodes with what they heard."""
        own, graph = self.norm(nodes), heard.graph
        elapsed, which = heard.elapsed.unique(return_inverse=True)
        waves = time_encoding(elapsed, own.shape[1])
        assert graph.kinds is not None
        sender, wave = 2 * graph.senders + graph.kinds, 2 * which + graph.kinds

        def said(layer: nn.Linear, of_way: nn.Linear) -> Float[Tensor, "pairs features"]:
            rows = through(layer, own).unflatten(1, (2, -1)).flatten(0, 1)
            table = layer(waves).unflatten(1, (2, -1)).flatten(0, 1)
            return rows_of(rows, sender) + rows_of(table, wave) + through(of_way, way)

        keys = said(self.keys, self.way_keys)
        scores = (keys * graph.from_receivers(self.asked(own))).sum(dim=1) / sqrt(own.shape[1])
        weight = attention_weights(scores, graph)
        arrived = graph.sums(weight[:, None] * said(self.values, self.way_values))
        return nodes + functional.gelu(arrived)


@dataclass(frozen=True, kw_only=True, eq=False)
class Latent:
    """A normal distribution over the state of each atom now.

    Attributes:
        mean: μ.
        width: σ.
    """

    mean: Float[Tensor, "windows atoms latent"]
    width: Float[Tensor, "windows atoms latent"]

    def drawn(self, generator: torch.Generator | None) -> Float[Tensor, "windows atoms latent"]:
        """Draw z once, from torch's own generator if none is given."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, dtype=self.mean.dtype, device=device
        )
        return self.mean + self.width * noise.to(self.mean.device)

    def divergence(self) -> Float[Tensor, ""]:
        r"""Compute the divergence from the prior N(0, 1), nats per atom.

        .. math:: \tfrac12 \sum (\mu^2 + \sigma^2 - 1 - \ln \sigma^2)
        """
        each = self.mean.square() + self.width.square() - 1 - 2 * self.width.log()
        return each.sum(dim=-1).mean() / 2


class SpatioTemporalEncoder(nn.Module):
    r"""Windows to posteriors.

    After the rounds of messages each atom's frames are pooled,

    .. math::
        \hat x_t = \phi(W_t [h_t; \mathrm{TE}(t)]), \qquad
        a = \tanh(W_a \, \overline{\hat x}), \qquad
        u = \overline{\operatorname{sigmoid}(a^T \hat x_t / \sqrt d) \, \hat x_t}

    Source: LG-ODE, eqs. 6 and 7. Differs from it: the root in the sigmoid.
    """

    def __init__(self, config: LGODEConfig, kinds: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        width = config.features
        self.kinds = nn.Embedding(kinds, width)
        self.enter = linear(INPUTS, width, generator)
        self.rounds = nn.ModuleList(GTrans(width, generator) for _ in range(config.layers))
        self.placed = linear(2 * width, width, generator)
        self.asked = linear(width, width, generator, bias=False)
        self.inner = linear(width, width, generator)
        self.posterior = linear(width, 2 * config.latent, generator, gain=0.1)
        with torch.no_grad():
            self.kinds.weight.normal_(0, 1, generator=generator)

    def forward(self, seen: Observed) -> Latent:
        """Compute the posterior of every atom of every window."""
        windows, frames, atoms = seen.positions.shape[:3]
        heard = temporal_graph(seen, self.config)
        graph = heard.graph
        way = torch.cat([graph.vectors, graph.distances[:, None]], dim=1) / self.config.cutoff
        # Squeezed, so that a rare large input does not drown the others.
        nodes = (self.enter(torch.asinh(seen.inputs)) + self.kinds(seen.kinds)).flatten(0, 2)
        for one in self.rounds:
            nodes = one(nodes, heard, way)
        nodes = nodes.unflatten(0, (windows, frames, atoms))
        waves = time_encoding(seen.ages.to(nodes), self.config.features)
        waves = waves[None, :, None].expand_as(nodes)
        placed = functional.gelu(self.placed(torch.cat([nodes, waves], dim=-1)))
        asked = self.asked(placed.mean(dim=1, keepdim=True)).tanh()
        score = (asked * placed).sum(dim=-1, keepdim=True) / sqrt(self.config.features)
        pooled = (score.sigmoid() * placed).mean(dim=1)
        mean, wide = self.posterior(functional.silu(self.inner(pooled))).chunk(2, dim=-1)
        return Latent(mean=mean, width=torch.exp(wide - 1))


class Interaction(nn.Module):
    r"""The function g: from nodes to edges and back.

    .. math:: e_{ij} = f_e([z_i; z_j; r_{ij}]), \qquad \dot z_i = f_v([z_i; \sum_j e_{ij}])

    f_e has two layers, f_v two. The first of f_e is computed once an atom and not once a pair.

    Source: LG-ODE, eq. 8; Kipf et al., NRI, eqs. 5 and 6. Differs from them: the way r_ij in the
    last observed frame, and smooth activations, which the order of the solver needs.
    """

    def __init__(self, config: LGODEConfig, generator: torch.Generator) -> None:
        super().__init__()
        state, width = config.latent + config.augment, config.hidden
        self.receiving = linear(state, width, generator)
        self.sending = linear(state, width, generator, bias=False)
        self.way = linear(_WAY, width, generator, bias=False)
        self.pair = linear(width, width, generator)
        self.inner = linear(state + width, width, generator)
        self.outer = linear(width, state, generator, gain=0.1)

    def forward(
        self,
        state: Float[Tensor, "nodes state"],
        graph: AtomGraph,
        way: Float[Tensor, "pairs hidden"],
    ) -> Float[Tensor, "nodes state"]:
        """Compute the slopes; ``way`` is what the layer of that name makes of the graph."""
        pairs = graph.from_receivers(self.receiving(state))
        pairs = pairs + graph.from_senders(self.sending(state)) + way
        heard = graph.sums(functional.silu(through(self.pair, functional.silu(pairs))))
        hidden = functional.silu(self.inner(torch.cat([state, heard], dim=1)))
        return self.outer(hidden)


class LGODE(nn.Module):
    """Encoder, graph ODE and a linear decoder of positions and velocities.

    Args:
        config: Sizes and choices.
        kinds: How many chemical kinds are known.
        horizon: How far it reaches, frames.
        seed: Of the weights; what comes out is at first 0.
    """

    def __init__(self, config: LGODEConfig, kinds: int, horizon: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.config, self.horizon = config, horizon
        self.encoder = SpatioTemporalEncoder(config, kinds, generator)
        self.interaction = Interaction(config, generator)
        self.decoder = linear(config.latent + config.augment, 6, generator, gain=0.0)

    def solved(self, seen: Observed, start: Float[Tensor, "windows atoms latent"]) -> Solution:
        """Solve from drawn states over the horizon, on the graph of the last observed frame."""
        windows, atoms, _ = start.shape
        graph = neighbours(seen.positions[:, 0], seen.boxes, self.config)
        told = torch.cat([graph.vectors, graph.distances[:, None]], dim=1) / self.config.cutoff
        way = self.interaction.way(told)
        state = functional.pad(start, (0, self.config.augment))

        def flow(tau: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            del tau
            slope = self.interaction(state[0].flatten(0, 1), graph, way)
            return (slope.unflatten(0, (windows, atoms)),)

        return solve(flow, (state,), self.config.solver)

    def decoded(
        self, solution: Solution, lags: Float[Tensor, " times"]
    ) -> tuple[Float[Tensor, "times windows atoms 3"], Float[Tensor, "times windows atoms 3"]]:
        """Decode displacements and velocities at some lags (frames), dimensionless."""
        if self.config.clock == "linear":
            tau = lags / self.horizon
        else:
            tau = torch.log1p(lags) / log1p(self.horizon)
        [states] = solution.at(tau)
        moved, velocities = self.decoder(states).split(3, dim=-1)
        return moved, velocities

    def units(
        self, lags: Float[Tensor, " times"], scales: Scales, rows: Int[Tensor, " atoms"]
    ) -> Float[Tensor, "times atoms"]:
        """Return u(t) of each atom, Å."""
        at = lags if self.config.unit == "usual" else torch.full_like(lags, self.horizon)
        return scales.units(at, rows)
