import math

import pytest
import torch

from undula.errors import InputError, UsageError
from undula.geometry.lattice import Lattice


def covering(low, high, spacing, **options):
    ends = (torch.tensor(end, dtype=torch.float64) for end in (low, high))
    return Lattice.covering(*ends, spacing, **options)


def test_covers_the_box_with_less_than_one_cell_to_spare():
    box = torch.tensor([[-1.3, 0.2, 5.0], [2.2, 0.9, 9.1]], dtype=torch.float64)
    points = Lattice.covering(*box, 0.7).points()
    spare = torch.stack([box[0] - points.amin(dim=0), points.amax(dim=0) - box[1]])
    assert ((spare > -1e-9) & (spare < 0.7 + 1e-9)).all()


def test_lattices_of_two_boxes_share_their_nodes():
    for spacing in (0.7, 1.0):
        a = covering((-3.3, -2.0, 0.1), (4.0, 3.0, 2.0), spacing)
        b = covering((-1.9, -7.0, 0.6), (9.0, 1.0, 5.0), spacing)
        steps = (a.origin - b.origin) / spacing
        torch.testing.assert_close(steps, steps.round(), atol=1e-9, rtol=0)


def test_points_in_float64_are_exact_to_float64():
    lattice = covering((0.0, 0.0, 0.0), (70.0, 7.0, 7.0), 0.7)
    last = lattice.points()[-1]
    expected = torch.tensor([70.0, 7.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(last, expected, atol=1e-12, rtol=0)


def test_points_are_in_the_order_of_the_values():
    lattice = covering((0.0, 0.0, 0.0), (1.0, 2.0, 3.0), 1.0)
    grid = lattice.points().reshape(*lattice.shape, 3)
    torch.testing.assert_close(grid[1, 2, 3], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    index = torch.tensor([[1, 2, 3], [0, 0, 1]])
    torch.testing.assert_close(lattice.points_of(index), grid[tuple(index.T)])
    assert lattice.nodes == len(lattice.points())


def test_interpolation_is_exact_for_products_of_linear_functions():
    lattice = covering((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0), 0.5)

    def field(p):
        return 1 + 2 * p[:, 0] - p[:, 1] * p[:, 2] + p.prod(dim=1)

    points = 4 * torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).double() - 2
    values = field(lattice.points()).reshape(lattice.shape)
    torch.testing.assert_close(lattice.interpolate(values, points), field(points))


def test_interpolation_returns_the_values_at_the_nodes_and_of_the_border_beyond():
    lattice = covering((0.0, 0.0, 0.0), (2.0, 3.0, 4.0), 1.0)
    values = torch.rand(lattice.shape, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(lattice.interpolate(values, lattice.points()), values.reshape(-1))
    beyond = torch.tensor([[-5.0, 1.0, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(lattice.interpolate(values, beyond), values[0, 1, 4][None])


def test_interpolation_has_the_gradient_of_finite_differences():
    lattice = covering((0.0, 0.0, 0.0), (3.0, 3.0, 3.0), 1.0)
    generator = torch.Generator().manual_seed(2)
    values = torch.rand(lattice.shape, generator=generator).double().requires_grad_()
    points = (0.1 + 2.8 * torch.rand(5, 3, generator=generator).double()).requires_grad_()
    assert torch.autograd.gradcheck(lattice.interpolate, (values, points))


def test_keeps_the_precision_of_the_box():
    low, high = torch.zeros(3), torch.ones(3)
    assert Lattice.covering(low, high, 0.5).points().dtype == torch.float32
    assert Lattice.covering(low, high, 0.5).to(high.double()).points().dtype == torch.float64


def test_a_box_without_extent_still_has_cells():
    assert covering((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1.0).shape == (2, 2, 2)


@pytest.mark.parametrize("high", [(500.0, 500.0, 500.0), (1e7, 1.0, 1.0)])
def test_too_many_nodes_are_refused_with_a_spacing_that_fits(high):
    with pytest.raises(InputError, match="fits") as refusal:
        covering((0.0, 0.0, 0.0), high, 0.1, limit=1_000_000)
    spacing = float(str(refusal.value).split("a spacing of ")[-1].split()[0])
    assert 0.1e6 < covering((0.0, 0.0, 0.0), high, spacing, limit=1_000_000).nodes <= 1e6


def test_boxes_and_spacings_that_cannot_be_meant_are_refused():
    with pytest.raises(InputError, match="cover"):
        covering((0.0, 0.0, 0.0), (1.0, math.nan, 1.0), 1.0)
    with pytest.raises(InputError, match="cover"):
        covering((0.0, 0.0, 0.0), (1.0, -1.0, 1.0), 1.0)
    with pytest.raises(UsageError, match="positive"):
        covering((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0)
    with pytest.raises(InputError, match="two nodes"):
        Lattice(origin=torch.zeros(3), spacing=1.0, shape=(1, 4, 4))
