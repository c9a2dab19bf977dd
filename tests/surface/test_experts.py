import math

import pytest
import torch
from tests.nn.turning import reflection, rotation
from tests.surface.backbones.shapes import ellipsoid, turned
from tests.surface.mixtures import ROUTER

from undula.errors import UsageError
from undula.nn.implicit import ImplicitConfig
from undula.nn.radial_sums import KNOTS
from undula.surface.atoms import CHANNELS
from undula.surface.experts import (
    ContractionInputs,
    ExpertConfig,
    FeatureExpert,
    LocalInputs,
    bumps,
)
from undula.surface.first_frame import REACH, LocalConfig
from undula.surface.qmpnn import QMPNN


@pytest.fixture
def expert(generator):
    return FeatureExpert(6, 3, 2, ExpertConfig(width=8, dropout=0.3), generator)


def test_a_fresh_expert_answers_zero(expert, generator):
    answer = expert(
        torch.randn(20, 6, generator=generator), torch.randn(20, 3, generator=generator)
    )
    assert answer.shape == (20, 2)
    assert not answer.any()


def test_a_fresh_expert_can_learn_in_all_its_weights_after_one_step(expert, generator):
    features, condition = (torch.randn(20, size, generator=generator) for size in (6, 3))
    with torch.no_grad():
        expert.last.weight.normal_(generator=generator)
    expert(features, condition).square().sum().backward()
    for name, parameter in expert.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_dropout_is_for_training_alone(expert, generator):
    with torch.no_grad():
        expert.last.weight.normal_(generator=generator)
    inputs = torch.randn(20, 6, generator=generator), torch.randn(20, 3, generator=generator)
    assert not torch.equal(expert(*inputs), expert(*inputs))
    expert.eval()
    assert torch.equal(expert(*inputs), expert(*inputs))


def test_a_condition_of_no_numbers_is_possible(generator):
    expert = FeatureExpert(6, 0, 1, ExpertConfig(width=8), generator)
    assert expert(torch.zeros(4, 6), torch.zeros(4, 0)).shape == (4, 1)


def test_the_bumps_are_gaussians_of_the_distance_to_the_first_frame():
    distance = torch.tensor([-REACH, 0.3, REACH])
    found = bumps(distance)
    assert found.shape == (3, 9)
    assert float(found[0, 0]) == float(found[2, 7]) == 1.0
    width = 0.75 * 2 * REACH / 7
    expected = math.exp(-((0.3 - REACH / 7) ** 2) / (2 * width**2))
    assert float(found[1, 4]) == pytest.approx(expected)
    torch.testing.assert_close(found[:, 8], distance / REACH)


def test_the_local_features_average_the_channels_over_the_atoms_around():
    config = LocalConfig(blurs=(1.0, 2.0))
    inputs = LocalInputs(config)
    blurs, sums = torch.tensor([[0.5, 0.5]]), torch.zeros(1, KNOTS, len(CHANNELS))
    sums[0, 2] = torch.tensor([3.0, 6.0, 0.0, 0.0, 0.0, 0.0])  # three atoms of mean depth 2
    sums[0, 8, 0] = 1.0  # one of depth 0 farther away
    found = inputs(torch.cat([blurs, sums.flatten(1)], dim=1), torch.zeros(1))[0].detach()
    assert found.shape == (inputs.size,)
    assert found[:2].tolist() == [0.0, 0.0]
    near, far = (found[2 + 5 * filtered] for filtered in (0, 1))
    weights = [[math.exp(-1 / 1.5), math.exp(-7 / 1.5)], [1.0, math.exp(-4 / 3)]]
    counts = [3 * one + other for one, other in weights]
    expected = [6 * one / count for (one, _), count in zip(weights, counts, strict=True)]
    assert [float(near), float(far)] == pytest.approx(expected)
    assert found[12:14].tolist() == pytest.approx([math.log1p(count) / 2 for count in counts])


def test_a_blur_does_not_lift_a_plane_but_what_sticks_out():
    config = LocalConfig(blurs=(0.7, 1.0, 2.0))
    inputs = LocalInputs(config)
    distance = torch.linspace(-1.4, 1.4, 15)
    plane = torch.special.ndtr(-distance[:, None] / inputs.widths)
    sums = torch.zeros(15, KNOTS * len(CHANNELS))
    lifts = inputs.lifts(torch.cat([plane, sums], dim=1), distance)
    torch.testing.assert_close(lifts, torch.zeros(15, 3), rtol=0, atol=1e-5)
    bulge = inputs.lifts(torch.cat([0.8 * plane, sums], dim=1), distance)
    assert (bulge > 0).all()


def test_where_no_atom_is_near_the_local_features_are_finite():
    config = LocalConfig()
    found = LocalInputs(config)(torch.zeros(3, config.size), torch.full((3,), REACH))
    assert torch.isfinite(found).all()
    assert not found[:, 6 : 6 + 2 * len(CHANNELS)].any()


@pytest.mark.parametrize("matrix", [rotation(3), reflection(4)], ids=["turned", "mirrored"])
def test_a_contraction_stays_when_cloud_and_points_turn_together(matrix, generator):
    router = QMPNN(ROUTER, generator).double()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    inputs = ContractionInputs(ROUTER.channels[1:], 5, generator).double()
    cloud = ellipsoid((7.0, 9.0, 13.0))
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    distance = torch.randn(50, generator=generator, dtype=torch.float64)
    owner = torch.zeros(50, dtype=torch.long)
    with torch.no_grad():
        before = inputs(points, distance, router(cloud).irreps, owner)
        irreps = router(turned(cloud, matrix)).irreps
        after = inputs(points @ matrix.T, distance, irreps, owner)
        unturned = inputs(points @ matrix.T, distance, router(cloud).irreps, owner)
    assert before.shape == (50, inputs.size)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-8)
    assert (unturned - before)[:, :10].abs().max() > 0.1


def test_a_contraction_of_a_vector_is_its_product_with_the_point(generator):
    inputs = ContractionInputs([1], 1, generator)
    way = torch.tensor([[[0.0, 3.0, 4.0]]])
    points = torch.randn(10, 3, generator=generator)
    found = inputs(points, torch.zeros(10), [way], torch.zeros(10, dtype=torch.long))[:, 0]
    along = points @ way[0, 0]
    ratio = found / along
    torch.testing.assert_close(ratio, ratio[:1].expand(10))


def test_several_proteins_are_contracted_each_with_its_own_points(generator):
    inputs = ContractionInputs([4, 3], 2, generator)
    irreps = [torch.randn(2, 4, 3, generator=generator), torch.randn(2, 3, 5, generator=generator)]
    points, distance = torch.randn(9, 3, generator=generator), torch.zeros(9)
    owner = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0])
    together = inputs(points, distance, irreps, owner)
    for protein in (0, 1):
        mine = owner == protein
        alone = inputs(
            points[mine],
            distance[mine],
            [one[protein : protein + 1] for one in irreps],
            torch.zeros(int(mine.sum()), dtype=torch.long),
        )
        torch.testing.assert_close(together[mine], alone)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kind": "paper"}, r"experts\.network"),
        ({"network": ImplicitConfig()}, r"experts\.network"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"channels": 0}, "channels"),
    ],
)
def test_refuses_experts_that_cannot_be_meant(words, message):
    with pytest.raises(UsageError, match=message):
        ExpertConfig(**words)
