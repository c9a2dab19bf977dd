"""Router clouds of made-up proteins, with a stand-in for their chemistry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from undula.surface.clouds import RouterCloud

WINDOW = 9.0
RESIDUES = 4
FEATURES = 5


class Chemistry(nn.Module):
    """Features from the distances of the nearest residues."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(FEATURES, RESIDUES, generator=draw))

    def forward(self, cloud: RouterCloud) -> Tensor:
        return torch.tanh(cloud.residue_distances / 10 @ self.weight.T)


def cloud(points: Tensor, normals: Tensor, residues: Tensor) -> RouterCloud:
    """Make the cloud of one protein from its surface and the places of its residues."""
    apart = torch.cdist(points, points) * (2 - normals @ normals.T)
    apart.fill_diagonal_(torch.inf)
    pairs = (apart < WINDOW).nonzero().T
    to_residues, nearest = torch.cdist(points, residues).sort(dim=1)
    return RouterCloud(
        points=points,
        normals=normals,
        smoothed=normals,
        owner=torch.zeros(len(points), dtype=torch.long),
        proteins=1,
        residue_types=nearest[:, :RESIDUES],
        residue_distances=to_residues[:, :RESIDUES],
        residue_chains=torch.zeros_like(nearest[:, :RESIDUES]),
        pairs=pairs,
        distances=apart[pairs[0], pairs[1]],
    )


def ellipsoid(axes: Sequence[float], count: int = 150, seed: int = 0) -> RouterCloud:
    """Draw the cloud of an ellipsoid of given half axes, Å, with residues inside."""
    draw = torch.Generator().manual_seed(seed)
    half = torch.tensor(axes, dtype=torch.float64)
    directions = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    directions = functional.normalize(directions, dim=1)
    inside = torch.rand(6, 3, generator=draw, dtype=torch.float64) - 0.5
    normals = functional.normalize(directions / half, dim=1)
    return cloud(directions * half, normals, inside * half)


def shuffled(before: RouterCloud) -> RouterCloud:
    """Put the points of one protein into a random order."""
    order = torch.randperm(len(before.points), generator=torch.Generator().manual_seed(5))
    pairs = order.argsort()[before.pairs]
    sort = (pairs[0] * len(order) + pairs[1]).argsort()
    per_pair = {"pairs": pairs[:, sort], "distances": before.distances[sort]}
    per_point = {
        field.name: getattr(before, field.name)[order]
        for field in dataclasses.fields(RouterCloud)
        if field.name not in ("proteins", *per_pair)
    }
    return RouterCloud(**per_point, **per_pair, proteins=before.proteins)


def turned(before: RouterCloud, turn: Tensor) -> RouterCloud:
    """Turn or mirror a cloud by an orthogonal matrix."""
    vectors = {name: getattr(before, name) @ turn.T for name in ("points", "normals", "smoothed")}
    return dataclasses.replace(before, **vectors)


def rotation(seed: int = 0) -> Tensor:
    """Draw a proper rotation in float64."""
    draw = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=draw, dtype=torch.float64))
    return q * torch.linalg.det(q)
