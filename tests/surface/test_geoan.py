"""Facts about GeoAN: what it sees, what it cannot see, and its closed form."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from undula.errors import UsageError
from undula.surface.clouds import RouterCloud
from undula.surface.geoan import GeoAN, GeoANConfig

SMALL = GeoANConfig(embedding=5, hidden=7, size=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(config: GeoANConfig = SMALL, seed: int = 0) -> GeoAN:
    return GeoAN(config, generator(seed)).double()


def cloud(count: int = 12, zeta: int = 6, seed: int = 1) -> RouterCloud:
    draw = generator(seed)
    points = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    normals = torch.nn.functional.normalize(points, dim=1)
    distances = 0.5 + 10 * torch.rand(count, zeta, generator=draw, dtype=torch.float64)
    return RouterCloud(
        points=points,
        normals=normals,
        smoothed=normals,
        owner=torch.zeros(count, dtype=torch.long),
        proteins=1,
        residue_types=torch.randint(21, (count, zeta), generator=draw),
        residue_distances=distances.sort(dim=1).values,
        residue_chains=torch.randint(3, (count, zeta), generator=draw),
        pairs=torch.zeros(2, 0, dtype=torch.long),
        distances=torch.zeros(0, dtype=torch.float64),
    )


def columns(given: RouterCloud, order: torch.Tensor) -> RouterCloud:
    names = ("residue_types", "residue_distances", "residue_chains")
    return dataclasses.replace(given, **{name: getattr(given, name)[:, order] for name in names})


def test_gives_features_of_the_size_asked_for_with_gradients_everywhere():
    net, given = network(), cloud()
    features = net(given)
    assert features.shape == (12, 3)
    features.square().sum().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


def test_is_the_formula_for_one_residue():
    net = network()
    given = cloud(count=1, zeta=1)
    inputs = torch.cat(
        [
            net.embedding[given.residue_types[0, 0]],
            torch.stack([1 / given.residue_distances[0, 0].clamp(min=1), torch.ones(()).double()]),
        ]
    )
    torch.testing.assert_close(net(given)[0], net.of_point(net.of_residue(inputs)))


def test_does_not_change_when_the_residues_are_listed_in_another_order():
    net, given = network(), cloud()
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    torch.testing.assert_close(net(columns(given, order)), net(given), rtol=0, atol=1e-12)


def test_sees_positions_only_through_distances():
    net, given = network(), cloud()
    turned = dataclasses.replace(given, points=given.points.flip(1) + 3)
    assert torch.equal(net(turned), net(given))


def test_points_in_another_order_have_the_same_features():
    net, given = network(), cloud()
    order = torch.randperm(12, generator=generator(2))
    names = ("residue_types", "residue_distances", "residue_chains")
    shuffled = dataclasses.replace(given, **{name: getattr(given, name)[order] for name in names})
    torch.testing.assert_close(net(shuffled), net(given)[order])


def test_residues_that_are_not_there_do_not_count():
    net, given = network(), cloud()
    pad = torch.nn.functional.pad
    padded = dataclasses.replace(
        given,
        residue_types=pad(given.residue_types, (0, 4), value=20),
        residue_distances=pad(given.residue_distances, (0, 4), value=math.inf),
        residue_chains=pad(given.residue_chains, (0, 4)),
    )
    torch.testing.assert_close(net(padded), net(given), rtol=0, atol=1e-12)
    net(padded).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_distances_below_one_angstrom_count_as_one():
    net, given = network(), cloud()
    near = dataclasses.replace(given, residue_distances=torch.full((12, 6), 0.2).double())
    nearer = dataclasses.replace(given, residue_distances=torch.zeros(12, 6).double())
    one = dataclasses.replace(given, residue_distances=torch.ones(12, 6).double())
    for close in (near, nearer):
        assert torch.equal(net(close), net(one))


def test_tells_types_distances_and_foreign_chains_apart():
    net, given = network(), cloud()
    before = net(given)
    away = dataclasses.replace(given, residue_distances=given.residue_distances + 1)
    types = dataclasses.replace(given, residue_types=(given.residue_types + 1) % 21)
    alone = dataclasses.replace(given, residue_chains=torch.zeros(12, 6, dtype=torch.long))
    for other in (away, types, alone):
        assert (net(other) - before).abs().max() > 1e-3


def test_the_names_of_chains_do_not_matter():
    net, given = network(), cloud()
    renamed = dataclasses.replace(given, residue_chains=(given.residue_chains + 1) % 3)
    torch.testing.assert_close(net(renamed), net(given))


def test_the_same_generator_gives_the_same_weights():
    first, second, other = (network(seed=seed).state_dict() for seed in (5, 5, 6))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (first["embedding"] != other["embedding"]).any()


def test_features_start_with_a_spread_of_order_one():
    features = GeoAN(GeoANConfig(), generator())(cloud(count=500, zeta=16).to(dtype=torch.float32))
    assert features.dtype == torch.float32
    assert 0.1 < features.std(dim=0).mean() < 3


@pytest.mark.parametrize("name", ["embedding", "hidden", "size"])
def test_refuses_sizes_of_zero(name):
    with pytest.raises(UsageError, match=name):
        GeoANConfig(**{name: 0})
