r"""EGNN: scalars and vectors on atoms, exchanged by a network of each pair.

.. math::
    m_{ij} &= \mathrm{SiLU}\left(W_2 \, \mathrm{SiLU}(A s_i + B s_j + C \, r(d_{ij})
              + \langle \hat r_{ij}, P v_j - P v_i \rangle)\right) c(d_{ij}) \\
    v_i' &= v_i + \sum_j \hat r_{ij} \otimes D m_{ij} + \phi_v(s_i) \circ U v_i \\
    s_i' &= s_i + \phi_h\left(s_i, \sum_j m_{ij}, \lVert V v_i \rVert\right)

==========  ==========================================================================
s, v        ``scalars`` [atoms, F] and ``vectors`` [atoms, 3, F], as in `undula.nn.painn`
C r, c      ``Layer.radial``, `undula.nn.radial.RadialNetwork`, and its window
A, B        ``Layer.ends``: applied to atoms, before pairs are made
P, U, V     ``Layer.mix``
W_2         ``Layer.pair``
D           ``Layer.along``: applied to atoms, after the sum over pairs
φ_v, φ_h    ``Layer.scale``; ``Layer.inner`` and ``Layer.outer``
==========  ==========================================================================

A product of matrices for each pair costs many times PaiNN's messages: this is for comparison.

Source: Satorras, Hoogeboom, Welling, "E(n) equivariant graph neural networks", ICML 2021, eqs.
3–7. Differs from it: the pairs keep their vectors, and there are F vectors an atom, not one that
is its velocity; how they change a distance enters to first order (P), instead of the moved
positions. Distances enter by a radial basis, and pairs fade at the window. A linear layer beside
a sum over pairs is applied to atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from undula.errors import UsageError
from undula.nn.atom_graph import AtomGraph
from undula.nn.painn import LEAST, Norm, check_kinds, drawn_linear, pair_weights
from undula.nn.products import through
from undula.nn.radial import RadialConfig, RadialNetwork, cosine_cutoff


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
        layers: C r for each pair, in each layer.
    """

    graph: AtomGraph
    fading: Float[Tensor, " pairs"]
    layers: tuple[Float[Tensor, "pairs features"], ...]


class EGNN(nn.Module):
    """Exchange scalars and vectors between neighbours a few times, as `undula.nn.painn.PaiNN`.

    Turned, mirrored and relabelled atoms give turned, mirrored and relabelled features.
    """

    def __init__(self, config: EGNNConfig, generator: torch.Generator) -> None:
        """Make a network with weights drawn from ``generator``."""
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config, generator) for _ in range(config.layers))

    def filters(self, graph: AtomGraph) -> PairTerms:
        """Compute what depends on the graph alone, for any number of calls on it.

        Args:
            graph: The graph; a pair beyond the window says nothing.

        Raises:
            UsageError: A pair has a kind that the configuration does not know.
        """
        check_kinds(graph, self.config.pair_kinds)
        layers, count = cast("list[Layer]", self.layers), self.config.pair_kinds
        fading = cosine_cutoff(graph.distances, self.config.radial.window)
        return PairTerms(
            graph,
            fading * self.config.neighbours**-0.5,
            tuple(pair_weights(layer.radial, graph, count).of_pairs() for layer in layers),
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
        self.pair = drawn_linear(width, width, generator)
        self.along = drawn_linear(width, width, generator, bias=False)
        self.scale = drawn_linear(width, width, generator)
        self.inner = drawn_linear(3 * width, width, generator)
        self.outer = drawn_linear(width, width, generator)

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms 3 features"],
        filters: PairTerms,
        terms: Float[Tensor, "pairs features"],
    ) -> tuple[Float[Tensor, "atoms features"], Float[Tensor, "atoms 3 features"]]:
        """Return the changed features."""
        graph, (own, carried) = filters.graph, self.norm(scalars, vectors)
        mixed = through(self.mix, carried.flatten(0, 1)).unflatten(0, (-1, 3))
        p, u, v = mixed.chunk(3, dim=2)
        here, there = through(self.ends, own).chunk(2, dim=1)
        nearer = graph.from_senders(p) - graph.from_receivers(p)
        first = graph.from_receivers(here) + graph.from_senders(there) + terms
        first = first + (graph.directions[:, :, None] * nearer).sum(dim=1)
        said = functional.silu(through(self.pair, functional.silu(first)))
        said = said * filters.fading[:, None]
        heard = graph.sums(said)
        pushed = graph.sums(graph.directions[:, :, None] * said[:, None])
        pushed = through(self.along, pushed.flatten(0, 1)).unflatten(0, (-1, 3))
        length = (v.square().sum(dim=1) + LEAST).sqrt()
        known = torch.cat((own, heard, length), dim=1)
        changed = through(self.outer, functional.silu(through(self.inner, known)))
        return scalars + changed, vectors + pushed + through(self.scale, own)[:, None] * u
