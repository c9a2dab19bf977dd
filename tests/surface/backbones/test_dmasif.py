import torch
from tests.surface.backbones.shapes import FEATURES, Chemistry, cloud, ellipsoid, rotation, turned
from torch.nn import functional

from undula.surface.backbones.dmasif import (
    CURVATURE_SCALES,
    DMaSIF,
    DMaSIFConfig,
    ProteinNorm,
    curvatures,
    steered_frames,
)
from undula.surface.clouds import RouterCloud

SCALE = CURVATURE_SCALES.index(3.0)


def with_itself(shape: RouterCloud) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs of a cloud and each point's with itself, and their distances."""
    own = torch.arange(len(shape.points)).expand(2, -1)
    return (
        torch.cat((shape.pairs, own), dim=1),
        torch.cat((shape.distances, shape.distances.new_zeros(own.shape[1]))),
    )


def estimated(shape: RouterCloud) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and Gaussian curvature at the scale of 3 Å."""
    found = curvatures(shape.points, shape.normals, *with_itself(shape))
    assert found.shape == (len(shape.points), 2 * len(CURVATURE_SCALES))
    return found[:, 2 * SCALE], found[:, 2 * SCALE + 1]


def test_a_sphere_is_curved_alike_in_both_directions():
    radius = 12.0
    mean, gaussian = estimated(ellipsoid((radius, radius, radius), 700))
    torch.testing.assert_close(mean.median().item(), 2 / radius, rtol=0.05, atol=0)
    torch.testing.assert_close(gaussian.median().item(), 1 / radius**2, rtol=0.1, atol=0)


def test_a_cylinder_is_curved_in_one_direction_and_a_plane_in_none():
    draw = torch.Generator().manual_seed(0)
    across, along = torch.rand(2, 900, generator=draw, dtype=torch.float64)
    angle, height = 2 * torch.pi * across, 40 * along
    normals = torch.stack((angle.cos(), angle.sin(), 0 * angle), dim=1)
    points = 8 * normals + torch.stack((0 * height, 0 * height, height), dim=1)
    inner = (height - 20).abs() < 10
    mean, gaussian = estimated(cloud(points, normals, torch.zeros(4, 3, dtype=torch.float64)))
    torch.testing.assert_close(mean[inner].median().item(), 1 / 8, rtol=0.1, atol=0)
    assert gaussian[inner].abs().median() < 0.1 / 64

    flat = torch.stack((30 * across, 30 * along, 0 * along), dim=1)
    up = functional.normalize(torch.ones_like(flat) * torch.tensor([0.0, 0.0, 1.0]), dim=1)
    mean, gaussian = estimated(cloud(flat, up, torch.zeros(4, 3, dtype=torch.float64)))
    assert mean.abs().max() < 1e-12
    assert gaussian.abs().max() < 1e-12


def test_a_hollow_is_curved_the_other_way():
    ball = ellipsoid((12, 12, 12), 300)
    hollow = cloud(ball.points, -ball.normals, torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(estimated(hollow)[0], -estimated(ball)[0])
    torch.testing.assert_close(estimated(hollow)[1], estimated(ball)[1])


def test_a_lone_point_has_no_curvature_and_no_tangents():
    shape = ellipsoid((3, 3, 3), 1)
    pairs, distances = with_itself(shape)
    assert not curvatures(shape.points, shape.normals, pairs, distances).any()
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    frames = steered_frames(shape.normals, nothing, one, one[:, None], pairs)
    assert torch.equal(frames[0, 0], shape.normals[0])
    assert not frames[0, 1:].any()


def test_frames_are_right_handed_and_point_towards_a_high_score():
    shape = ellipsoid((14, 10, 8))
    apart = shape.points[shape.pairs[1]] - shape.points[shape.pairs[0]]
    high = torch.zeros(len(shape.points), 1, dtype=torch.float64)
    there = int(shape.pairs[1, 0])
    high[there] = 1
    frames = steered_frames(
        shape.normals, apart, torch.ones_like(shape.distances), high, shape.pairs
    )
    near = shape.pairs[0, shape.pairs[1] == there]
    torch.testing.assert_close(
        frames[near] @ frames[near].mT, torch.eye(3).double().expand(len(near), 3, 3)
    )
    torch.testing.assert_close(torch.linalg.det(frames[near]), torch.ones(len(near)).double())
    towards = shape.points[there] - shape.points[near]
    assert ((frames[near, 1] * towards).sum(dim=1) > 0).all()
    torch.testing.assert_close(
        (frames[near, 2] * towards).sum(dim=1), torch.zeros(len(near)).double()
    )


def test_a_mirror_image_has_another_code():
    router = DMaSIF(DMaSIFConfig(), Chemistry(), FEATURES, torch.Generator().manual_seed(0))
    router.double()
    shape = ellipsoid((14, 10, 8))
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    code = router(shape).code
    torch.testing.assert_close(router(turned(shape, rotation(1))).code, code)
    assert (router(turned(shape, mirror)).code - code).abs().max() > 1e-4


def test_normalises_each_protein_by_itself_as_torch_does_one():
    draw = torch.Generator().manual_seed(0)
    values = 3 + 2 * torch.randn(30, 16, generator=draw, dtype=torch.float64)
    owner = torch.arange(2).repeat_interleave(15)
    found = ProteinNorm(16).double()(values, owner, 2)
    for part, expected in zip(found.split(15), values.split(15), strict=True):
        torch.testing.assert_close(part.T[None], functional.group_norm(expected.T[None], 4))
