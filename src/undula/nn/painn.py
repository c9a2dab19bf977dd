r"""PaiNN: scalars and vectors on atoms, exchanged along pairs, on a graph that stays the same.

A message from neighbour j to atom i, and what the atom then does with it:

.. math::
    \Delta s_i &= \sum_j \phi_s(s_j) \circ W_s(d_{ij}) \\
    \Delta v_i &= \sum_j \phi_{vv}(s_j) \circ W_{vv}(d_{ij}) \circ v_j
                  + \phi_{vs}(s_j) \circ W_{vs}(d_{ij}) \, \hat r_{ij} \\
    \Delta s_i &= a_{ss} + a_{sv} \circ \langle U v_i, V v_i \rangle, \qquad
    \Delta v_i = a_{vv} \circ U v_i, \qquad a = a(s_i, \lVert V v_i \rVert)

======================  ==================================================================
s, v                    ``scalars`` [atoms, F] and ``vectors`` [atoms, 3, F]
φ                       ``Message.inner``, ``Message.outer``: a network of the sender alone
W                       ``Message.radial``, one `undula.nn.radial.RadialNetwork` for all pairs
U, V                    ``Update.mix``
a                       ``Update.inner``, ``Update.outer``
======================  ==================================================================

φ depends on an atom and W on a pair that does not move, so φ is computed once for each atom and
W once for each graph (`PaiNN.filters`), however often the network is called on the graph. There
is no cross product: it would make axial vectors, and a mirror image would be mistaken.

The components of a vector are rows of F channels: every loop is over channels, and U and V are
one matrix product of 3 × atoms rows.

Source: Schütt, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial
properties and molecular spectra", ICML 2021, eqs. 7–10. Differs from it: W is Q-MPNN's radial
network, tabulated (one matrix per kind of pair), not a linear layer of sines; features are
normalised before each step; sums are divided by the root of a typical number of neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.atom_graph import AtomGraph
from undula.nn.compiled import Form, added_in_parts, fuses, in_parts, pair_arrays
from undula.nn.painn_kernels import add_derivatives, add_messages
from undula.nn.products import through
from undula.nn.radial import RadialConfig, RadialNetwork, RadialWeights, check_places

_PAIRS_PER_THREAD = 8192
"""Below this a second thread costs more than it saves."""

LEAST = 1e-5
"""What is added to a square before its root, which has no slope at 0."""


@dataclass(frozen=True, kw_only=True)
class PaiNNConfig:
    """The form of a PaiNN.

    Attributes:
        features: F, channels of scalars and of vectors.
        layers: How often atoms hear their neighbours.
        radial: Form of the weights W; its window is the cutoff of the pairs, Å.
        pair_kinds: How many kinds of pairs there are, such as 2 for neighbours and bonds.
        neighbours: Typical number of neighbours; sums over them are divided by its root.
    """

    features: int = 64
    layers: int = 2
    radial: RadialConfig = field(
        default_factory=lambda: RadialConfig(window=7.5, centres=20, knots=512)
    )
    pair_kinds: int = 1
    neighbours: float = 24.0

    def __post_init__(self) -> None:
        for name in ("features", "layers", "pair_kinds"):
            if getattr(self, name) < 1:
                raise UsageError(f"painn.{name} must be at least 1, not {getattr(self, name)}")
        if not (isfinite(self.neighbours) and self.neighbours > 0):
            raise UsageError(f"painn.neighbours must be positive, not {self.neighbours}")


@dataclass(frozen=True, eq=False)
class Filters:
    """A graph and the weights of its pairs in each layer: all that stays the same on it.

    Attributes:
        graph: The graph.
        layers: For each layer the weights W, 3 F a pair: written out ("plain") or as places in
            a table ("fused"). They have derivatives by the parameters of the network.
    """

    graph: AtomGraph
    layers: tuple[Float[Tensor, "pairs weights"] | RadialWeights, ...]


class PaiNN(nn.Module):
    """Exchange scalars and vectors between neighbours a few times.

    Turned, mirrored and relabelled atoms give turned, mirrored and relabelled features. The
    features come in as they go out; embeddings and read-outs are the caller's.
    """

    def __init__(self, config: PaiNNConfig, generator: torch.Generator) -> None:
        """Make a network with weights drawn from ``generator``."""
        super().__init__()
        self.config = config
        self.messages = nn.ModuleList(Message(config, generator) for _ in range(config.layers))
        self.updates = nn.ModuleList(Update(config, generator) for _ in range(config.layers))

    def filters(self, graph: AtomGraph, form: Form = "auto") -> Filters:
        """Compute what depends on the graph alone, for any number of calls on it.

        Args:
            graph: The graph; a pair beyond the window weighs nothing.
            form: See `Form`. The forms give equal numbers; "plain" has derivatives of any
                order and keeps 3 F numbers a pair and layer, "fused" has first derivatives
                and keeps two a pair.

        Raises:
            UsageError: The form cannot serve this device or dtype, or a pair has a kind that
                the configuration does not know.
        """
        fused = fuses(form, graph.vectors, "PaiNN")
        check_kinds(graph, self.config.pair_kinds)
        weights = [message.weights(graph) for message in cast("list[Message]", self.messages)]
        return Filters(graph, tuple(one if fused else one.of_pairs() for one in weights))

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms 3 features"],
        filters: Filters,
    ) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "atoms 3 features"]]:
        """Compute the features after all layers.

        Args:
            scalars: s.
            vectors: v, the components as rows.
            filters: From `filters`, on the same graph.

        Returns:
            Scalars and vectors; what came in, plus what was heard and made of it.
        """
        for message, update, weights in zip(
            self.messages, self.updates, filters.layers, strict=True
        ):
            scalars, vectors = message(scalars, vectors, filters.graph, weights)
            scalars, vectors = update(scalars, vectors)
        return scalars, vectors


class Norm(nn.Module):
    r"""Keep the features of each atom from growing.

    .. math::
        s' = \mathrm{LN}(s), \qquad v'_{kc} = v_{kc} \Big/ \sqrt{1 + \overline{v_{kc}^2}}

    with the mean over components and channels, which does not change when the vectors are
    turned. Short vectors stay as they are, so a slow atom differs from a fast one.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scalars = nn.LayerNorm(features)

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms 3 features"],
    ) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "atoms 3 features"]]:
        """Normalise each atom."""
        size = (vectors.square().mean(dim=(1, 2), keepdim=True) + 1).rsqrt()
        return self.scalars(scalars), vectors * size


class Message(nn.Module):
    """Add what the neighbours say."""

    def __init__(self, config: PaiNNConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.features
        self.pair_kinds, self.share = config.pair_kinds, config.neighbours**-0.5
        self.norm = Norm(width)
        self.inner = drawn_linear(width, width, generator)
        self.outer = drawn_linear(width, 3 * width, generator)
        self.radial = RadialNetwork(config.radial, 3 * width * config.pair_kinds, generator)

    def weights(self, graph: AtomGraph) -> RadialWeights:
        """Compute the weights W of the pairs, 3 F each."""
        rows, lower, part = pair_weights(self.radial, graph, self.pair_kinds)
        return RadialWeights(rows * self.share, lower, part)

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms 3 features"],
        graph: AtomGraph,
        weights: Float[Tensor, "pairs weights"] | RadialWeights,
    ) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "atoms 3 features"]]:
        """Return the features with all messages added."""
        own, carried = self.norm(scalars, vectors)
        features = through(self.outer, functional.silu(through(self.inner, own)))
        by_scalars, by_vectors = neighbour_sums(features, carried, graph, weights)
        return scalars + by_scalars, vectors + by_vectors


class Update(nn.Module):
    """Let the scalars and vectors of each atom act on one another."""

    def __init__(self, config: PaiNNConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.features
        self.norm = Norm(width)
        self.mix = drawn_linear(width, 2 * width, generator, bias=False)
        self.inner = drawn_linear(2 * width, width, generator)
        self.outer = drawn_linear(width, 3 * width, generator)

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms 3 features"],
    ) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "atoms 3 features"]]:
        """Return the changed features."""
        own, carried = self.norm(scalars, vectors)
        mixed = through(self.mix, carried.flatten(0, 1)).unflatten(0, (-1, 3))
        u, v = mixed.chunk(2, dim=2)
        length = (v.square().sum(dim=1) + LEAST).sqrt()
        hidden = functional.silu(through(self.inner, torch.cat((own, length), dim=1)))
        a_ss, a_sv, a_vv = through(self.outer, hidden).chunk(3, dim=1)
        return scalars + a_ss + a_sv * (u * v).sum(dim=1), vectors + a_vv[:, None] * u


def check_kinds(graph: AtomGraph, known: int) -> None:
    """Refuse a graph with other kinds of pairs than the first few.

    Raises:
        UsageError: There is such a kind.
    """
    kinds = graph.kinds
    if kinds is not None and bool(((kinds < 0) | (kinds >= known)).any()):
        raise UsageError(f"the network knows {known} kinds of pairs, 0 to {known - 1}")


def pair_weights(radial: RadialNetwork, graph: AtomGraph, kinds: int) -> RadialWeights:
    """Compute weights from the distance and the kind of each pair.

    Args:
        radial: Its outputs are those of the first kind of pair, of the second, and so on.
        graph: Distances and kinds.
        kinds: How many there are.

    Returns:
        Weights of one kind; the rows of the table are those of one kind after the other.
    """
    rows, lower, part = radial.weights(graph.distances)
    if graph.kinds is not None:
        lower = lower + graph.kinds * len(rows)
    return RadialWeights(rows.unflatten(1, (kinds, -1)).transpose(0, 1).flatten(0, 1), lower, part)


def drawn_linear(
    inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True
) -> nn.Linear:
    """Make a linear layer with weights from N(0, 1 / inputs) and a bias of 0."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def neighbour_sums(
    features: Float[Tensor, "atoms weights"],
    vectors: Float[Tensor, "atoms 3 channels"],
    graph: AtomGraph,
    weights: Float[Tensor, "pairs weights"] | RadialWeights,
) -> tuple[Float[Tensor, "atoms channels"], Float[Tensor, "atoms 3 channels"]]:
    r"""Compute the sums of PaiNN's messages.

    .. math::
        \sum_j x^1_j \circ w^1_{ij}, \qquad
        \sum_j x^2_j \circ w^2_{ij} \circ v_j + x^3_j \circ w^3_{ij} \, \hat r_{ij}

    Args:
        features: x, three parts of as many channels as the vectors have: φ of each atom.
        vectors: v of each atom.
        graph: Who hears whom.
        weights: w, three parts as x: written out for each pair (any device, derivatives of any
            order), or as places in a table (one compiled loop on a CPU, first derivatives).

    Returns:
        Scalars and vectors of each atom; 0 for one that hears nobody. The same bytes each time
        on a CPU with the same number of threads.

    Raises:
        ValueError: There are not three features and weights for each channel of the vectors,
            or a place lies outside the table.

    Source: PaiNN, eqs. 7 and 8.
    """
    rows = weights if isinstance(weights, Tensor) else weights.rows
    needed = 3 * vectors.shape[2]
    if (features.shape[1], rows.shape[1]) != (needed, needed):
        raise ValueError(
            f"features and weights should have {needed} numbers, not "
            f"{features.shape[1]} and {rows.shape[1]}"
        )
    if not isinstance(weights, Tensor):
        check_places(weights, len(graph.senders))
        return _Fused.apply(features, vectors, *weights, graph)
    own, carried, along = (graph.from_senders(features) * weights).chunk(3, dim=1)
    arriving = (
        carried[:, None] * graph.from_senders(vectors)
        + along[:, None] * graph.directions[:, :, None]
    )
    return graph.sums(own), graph.sums(arriving)


class _Fused(torch.autograd.Function):
    """The sums in one loop over the pairs, compiled."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        vectors: Tensor,
        rows: Tensor,
        lower: Tensor,
        part: Tensor,
        graph: AtomGraph,
    ) -> tuple[Tensor, Tensor]:
        tensors = (features, vectors, rows, lower, part)
        ctx.save_for_backward(*tensors)
        ctx.graph = graph
        given = pair_arrays(graph, tensors)
        scalar_sums = features.new_zeros(graph.atoms, vectors.shape[2])
        vector_sums = torch.zeros_like(vectors, memory_format=torch.contiguous_format)

        def work(first: int, last: int) -> None:
            add_messages(first, last, *given, scalar_sums.numpy(), vector_sums.numpy())

        in_parts(work, graph.starts, _PAIRS_PER_THREAD)
        return scalar_sums, vector_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_scalars: Tensor, by_vectors: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        given = pair_arrays(ctx.graph, saved)
        arriving = (by_scalars.contiguous().numpy(), by_vectors.contiguous().numpy())

        def add(first: int, last: int, *made: np.ndarray) -> None:
            add_derivatives(first, last, *given, *arriving, *made)

        starts = ctx.graph.starts
        return *added_in_parts(add, starts, _PAIRS_PER_THREAD, saved[:3]), None, None, None
