import pytest
import torch

from undula.nn.harmonics import (
    paper_harmonics,
    paper_harmonics_and_jacobian,
    solid_harmonics,
    solid_harmonics_and_jacobian,
)

DEGREE = 5
SLICES = [slice(level**2, (level + 1) ** 2) for level in range(DEGREE + 1)]


@pytest.fixture
def points() -> torch.Tensor:
    return torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def rotation() -> torch.Tensor:
    matrix = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.linalg.qr(matrix)[0]


def test_degree_one_is_the_point_itself(points):
    torch.testing.assert_close(solid_harmonics(points, 1)[:, 1:], points, rtol=0, atol=0)


def test_degree_two_has_the_closed_form(points):
    x, y, z = points.unbind(1)
    root = 3**0.5
    expected = torch.stack(
        (
            root * x * z,
            root * x * y,
            y**2 - (x**2 + z**2) / 2,
            root * y * z,
            root / 2 * (z**2 - x**2),
        ),
        dim=1,
    )
    torch.testing.assert_close(solid_harmonics(points, 2)[:, 4:], expected)


@pytest.mark.parametrize("degree", [0, 1, 4, 8])
def test_equals_e3nn_channel_by_channel(points, degree):
    o3 = pytest.importorskip("e3nn.o3")
    expected = o3.spherical_harmonics(
        list(range(degree + 1)), points, normalize=False, normalization="norm"
    )
    torch.testing.assert_close(solid_harmonics(points, degree), expected, rtol=1e-10, atol=1e-9)


def test_has_length_one_on_the_unit_sphere_in_every_degree(points):
    values = solid_harmonics(torch.nn.functional.normalize(points, dim=1), DEGREE)
    for channels in SLICES:
        torch.testing.assert_close(values[:, channels].norm(dim=1), torch.ones(40).double())


def test_inner_products_do_not_change_when_both_points_are_turned(points, rotation):
    here, turned = solid_harmonics(points, DEGREE), solid_harmonics(points @ rotation.T, DEGREE)
    for channels in SLICES:
        before = here[:20, channels] @ here[20:, channels].T
        after = turned[:20, channels] @ turned[20:, channels].T
        torch.testing.assert_close(after, before)


def test_is_homogeneous_of_its_degree(points):
    values, scaled = solid_harmonics(points, DEGREE), solid_harmonics(2.5 * points, DEGREE)
    for level, channels in enumerate(SLICES):
        torch.testing.assert_close(scaled[:, channels], 2.5**level * values[:, channels])


def test_is_harmonic(points):
    def slopes(point: torch.Tensor) -> torch.Tensor:
        return solid_harmonics_and_jacobian(point[None], DEGREE)[1][0]

    second = torch.func.vmap(torch.func.jacfwd(slopes))(points)
    laplacian = second.diagonal(dim1=2, dim2=3).sum(dim=2)
    torch.testing.assert_close(laplacian, torch.zeros_like(laplacian), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "values_and_jacobian", [solid_harmonics_and_jacobian, paper_harmonics_and_jacobian]
)
@pytest.mark.parametrize("degree", [0, 1, DEGREE])
def test_the_jacobian_equals_autograd(points, values_and_jacobian, degree):
    values, jacobian = values_and_jacobian(points, degree)
    derived = torch.func.vmap(
        torch.func.jacrev(lambda point: values_and_jacobian(point[None], degree)[0][0])
    )(points)
    assert values.shape == (40, (degree + 1) ** 2)
    torch.testing.assert_close(jacobian, derived, rtol=1e-10, atol=1e-10)


def test_solid_harmonics_are_smooth_at_the_origin():
    origin = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    values, jacobian = solid_harmonics_and_jacobian(origin, DEGREE)
    assert values[0, 0] == 1
    assert not values[0, 1:].any()
    torch.testing.assert_close(jacobian[0, 1:4], torch.eye(3).double())
    (slope,) = torch.autograd.grad(jacobian.square().sum() + values.sum(), origin)
    torch.testing.assert_close(slope, torch.ones(1, 3).double())


def test_paper_harmonics_are_the_length_times_the_direction_harmonics(points):
    radius = points.norm(dim=1, keepdim=True)
    expected = radius * solid_harmonics(points / radius, DEGREE)
    torch.testing.assert_close(paper_harmonics(points, DEGREE), expected)


def test_paper_harmonics_at_the_origin_are_zero_with_only_the_slope_of_degree_one():
    origin = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    values, jacobian = paper_harmonics_and_jacobian(origin, 3)
    assert not values.any()
    torch.testing.assert_close(jacobian[0, 1:4], torch.eye(3).double())
    assert not jacobian[0, 0].any()
    assert not jacobian[0, 4:].any()
    (slope,) = torch.autograd.grad(values.sum(), origin)
    torch.testing.assert_close(slope, torch.ones(1, 3).double())


def test_paper_harmonics_of_degree_two_have_no_derivative_at_the_origin():
    near = 1e-6 * torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    _, jacobian = paper_harmonics_and_jacobian(near, 2)
    assert (jacobian[0, 4] - jacobian[1, 4]).norm() > 1


@pytest.mark.parametrize("degree", [3, 8])
def test_float32_is_close_to_float64(points, degree):
    unit = torch.nn.functional.normalize(points, dim=1)
    exact = solid_harmonics(unit, degree)
    single = solid_harmonics(unit.float(), degree)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=2e-5)


def test_no_points_give_no_rows():
    values, jacobian = solid_harmonics_and_jacobian(torch.zeros(0, 3), 2)
    assert values.shape == (0, 9)
    assert jacobian.shape == (0, 9, 3)


def test_can_be_differentiated_after_a_first_call_in_inference_mode():
    with torch.inference_mode():
        solid_harmonics(torch.rand(2, 3, dtype=torch.float16).double(), 7)
    points = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    solid_harmonics(points, 7).sum().backward()
    assert points.grad is not None


def test_refuses_a_negative_degree(points):
    with pytest.raises(ValueError, match="at least 0, not -1"):
        solid_harmonics(points, -1)
