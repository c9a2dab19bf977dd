import dataclasses
from dataclasses import replace

import pytest
import torch
from tests.nn.turning import reflection, rotation, wigner
from tests.surface.backbones.shapes import ellipsoid, shuffled, turned

from undula.data import bundled
from undula.errors import UsageError
from undula.io.structures import load_structure
from undula.nn.radial import RadialConfig
from undula.surface import qmpnn
from undula.surface.clouds import CloudConfig, RouterCloud, collated, router_cloud
from undula.surface.geoan import GeoANConfig
from undula.surface.qmpnn import QMPNN, QMPNNConfig
from undula.surface.router import Router, RouterOutput

SMALL = QMPNNConfig(
    features=GeoANConfig(embedding=4, hidden=8, size=6),
    channels=(16, 8, 8),
    radial=RadialConfig(centres=8, hidden=16, knots=256),
    readout=16,
    code=7,
)
VARIANTS = {
    "degree 2": SMALL,
    "degree 1": replace(SMALL, channels=(16, 8)),
    "without normals": replace(SMALL, normals=False),
    "one layer": replace(SMALL, layers=1),
    "exact radial network": replace(SMALL, radial=replace(SMALL.radial, form="network")),
    "plain": replace(SMALL, messages="plain"),
    "e3nn": replace(SMALL, messages="e3nn"),
}


def network(config: QMPNNConfig = SMALL) -> QMPNN:
    """Make a float64 network in which no bias is zero."""
    made = QMPNN(config, torch.Generator().manual_seed(0)).double()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return made


def cloud() -> RouterCloud:
    return ellipsoid((7.0, 9.0, 13.0))


def assert_same(found: RouterOutput, expected: RouterOutput, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(found.code, expected.code, rtol=0, atol=tolerance)
    assert len(found.irreps) == len(expected.irreps)
    for one, other in zip(found.irreps, expected.irreps, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request) -> QMPNNConfig:
    if request.param.messages == "e3nn":
        pytest.importorskip("e3nn")
    return request.param


def test_gives_a_code_and_irreps_of_each_degree(config):
    output = network(config)(cloud())
    assert isinstance(network(config), Router)
    assert output.code.shape == (1, 7)
    shapes = [tuple(one.shape) for one in output.irreps]
    channels = config.channels[1:]
    assert shapes == [(1, count, 2 * level + 3) for level, count in enumerate(channels)]
    assert all(one.abs().max() > 1e-3 for one in output.irreps)


@pytest.mark.parametrize("matrix", [rotation(3), reflection(3)], ids=["turned", "mirrored"])
def test_the_code_stays_and_the_irreps_turn_with_the_molecule(config, matrix):
    router = network(config)
    before = router(cloud())
    irreps = tuple(one @ wigner(matrix, level).T for level, one in enumerate(before.irreps, 1))
    # e3nn keeps the coefficients of its tensor product in float32
    exact = 1e-5 if config.messages == "e3nn" else 1e-8
    assert_same(router(turned(cloud(), matrix)), RouterOutput(before.code, irreps), exact)


def test_a_vector_of_the_irreps_is_turned_as_a_point_is():
    router, matrix = network(), rotation(4)
    after = router(turned(cloud(), matrix)).irreps[0]
    torch.testing.assert_close(after, router(cloud()).irreps[0] @ matrix.T, rtol=0, atol=1e-8)


def test_does_not_change_when_the_molecule_is_shifted(config):
    router, shift = network(config), torch.tensor([30.0, -20.0, 10.0])
    assert_same(router(replace(cloud(), points=cloud().points + shift)), router(cloud()))


def test_does_not_change_when_the_points_are_relabelled(config):
    router = network(config)
    assert_same(router(shuffled(cloud())), router(cloud()))


def test_several_proteins_in_one_cloud_equal_one_by_one(config):
    router = network(config)
    clouds = [cloud(), ellipsoid((6.0, 6.0, 6.0), 40), ellipsoid((9.0, 11.0, 8.0), 90)]
    alone = [router(one) for one in clouds]
    irreps = zip(*(one.irreps for one in alone), strict=True)
    expected = RouterOutput(torch.cat([one.code for one in alone]), tuple(map(torch.cat, irreps)))
    assert_same(router(collated(clouds)), expected)


@pytest.mark.parametrize("variant", ["plain", "e3nn", "exact radial network"])
def test_all_forms_of_the_messages_give_the_same_code(variant):
    if variant == "e3nn":
        pytest.importorskip("e3nn")
    other = network(VARIANTS[variant])
    other.load_state_dict(network().state_dict())
    exact = {"plain": 1e-11, "e3nn": 1e-5, "exact radial network": 1e-3}[variant]
    assert_same(other(cloud()), network()(cloud()), exact)


def test_a_pair_that_enters_the_window_makes_no_jump():
    router, before = network(), cloud()
    absent = torch.tensor([[0, 1], [0, 1]]) + torch.tensor([[0], [75]])
    for distance, tolerance in ((9.0, 1e-12), (9.0 - 1e-4, 1e-6)):
        pairs = torch.cat((before.pairs, absent), dim=1)
        distances = torch.cat((before.distances, torch.full((2,), distance).double()))
        order = pairs[0].argsort(stable=True)
        more = replace(before, pairs=pairs[:, order], distances=distances[order])
        assert_same(router(more), router(before), tolerance)


def same_chemistry(one: RouterCloud) -> RouterCloud:
    """Let all points have the same residues at the same distances."""
    return replace(
        one,
        residue_types=torch.zeros_like(one.residue_types),
        residue_distances=torch.full_like(one.residue_distances, 5.0),
    )


def test_tells_chemistries_on_the_same_shape_apart():
    router, one = network(), same_chemistry(cloud())
    other = replace(one, residue_types=one.residue_types + 1)
    assert (router(one).code - router(other).code).norm() > 1e-2


def test_without_normals_a_centrosymmetric_cloud_has_no_vector():
    half = same_chemistry(ellipsoid((7.0, 9.0, 13.0), 60))
    both = torch.cat((half.points, -half.points))
    apart = torch.cdist(both, both).fill_diagonal_(torch.inf)
    pairs = (apart < 9).nonzero().T
    doubled = {
        field.name: torch.cat([getattr(half, field.name)] * 2)
        for field in dataclasses.fields(half)
        if field.name not in ("points", "proteins", "pairs", "distances")
    }
    whole = RouterCloud(
        points=both, pairs=pairs, distances=apart[pairs[0], pairs[1]], proteins=1, **doubled
    )
    vectors, tensors = network(replace(SMALL, normals=False))(whole).irreps
    torch.testing.assert_close(vectors, torch.zeros_like(vectors), rtol=0, atol=1e-10)
    assert tensors.abs().max() > 1e-3


def test_a_cloud_without_pairs_has_a_code():
    one = ellipsoid((7.0, 9.0, 13.0), 5)
    alone = replace(one, pairs=one.pairs[:, :0], distances=one.distances[:0])
    output = network()(alone)
    assert torch.isfinite(output.code).all()
    assert output.code.any()


def test_every_weight_learns(config):
    router = network(config)
    output = router(cloud())
    (output.code.sum() + sum(one.square().sum() for one in output.irreps)).backward()
    unmoved = [
        name
        for name, parameter in router.named_parameters()
        if parameter.grad is None or (parameter.numel() and not parameter.grad.any())
    ]
    assert unmoved == []


def test_the_derivative_by_a_weight_equals_a_difference():
    router = network()
    weight = router.layers[0].radial.second.weight
    (slope,) = torch.autograd.grad(router(cloud()).code.sin().sum(), weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight += step * direction
            values.append(router(cloud()).code.sin().sum())
    difference = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close((slope * direction).sum(), difference, rtol=1e-6, atol=1e-8)


def test_learns_to_tell_a_long_shape_from_a_round_one_of_the_same_chemistry():
    router = QMPNN(SMALL, torch.Generator().manual_seed(0))
    shapes = [((9.0, 9.0, 9.0), 0.0), ((6.0, 6.0, 20.0), 1.0)]

    def batch(seeds: range) -> tuple[RouterCloud, torch.Tensor]:
        clouds = [same_chemistry(ellipsoid(axes, 100, s)) for s in seeds for axes, _ in shapes]
        labels = torch.tensor([label for _ in seeds for _, label in shapes])
        return collated(clouds).to(dtype=torch.float32), labels

    def loss(seeds: range) -> torch.Tensor:
        given, labels = batch(seeds)
        return torch.nn.functional.binary_cross_entropy_with_logits(
            router(given).code[:, 0], labels
        )

    optimiser = torch.optim.Adam(router.parameters(), lr=0.01)
    for _ in range(30):
        optimiser.zero_grad()
        loss(range(3)).backward()
        optimiser.step()
    with torch.no_grad():
        assert loss(range(10, 14)) < 0.1


def test_a_real_protein_may_be_turned_and_shifted():
    # in single precision, from the atoms on
    villin = load_structure(bundled.villin()[0])
    router, rules = QMPNN(SMALL, torch.Generator().manual_seed(0)), CloudConfig()
    positions = villin.positions.double() @ rotation(3).T + 5
    moved = replace(villin, positions=positions.to(villin.positions.dtype))
    before, after = (router_cloud(one, rules).to(dtype=torch.float32) for one in (villin, moved))
    assert_same(RouterOutput(router(after).code), RouterOutput(router(before).code), 1e-4)
    vectors = router(before).irreps[0] @ rotation(3).T.float()
    torch.testing.assert_close(router(after).irreps[0], vectors, rtol=0, atol=1e-4)


def test_bfloat16_does_not_touch_it():
    router, one = QMPNN(SMALL, torch.Generator().manual_seed(0)), cloud().to(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = router(one)
    assert_same(reduced, router(one), 0.0)


def test_the_same_generator_gives_the_same_network():
    first, second = (QMPNN(SMALL, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    other = QMPNN(SMALL, torch.Generator().manual_seed(6))
    assert (other.first.weights[0] != first.first.weights[0]).any()


def test_channels_as_a_list_from_json_equal_a_tuple():
    assert QMPNNConfig(channels=[32, 16]) == QMPNNConfig(channels=(32, 16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": (32,)}, "degrees 0 and 1"),
        ({"channels": (32, 12)}, "multiples of 8"),
        ({"layers": 0}, "layers of Q-MPNN"),
        ({"code": 0}, "code of Q-MPNN"),
        ({"readout": 0}, "readout of Q-MPNN"),
    ],
)
def test_refuses_what_cannot_be_built(changes, words):
    with pytest.raises(UsageError, match=words):
        QMPNNConfig(**changes)


def test_a_large_protein_is_read_part_by_part_to_the_same_code(monkeypatch):
    cloud = router_cloud(load_structure(bundled.villin()[0]), CloudConfig(neighbours=6))
    reader = network()
    with torch.no_grad():
        whole = reader(cloud)
        monkeypatch.setattr(qmpnn, "AT_ONCE", 40)
        parts = reader(cloud)
    torch.testing.assert_close(parts.code, whole.code)
    torch.testing.assert_close(parts.irreps, whole.irreps)
