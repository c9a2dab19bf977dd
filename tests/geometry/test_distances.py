import itertools

import pytest
import torch

from undula.geometry.distances import is_reduced, minimum_image, quasi_geodesic

DODECAHEDRON = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [1.5, 1.5, 4.5**0.5]]).double()
OCTAHEDRON = torch.tensor([[3.0, 0, 0], [1.0, 8**0.5, 0], [-1.0, 2**0.5, 6**0.5]]).double()
BOXES = {
    "cube": 3 * torch.eye(3).double(),
    "rectangular": torch.diag(torch.tensor([2.0, 3.0, 5.0])).double(),
    "dodecahedron": DODECAHEDRON,
    "octahedron": OCTAHEDRON,
}
PAIRS = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 2, 1, 9, 8, 7, 6]])


@pytest.fixture
def sphere():
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(10, 3, generator=generator).double(), dim=1)


def test_equals_the_closed_form_on_a_sphere(sphere):
    i, j = PAIRS
    theta = torch.acos((sphere[i] * sphere[j]).sum(dim=-1).clamp(-1, 1))
    expected = 2 * torch.sin(theta / 2) * (2 - torch.cos(theta))
    torch.testing.assert_close(quasi_geodesic(sphere, sphere, PAIRS), expected, atol=1e-7, rtol=0)


def test_is_straight_on_a_plane_and_three_times_that_across_a_crevice(sphere):
    up = torch.tensor([0.0, 0.0, 1.0]).double().expand(10, 3)
    i, j = pairs = torch.tensor([[0, 3, 4], [2, 9, 8]])
    straight = (sphere[i] - sphere[j]).norm(dim=1)
    torch.testing.assert_close(quasi_geodesic(sphere, up, pairs), straight)
    facing = up.clone()
    facing[j] = -up[j]
    torch.testing.assert_close(quasi_geodesic(sphere, facing, pairs), 3 * straight)


def test_is_symmetric_and_empty_without_pairs(sphere):
    normals = sphere.flip(0)
    torch.testing.assert_close(
        quasi_geodesic(sphere, normals, PAIRS), quasi_geodesic(sphere, normals, PAIRS.flip(0))
    )
    assert quasi_geodesic(sphere, normals, PAIRS[:, :0]).shape == (0,)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_no_image_is_shorter_than_the_minimum_image(box):
    generator = torch.Generator().manual_seed(1)
    far = 12 * torch.randn(500, 3, generator=generator).double()
    image = minimum_image(far, box)
    steps = (far - image) @ torch.linalg.inv(box)
    torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)
    around = torch.tensor(list(itertools.product(range(-3, 4), repeat=3))).double() @ box
    shortest = (image[:, None] + around).norm(dim=-1).amin(dim=1)
    torch.testing.assert_close(image.norm(dim=1), shortest)


def test_frames_have_boxes_of_their_own():
    boxes = torch.stack([BOXES["cube"], DODECAHEDRON, OCTAHEDRON])
    generator = torch.Generator().manual_seed(2)
    far = 9 * torch.randn(3, 20, 3, generator=generator).double()
    together = minimum_image(far, boxes)
    for frame in range(3):
        torch.testing.assert_close(together[frame], minimum_image(far[frame], boxes[frame]))


def test_short_displacements_stay_as_they_are():
    short = torch.tensor([[0.3, -0.2, 0.9], [0.0, 0.0, 0.0]]).double()
    for box in BOXES.values():
        torch.testing.assert_close(minimum_image(short, box), short)


def test_knows_boxes_that_are_not_reduced():
    assert all(is_reduced(box) for box in BOXES.values())
    skewed = torch.tensor([[3.0, 0, 0], [2.5, 3.0, 0], [0, 0, 3.0]]).double()
    assert not is_reduced(skewed)
    assert not is_reduced(torch.stack([DODECAHEDRON, skewed]))
