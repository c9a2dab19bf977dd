"""Who hears whom among atoms, and from where: the graph that networks of atoms work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undula.errors import InputError
from undula.nn.rows import rows_of


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomGraph:
    """Pairs of atoms and the way from one to the other; fixed while a network works on it.

    Several molecules, frames or segments are one graph without pairs between them (`joined`).
    The vectors are data: nothing is differentiated by them.

    Attributes:
        pairs: Receiver i and sender j, sorted by i. Two images of one sender are two pairs.
        vectors: From i to j, :math:`r_j - r_i`, through the box where there is one, Å. Atoms
            that coincide have no direction: they are heard as from nowhere.
        atoms: How many there are.
        kinds: Kind of each pair, counted from 0, such as 1 for a bond; all 0 by default.
    """

    pairs: Int[Tensor, "2 pairs"]
    vectors: Float[Tensor, "pairs 3"]
    atoms: int
    kinds: Int[Tensor, " pairs"] | None = None

    def __post_init__(self) -> None:
        count = self.pairs.shape[1]
        lengths = {count, len(self.vectors), count if self.kinds is None else len(self.kinds)}
        if len(lengths) > 1:
            raise InputError(f"{count} pairs of atoms need as many vectors and kinds")
        if self.vectors.requires_grad:
            raise InputError("vectors of an atom graph have no derivative; detach them")
        if count == 0:
            return
        if bool(((self.pairs < 0) | (self.pairs >= self.atoms)).any()):
            raise InputError(f"the pairs name atoms that do not exist: there are {self.atoms}")
        if bool((self.receivers.diff() < 0).any()):
            raise InputError("the pairs should be sorted by their receiver")

    @cached_property
    def receivers(self) -> Int[Tensor, " pairs"]:
        """Receiver of each pair, ascending."""
        return self.pairs[0].contiguous()

    @cached_property
    def senders(self) -> Int[Tensor, " pairs"]:
        """Sender of each pair."""
        return self.pairs[1].contiguous()

    @cached_property
    def starts(self) -> Int[Tensor, " starts"]:
        """Where the pairs of each receiver begin, and the number of pairs."""
        every = torch.arange(self.atoms + 1, device=self.pairs.device)
        return torch.searchsorted(self.receivers, every)

    @cached_property
    def distances(self) -> Float[Tensor, " pairs"]:
        """Length of each vector, Å."""
        return self.vectors.norm(dim=1)

    @cached_property
    def directions(self) -> Float[Tensor, "pairs 3"]:
        """Each vector divided by its length; 0 for atoms that coincide."""
        length = self.distances[:, None]
        return (self.vectors / torch.where(length > 0, length, 1)).contiguous()

    def from_senders(self, values: Float[Tensor, "atoms ..."]) -> Float[Tensor, "pairs ..."]:
        """Return the sender's row for each pair; differentiable, the same bytes each time."""
        return rows_of(values.flatten(1), self.senders).unflatten(1, values.shape[1:])

    def from_receivers(self, values: Float[Tensor, "atoms ..."]) -> Float[Tensor, "pairs ..."]:
        """Return the receiver's row for each pair; differentiable, the same bytes each time."""
        return rows_of(values.flatten(1), self.receivers).unflatten(1, values.shape[1:])

    def sums(self, values: Float[Tensor, "pairs ..."]) -> Float[Tensor, "atoms ..."]:
        """Sum the rows of the pairs of each receiver; 0 for an atom that hears nobody."""
        nothing = values.new_zeros(self.atoms, *values.shape[1:])
        return nothing.index_add(0, self.receivers, values)


def joined(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """Put graphs side by side: the atoms of the second follow those of the first, and so on.

    Raises:
        InputError: There is no graph, or some have kinds of pairs and some have none.
    """
    if not graphs:
        raise InputError("no graphs to put side by side")
    if len({graph.kinds is None for graph in graphs}) > 1:
        raise InputError("graphs with and without kinds of pairs cannot be put side by side")
    offsets = [0]
    for graph in graphs:
        offsets.append(offsets[-1] + graph.atoms)
    shifted = [graph.pairs + first for graph, first in zip(graphs, offsets[:-1], strict=True)]
    kinds = [graph.kinds for graph in graphs if graph.kinds is not None]
    return AtomGraph(
        pairs=torch.cat(shifted, dim=1),
        vectors=torch.cat([graph.vectors for graph in graphs]),
        atoms=offsets[-1],
        kinds=torch.cat(kinds) if kinds else None,
    )


def repeated(graph: AtomGraph, count: int) -> AtomGraph:
    """Put copies of one graph side by side, such as for several samples of one molecule.

    Raises:
        InputError: Fewer than one copy is asked for.
    """
    if count < 1:
        raise InputError(f"a graph is repeated at least once, not {count} times")
    offsets = torch.arange(count, device=graph.pairs.device) * graph.atoms
    return AtomGraph(
        pairs=(graph.pairs[:, None] + offsets[:, None]).flatten(1),
        vectors=graph.vectors.repeat(count, 1),
        atoms=graph.atoms * count,
        kinds=None if graph.kinds is None else graph.kinds.repeat(count),
    )
