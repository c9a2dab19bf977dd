r"""EGNN: scalars and vectors on atoms, exchanged by a network of each pair.

.. math::
    q_{ij} &= A s_i + B s_j + C \, r(d_{ij}) + \langle \hat r_{ij}, P v_j - P v_i \rangle \\
    m_{ij} &= g(q_{ij}) \, c(d_{ij}), \qquad
              g(q) = \tfrac12 q \left(1 + q / \sqrt{1 + q^2}\right) \\
    v_i' &= v_i + \sum_j \hat r_{ij} \otimes D m_{ij} + \phi_v(s_i) \circ U v_i \\
    s_i' &= s_i + \phi_h\left(s_i, \sum_j m_{ij}, \lVert V v_i \rVert\right)

==========  ==========================================================================
s, v        ``scalars`` [atoms, F] and ``vectors`` [atoms, 3, F], as in `undula.nn.painn`
C r, c      ``Layer.radial``, `undula.nn.radial.RadialNetwork`, and its window
A, B        ``Layer.ends``: applied to atoms, before pairs are made
P, U, V     ``Layer.mix``
D           ``Layer.along``: applied to atoms, after the sum over pairs
φ_v, φ_h    ``Layer.scale``; ``Layer.inner`` and ``Layer.outer``
==========  ==========================================================================

A message depends on both atoms, on how far they are from one another and on how they approach,
all at once: what a collision depends on. PaiNN's is a product of what the sender says and of a
weight of the distance.

Source: Satorras, Hoogeboom, Welling, "E(n) equivariant graph neural networks", ICML 2021, eqs.
3–7. Differs from it: the pairs keep their vectors, and there are F vectors an atom, not one that
is its velocity; how they change a distance enters to first order (P), instead of the moved
positions. Distances enter by a radial basis, and pairs fade at the window. The network of a pair
has one layer, so that no matrix is multiplied for each pair, and its gate g is SiLU's shape
without an exponential. A linear layer beside a sum over pairs is applied to atoms.
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
from undula.nn.egnn_kernels import add_derivatives, add_messages
from undula.nn.painn import LEAST, Norm, check_kinds, drawn_linear, pair_weights
from undula.nn.products import through
from undula.nn.radial import (
    RadialConfig,
    RadialNetwork,
    RadialWeights,
    check_places,
    cosine_cutoff,
)

_PAIRS_PER_THREAD = 8192
"""Below this a second thread costs more than it saves."""


@dataclass(frozen=True, kw_only=True)
class EGNNConfig:
    """The form of an EGNN.

    Attributes:
        features: F, channels of scalars and of vectors.
        layers: How often atoms hear their neighbours.
        radial: How distances enter; its window is the cutoff of the pairs, Å.
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
                raise UsageError(f"egnn.{name} must be at least 1, not {getattr(self, name)}")
        if not (isfinite(self.neighbours) and self.neighbours > 0):
            raise UsageError(f"egnn.neighbours must be positive, not {self.neighbours}")


@dataclass(frozen=True, eq=False)
class PairTerms:
    """A graph and what its distances add in each layer: all that stays the same on it.

    Attributes:
        graph: The graph.
        fading: c, from 1 to 0 at the window, divided by the root of the neighbours.
        layers: C r in each layer: written out for each pair ("plain") or as places in a table
            ("fused"). They have derivatives by the parameters of the network.
    """

    graph: AtomGraph
    fading: Float[Tensor, " pairs"]
    layers: tuple[Float[Tensor, "pairs features"] | RadialWeights, ...]


class EGNN(nn.Module):
    """Exchange scalars and vectors between neighbours a few times, as `undula.nn.painn.PaiNN`.

    Turned, mirrored and relabelled atoms give turned, mirrored and relabelled features.
    """

    def __init__(self, config: EGNNConfig, generator: torch.Generator) -> None:
        """Make a network with weights drawn from ``generator``."""
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, generator) for _ in range(config.layers))

    def filters(self, graph: AtomGraph, form: Form = "auto") -> PairTerms:
        """Compute what depends on the graph alone, for any number of calls on it.

        Args:
            graph: The graph; a pair beyond the window says nothing.
            form: See `undula.nn.compiled.Form`. The forms give equal numbers; "plain" has
                derivatives of any order and keeps numbers of each pair and channel in every
                call, "fused" has first derivatives and keeps nothing for a pair.

        Raises:
            UsageError: The form cannot serve this device or dtype, or a pair has a kind that
                the configuration does not know.
        """
        fused = fuses(form, graph.vectors, "EGNN")
        check_kinds(graph, self.config.pair_kinds)
        layers, count = cast("list[Layer]", self.layers), self.config.pair_kinds
        weights = [pair_weights(layer.radial, graph, count) for layer in layers]
        fading = cosine_cutoff(graph.distances, self.config.radial.window)
        return PairTerms(
            graph,
            fading * self.config.neighbours**-0.5,
            tuple(one if fused else one.of_pairs() for one in weights),
        )

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms 3 features"],
        filters: PairTerms,
    ) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "atoms 3 features"]]:
        """Compute the features after all layers.

        Args:
            scalars: s.
            vectors: v, the components as rows.
            filters: From `filters`, on the same graph.

        Returns:
            Scalars and vectors; what came in, plus what was heard and made of it.
        """
        for layer, terms in zip(self.layers, filters.layers, strict=True):
            scalars, vectors = layer(scalars, vectors, filters, terms)
        return scalars, vectors


class Layer(nn.Module):
    """One exchange between neighbours."""

    def __init__(self, config: EGNNConfig, generator: torch.Generator) -> None:
        super().__init__()
        width = config.features
        self.norm = Norm(width)
        self.radial = RadialNetwork(config.radial, width * config.pair_kinds, generator)
        self.ends = drawn_linear(width, 2 * width, generator, bias=False)
        self.mix = drawn_linear(width, 3 * width, generator, bias=False)
        self.along = drawn_linear(width, width, generator, bias=False)
        self.scale = drawn_linear(width, width, generator)
        self.inner = drawn_linear(3 * width, width, generator)
        self.outer = drawn_linear(width, width, generator)

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms 3 features"],
        filters: PairTerms,
        terms: Float[Tensor, "pairs features"] | RadialWeights,
    ) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "atoms 3 features"]]:
        """Return the changed features."""
        own, carried = self.norm(scalars, vectors)
        mixed = through(self.mix, carried.flatten(0, 1)).unflatten(0, (-1, 3))
        p, u, v = mixed.chunk(3, dim=2)
        here, there = through(self.ends, own).chunk(2, dim=1)
        heard, pushed = pair_sums(here, there, p, filters, terms)
        pushed = through(self.along, pushed.flatten(0, 1)).unflatten(0, (-1, 3))
        length = (v.square().sum(dim=1) + LEAST).sqrt()
        known = torch.cat((own, heard, length), dim=1)
        changed = through(self.outer, functional.silu(through(self.inner, known)))
        return scalars + changed, vectors + pushed + through(self.scale, own)[:, None] * u


def pair_sums(
    here: Float[Tensor, "atoms channels"],
    there: Float[Tensor, "atoms channels"],
    carried: Float[Tensor, "atoms 3 channels"],
    filters: PairTerms,
    terms: Float[Tensor, "pairs channels"] | RadialWeights,
) -> tuple[Float[Tensor, "atoms channels"], Float[Tensor, "atoms 3 channels"]]:
    r"""Compute the sums of EGNN's messages.

    .. math::
        \sum_j m_{ij}, \qquad \sum_j \hat r_{ij} \otimes m_{ij}, \qquad
        m_{ij} = c_{ij} \, g\left(a_i + b_j + w_{ij}
                 + \langle \hat r_{ij}, p_j - p_i \rangle\right)

    Args:
        here: a of each receiver.
        there: b of each sender.
        carried: p of each atom.
        filters: Who hears whom, and c.
        terms: w: written out for each pair (any device, derivatives of any order), or as places
            in a table (one compiled loop on a CPU, first derivatives).

    Returns:
        Scalars and vectors of each atom; 0 for one that hears nobody. The same bytes each time
        on a CPU with the same number of threads.

    Raises:
        ValueError: A place lies outside the table, or the channels differ.

    Source: EGNN, eqs. 3 and 4; see the module.
    """
    graph, rows = filters.graph, terms if isinstance(terms, Tensor) else terms.rows
    channels = {one.shape[-1] for one in (here, there, carried, rows)}
    if len(channels) > 1:
        raise ValueError(f"channels should be as many everywhere, not {sorted(channels)}")
    if not isinstance(terms, Tensor):
        check_places(terms, len(graph.senders))
        return _Fused.apply(here, there, carried, *terms, filters)
    nearer = graph.from_senders(carried) - graph.from_receivers(carried)
    q = graph.from_receivers(here) + graph.from_senders(there) + terms
    q = q + (graph.directions[:, :, None] * nearer).sum(dim=1)
    messages = gate(q) * filters.fading[:, None]
    return graph.sums(messages), graph.sums(graph.directions[:, :, None] * messages[:, None])


def gate(values: Float[Tensor, ...]) -> Float[Tensor, ...]:
    r"""Compute :math:`\tfrac12 q (1 + q / \sqrt{1 + q^2})`, from 0 far below 0 to q far above."""
    return values * (1 + values * (1 + values.square()).rsqrt()) / 2


class _Fused(torch.autograd.Function):
    """The sums in one loop over the pairs, compiled."""

    @staticmethod
    def forward(
        ctx: Any,
        here: Tensor,
        there: Tensor,
        carried: Tensor,
        rows: Tensor,
        lower: Tensor,
        part: Tensor,
        filters: PairTerms,
    ) -> tuple[Tensor, Tensor]:
        tensors = (here, there, carried, rows, lower, part)
        ctx.save_for_backward(*tensors)
        ctx.filters = filters
        given = pair_arrays(filters.graph, (filters.fading, *tensors))
        heard, pushed = (carried.new_zeros(shape) for shape in (here.shape, carried.shape))

        def work(first: int, last: int) -> None:
            add_messages(first, last, *given, heard.numpy(), pushed.numpy())

        in_parts(work, filters.graph.starts, _PAIRS_PER_THREAD)
        return heard, pushed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_heard: Tensor, by_pushed: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        given = pair_arrays(ctx.filters.graph, (ctx.filters.fading, *saved))
        arriving = (by_heard.contiguous().numpy(), by_pushed.contiguous().numpy())

        def add(first: int, last: int, *made: np.ndarray) -> None:
            add_derivatives(first, last, *given, *arriving, *made)

        starts = ctx.filters.graph.starts
        return *added_in_parts(add, starts, _PAIRS_PER_THREAD, saved[:4]), None, None, None
