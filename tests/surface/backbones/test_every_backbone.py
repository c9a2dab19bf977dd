"""What holds for each of the five, whatever it is made of."""

import dataclasses

import pytest
import torch
from tests.surface.backbones.shapes import (
    FEATURES,
    Chemistry,
    ellipsoid,
    rotation,
    shuffled,
    turned,
)
from torch import nn
from torch.nn import functional

from undula.errors import UsageError
from undula.surface.backbones.dmasif import DMaSIF, DMaSIFConfig
from undula.surface.backbones.point_transformer import PointTransformer, PointTransformerConfig
from undula.surface.backbones.pointcnn import PointCNN, PointCNNConfig
from undula.surface.backbones.pointmlp import PointMLP, PointMLPConfig
from undula.surface.backbones.pointnet2 import PointNet2, PointNet2Config
from undula.surface.clouds import RouterCloud, collated
from undula.surface.geoan import GeoAN, GeoANConfig
from undula.surface.router import Router

BACKBONES = {
    "PointNet++": (PointNet2, PointNet2Config),
    "PointCNN": (PointCNN, PointCNNConfig),
    "Point Transformer": (PointTransformer, PointTransformerConfig),
    "PointMLP": (PointMLP, PointMLPConfig),
    "dMaSIF": (DMaSIF, DMaSIFConfig),
}
# At the published width, beside the chemistry of 32 numbers.
PARAMETERS = {
    "PointNet++": 1_475_872,
    "PointCNN": 596_708,
    "Point Transformer": 3_131_552,
    "PointMLP": 13_256_032,
    "dMaSIF": 12_289,
}
NARROW = 0.125


@pytest.fixture(params=BACKBONES)
def name(request) -> str:
    return request.param


def made(name: str, seed: int = 0) -> nn.Module:
    backbone, config = BACKBONES[name]
    width = 1.0 if name == "dMaSIF" else NARROW
    draw = torch.Generator().manual_seed(seed)
    return backbone(config(width=width), Chemistry(), FEATURES, draw)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def router(name) -> nn.Module:
    return made(name).double()


def test_is_a_router(router):
    assert isinstance(router, Router)
    output = router(ellipsoid((9, 8, 7)))
    assert output.code.shape == (1, 32)
    assert output.irreps == ()


def test_the_order_of_the_points_changes_nothing(router):
    shape = ellipsoid((14, 10, 8))
    torch.testing.assert_close(router(shuffled(shape)).code, router(shape).code, rtol=0, atol=1e-9)


@pytest.mark.parametrize("training", [False, True])
def test_several_proteins_equal_one_by_one(router, training):
    router.train(training)
    shapes = [ellipsoid((14, 10, 8)), ellipsoid((9, 9, 9), 70), ellipsoid((4, 3, 3), 12)]
    alone = torch.cat([router(shape).code for shape in shapes])
    torch.testing.assert_close(router(collated(shapes)).code, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_very_small_clouds_have_a_code_and_a_gradient(router, count):
    code = router(ellipsoid((3, 3, 3), count)).code
    code.sum().backward()
    assert code.isfinite().all()
    assert all(one.grad.isfinite().all() for one in router.parameters())


def balls_and_rods(seed: int) -> RouterCloud:
    """Draw two balls, then two rods."""
    axes = ((10, 10, 10), (10, 10, 10), (18, 7, 7), (18, 7, 7))
    return collated([ellipsoid(half, 60, 4 * seed + place) for place, half in enumerate(axes)])


def test_learns_in_seconds_to_tell_balls_from_rods_it_has_not_seen(name):
    router = made(name).double()
    optimiser = torch.optim.Adam(router.parameters(), lr=3e-3)
    for step in range(36):
        balls, rods = router(balls_and_rods(step)).code[:, 0].split(2)
        loss = functional.softplus(rods - balls).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    balls, rods = router(balls_and_rods(1000)).code[:, 0].split(2)
    assert balls.min() > rods.max() + 1


def test_the_gradient_reaches_every_parameter(router):
    code = router(ellipsoid((20, 18, 16), 600)).code
    code.square().sum().backward()
    assert not [key for key, one in router.named_parameters() if not one.grad.any()]


def test_takes_its_chemistry_from_geoan_which_learns_with_it(name):
    backbone, config = BACKBONES[name]
    draw = torch.Generator().manual_seed(0)
    chemistry = GeoAN(GeoANConfig(size=16), draw)
    router = backbone(config(width=NARROW), chemistry, 16, draw).double()
    router(ellipsoid((14, 10, 8))).code.sum().backward()
    assert all(one.grad.any() for one in chemistry.parameters())


def test_shifts_change_only_what_knows_the_centre(router, name):
    shape = ellipsoid((14, 10, 8))
    there = dataclasses.replace(shape, points=shape.points + 5)
    same = torch.allclose(router(there).code, router(shape).code, rtol=0, atol=1e-9)
    assert same == (name == "dMaSIF")


def test_only_dmasif_does_not_change_when_the_protein_is_turned(router, name):
    shape = ellipsoid((14, 10, 8))
    difference = (router(turned(shape, rotation())).code - router(shape).code).abs().max()
    assert (difference < 1e-9) == (name == "dMaSIF")


def test_has_as_many_parameters_as_it_says(name):
    backbone, config = BACKBONES[name]
    router = backbone(config(), nn.Identity(), 32, torch.Generator())
    assert sum(one.numel() for one in router.parameters()) == PARAMETERS[name]


def test_the_same_generator_gives_the_same_weights_and_torch_draws_nothing(name):
    before = torch.get_rng_state()
    torch.testing.assert_close(made(name).state_dict(), made(name).state_dict(), rtol=0, atol=0)
    other = made(name, seed=1).state_dict()
    assert any((other[key] != one).any() for key, one in made(name).state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def test_two_threads_give_the_same_bytes_each_time(name, two_threads):
    shape = ellipsoid((20, 18, 16), 500).to(dtype=torch.float32)
    router = made(name)
    found = set()
    for _ in range(3):
        router.zero_grad()
        code = router(shape).code
        code.square().sum().backward()
        gradients = [one.grad.flatten() for one in router.parameters()]
        found.add(torch.cat([code.detach().flatten(), *gradients]).numpy().tobytes())
    assert len(found) == 1


def test_works_in_single_and_in_mixed_precision(name):
    shape = ellipsoid((14, 10, 8))
    expected = made(name).double()(shape).code
    router, shape = made(name), shape.to(dtype=torch.float32)
    code = router(shape).code
    assert code.dtype == torch.float32
    torch.testing.assert_close(code.double(), expected, rtol=0, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        code = router(shape).code
    torch.testing.assert_close(code.double(), expected, rtol=0, atol=0.05)
    code.sum().backward()


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (DMaSIFConfig, {"width": 0.0}, "width of a router"),
        (PointCNNConfig, {"width": float("nan")}, "width of a router"),
        (PointMLPConfig, {"code": 0}, "code of a router"),
        (PointMLPConfig, {"neighbours": 1}, "neighbours of a group"),
        (PointTransformerConfig, {"neighbours": 0}, "neighbours of attention"),
        (PointNet2Config, {"centres": (0, 4)}, "centres of PointNet"),
        (PointNet2Config, {"centres": (4, 8)}, "cannot grow"),
        (PointNet2Config, {"radii": (5.0, float("nan"))}, "radii of PointNet"),
        (DMaSIFConfig, {"layers": 0}, "layers of dMaSIF"),
        (DMaSIFConfig, {"radius": 0.0}, "radius of dMaSIF"),
    ],
)
def test_refuses_what_cannot_be_built(config, options, words):
    with pytest.raises(UsageError, match=words):
        config(**options)
