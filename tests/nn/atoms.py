"""Atoms with neighbours and features, for tests of networks of atoms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from undula.nn.atom_graph import AtomGraph


@dataclass
class Atoms:
    """Atoms in a box without walls, with features."""

    positions: Tensor
    kinds: Tensor
    scalars: Tensor
    vectors: Tensor
    cutoff: float = 4.0

    @classmethod
    def drawn(cls, count: int = 14, features: int = 8, dtype=torch.float64) -> Atoms:
        draw = torch.Generator().manual_seed(5)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=dtype, generator=draw)

        return cls(
            2 * numbers(count, 3),
            torch.randint(2, (count,), generator=draw),
            numbers(count, features),
            numbers(count, 3, features),
        )

    @property
    def graph(self) -> AtomGraph:
        away = self.positions - self.positions[:, None]
        near = (away.norm(dim=2) < self.cutoff) & ~torch.eye(
            len(away), dtype=torch.bool, device=away.device
        )
        i, j = pairs = near.nonzero().T
        return AtomGraph(
            pairs=pairs,
            vectors=away[near],
            atoms=len(away),
            kinds=self.kinds[i] * self.kinds[j],
        )

    def turned(self, matrix: Tensor) -> Atoms:
        return replace(
            self,
            positions=self.positions @ matrix.T,
            vectors=matrix.to(self.vectors) @ self.vectors,
        )

    def relabelled(self, order: Tensor) -> Atoms:
        return Atoms(
            self.positions[order], self.kinds[order], self.scalars[order], self.vectors[order]
        )

    def through(self, network, *form: str) -> tuple[Tensor, Tensor]:
        return network(self.scalars, self.vectors, network.filters(self.graph, *form))
