import dataclasses
import time

import pytest
import torch

from undula.errors import UsageError
from undula.nn.grid import MARGIN, GridConfig, GridField

SMALL = GridConfig(resolutions=(3, 5), mixtures=3, condition=4)
VARIANTS = {
    "sphere": SMALL,
    "zero": dataclasses.replace(SMALL, zero_last=True),
    "one grid": dataclasses.replace(SMALL, resolutions=(4,)),
    "one cell": dataclasses.replace(SMALL, resolutions=(1,)),
    "one mixture": dataclasses.replace(SMALL, mixtures=1),
    "no condition": dataclasses.replace(SMALL, condition=0),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(config: GridConfig) -> GridField:
    """Make a float64 field in which no weight is zero."""
    field = GridField(config, generator()).double()
    noise = generator(1)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter += torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return field


def inputs(config: GridConfig, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw points inside and outside the cube, and conditions."""
    draw = generator(2)
    return (
        torch.randn(count, 3, generator=draw, dtype=torch.float64),
        torch.randn(count, config.condition, generator=draw, dtype=torch.float64),
    )


def centres(cells: int) -> torch.Tensor:
    """Return where the nodes of one axis are: the middles of the cells and of one beyond."""
    return ((torch.arange(cells + 2, dtype=torch.float64) - 0.5) * 2 / cells - 1) * (1 + MARGIN)


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request) -> GridConfig:
    return request.param


def test_the_gradient_equals_autograd(config):
    field = trained(config)
    points, condition = inputs(config)
    points.requires_grad_()
    value, gradient = field.value_and_gradient(points, condition)
    expected = field(points, condition)
    (derived,) = torch.autograd.grad(expected.sum(), points)
    assert (points.abs() > 1).any()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, derived, rtol=0, atol=1e-9)


def test_the_parameter_gradients_of_a_loss_on_the_gradient_equal_double_backward(config):
    field = trained(config)
    points, condition = inputs(config)

    def loss(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return value.abs().sum() + (gradient.norm(dim=1) - 1).square().sum()

    parameters = list(field.parameters())
    explicit = torch.autograd.grad(loss(*field.value_and_gradient(points, condition)), parameters)
    points.requires_grad_()
    value = field(points, condition)
    (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    double = torch.autograd.grad(loss(value, slope), parameters)
    for ours, theirs in zip(explicit, double, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True])
def test_passes_gradcheck_by_points_condition_and_grids(shared):
    field = trained(dataclasses.replace(SMALL, resolutions=(2,)))
    points, condition = inputs(field.config, count=3)
    points.requires_grad_()
    condition = (condition[0] if shared else condition).clone().requires_grad_()

    def of(points: torch.Tensor, condition: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        weights = {"table": table, "mixing": field.mixing, "bias": field.bias}
        return torch.func.functional_call(field, weights, (points, condition))

    assert torch.autograd.gradcheck(field.value_and_gradient, (points, condition))
    assert torch.autograd.gradcheck(of, (points, condition, field.table))


def test_value_and_gradient_are_continuous_across_the_cells_and_the_border():
    field = trained(dataclasses.replace(SMALL, resolutions=(5,)))
    borders = torch.cat((torch.linspace(-1, 1, 6).double()[1:-1] * (1 + MARGIN), torch.ones(1)))
    points, condition = inputs(SMALL, count=len(borders))
    for axis in range(3):
        below, above = points.clone(), points.clone()
        below[:, axis], above[:, axis] = borders - 1e-10, borders + 1e-10
        left, right = (field.value_and_gradient(side, condition) for side in (below, above))
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cells", [1, 2, 7])
def test_reproduces_a_linear_function_inside_the_cube(cells):
    field = GridField(GridConfig(resolutions=(cells,), zero_last=True), generator()).double()
    slope = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    nodes = torch.cartesian_prod(*[centres(cells)] * 3)
    with torch.no_grad():
        field.table[0] = nodes @ slope + 3
    points = 2 * torch.rand(50, 3, generator=generator(4), dtype=torch.float64) - 1
    value, gradient = field.value_and_gradient(points, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(value, points @ slope + 3)
    torch.testing.assert_close(gradient, slope.expand(50, 3))


def test_equal_numbers_at_all_nodes_give_that_number_everywhere():
    field = GridField(GridConfig(resolutions=(3, 8), zero_last=True), generator()).double()
    with torch.no_grad():
        field.table[0] = 1.5
    points = 100 * inputs(GridConfig())[0]
    value, gradient = field.value_and_gradient(points, torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(value, torch.full_like(value, 3.0))
    torch.testing.assert_close(gradient, torch.zeros_like(points), rtol=0, atol=1e-12)


def test_the_sum_of_two_tables_gives_the_sum_of_the_fields():
    field = trained(VARIANTS["zero"])
    points, condition = inputs(SMALL)
    with torch.no_grad():
        first = field.table.clone()
        second = torch.randn(first.shape, generator=generator(3), dtype=torch.float64)
        values = []
        for table in (first, second, first + second):
            field.table.copy_(table)
            values.append(field(points, condition))
    torch.testing.assert_close(values[0] + values[1], values[2])


def test_the_field_far_away_is_that_of_the_border():
    field = trained(VARIANTS["zero"])
    directions = torch.tensor([[1.0, 0.3, -0.2], [-1, 1, 0.1]], dtype=torch.float64)
    condition = torch.ones(4, dtype=torch.float64)
    far = directions.clone()
    far[directions.abs() == 1] *= 1e6
    farther = torch.where(far.abs() > 1, 10 * far, far)
    value, gradient = field.value_and_gradient(far, condition)
    torch.testing.assert_close(value, field(farther, condition))
    assert not gradient[far.abs() > 1].any()


def test_only_the_nodes_around_a_point_learn_from_it():
    field = GridField(GridConfig(resolutions=(8,), condition=2), generator())
    field(torch.zeros(1, 3) + 0.01, torch.ones(2)).sum().backward()
    assert (field.table.grad[0] != 0).sum() == 27
    torch.testing.assert_close(field.table.grad[0].sum(), torch.tensor(1.0))


def test_starts_as_a_sphere_under_any_condition():
    for radius in (0.5, 1.0, 2.0):
        config = dataclasses.replace(SMALL, geometric_radius=radius)
        field = GridField(config, generator())
        directions = torch.randn(200, 3, generator=generator(3))
        directions = torch.nn.functional.normalize(directions, dim=1)
        condition = torch.randn(4, generator=generator(4))
        value, gradient = field.value_and_gradient(radius * directions, condition)
        torch.testing.assert_close(value, torch.zeros(200), rtol=0, atol=1e-6)
        torch.testing.assert_close(gradient, directions, rtol=0, atol=0.006)
        assert field(0.9 * radius * directions, condition).max() < 0
        assert field(1.1 * radius * directions, condition).min() > 0
        assert (field(torch.zeros(1, 3), condition) < -0.9 * radius).all()


def test_a_field_that_starts_at_zero_is_exactly_zero_and_can_learn():
    field = GridField(VARIANTS["zero"], generator())
    points, condition = (tensor.float() for tensor in inputs(SMALL))
    value, gradient = field.value_and_gradient(points, condition)
    assert not value.any()
    assert not gradient.any()
    value.sum().backward()
    assert field.table.grad.any()


def test_a_shared_condition_equals_a_repeated_one(config):
    field = trained(config)
    points, condition = inputs(config)
    shared = field.value_and_gradient(points, condition[0])
    repeated = field.value_and_gradient(points, condition[:1].expand(len(points), -1))
    torch.testing.assert_close(shared, repeated, rtol=0, atol=1e-12)
    torch.testing.assert_close(field(points, condition[0]), shared[0])


def test_one_by_one_equals_the_batch(config):
    field = trained(config)
    points, condition = inputs(config, count=9)
    together = field(points, condition)
    one_by_one = [field(points[i : i + 1], condition[i : i + 1]) for i in range(len(points))]
    torch.testing.assert_close(torch.cat(one_by_one), together, rtol=0, atol=1e-12)


def test_no_points_give_no_values(config):
    field = trained(config)
    points, condition = inputs(config, count=0)
    for given in (condition, torch.ones(config.condition, dtype=torch.float64)):
        value, gradient = field.value_and_gradient(points, given)
        assert value.shape == (0,)
        assert gradient.shape == (0, 3)


def test_the_same_generator_gives_the_same_field():
    first, second = (GridField(SMALL, generator(5)).state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    other = GridField(SMALL, generator(6)).state_dict()
    assert (first["mixing"] != other["mixing"]).any()


def test_several_fields_can_be_evaluated_at_once():
    fields = [trained(SMALL), GridField(SMALL, generator(7)).double()]
    points, condition = inputs(SMALL)
    parameters, _ = torch.func.stack_module_state(fields)
    for given in (condition, condition[0]):
        together = torch.func.vmap(
            lambda weights, given=given: torch.func.functional_call(
                fields[0], weights, (points, given)
            )
        )(parameters)
        torch.testing.assert_close(together, torch.stack([f(points, given) for f in fields]))


def test_bfloat16_does_not_touch_it():
    field = trained(SMALL).float()
    points, condition = (tensor.float() for tensor in inputs(SMALL))
    exact = field.value_and_gradient(points, condition)
    with torch.autocast("cpu", torch.bfloat16):
        same = field.value_and_gradient(points, condition)
    torch.testing.assert_close(same, exact, rtol=0, atol=0)


def test_learns_a_sphere_off_the_centre_in_seconds():
    field = GridField(GridConfig(resolutions=(8, 16), zero_last=True), generator())
    optimiser = torch.optim.Adam(field.parameters(), lr=0.02)
    draw, centre, nothing = generator(8), torch.tensor([0.2, -0.1, 0.0]), torch.zeros(0)
    began = time.process_time()
    for _ in range(200):
        points = 2 * torch.rand(2048, 3, generator=draw) - 1
        distance = (points - centre).norm(dim=1) - 0.5
        loss = (field(points, nothing) - distance).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    points = 2 * torch.rand(2048, 3, generator=draw) - 1
    with torch.no_grad():
        error = (field(points, nothing) - ((points - centre).norm(dim=1) - 0.5)).abs().mean()
    assert error < 0.01
    assert time.process_time() - began < 20


def test_tells_two_times_apart_by_the_condition():
    field = GridField(GridConfig(resolutions=(8,), mixtures=2, condition=1), generator())
    optimiser = torch.optim.Adam(field.parameters(), lr=0.02)
    draw = generator(9)
    for _ in range(300):
        points = 2 * torch.rand(512, 3, generator=draw) - 1
        times = torch.randint(2, (512, 1), generator=draw).float()
        distance = points.norm(dim=1) - 0.4 - 0.3 * times[:, 0]
        loss = (field(points, times) - distance).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    directions = torch.nn.functional.normalize(torch.randn(100, 3, generator=draw), dim=1)
    for moment, radius in ((0.0, 0.4), (1.0, 0.7)):
        with torch.no_grad():
            value = field(radius * directions, torch.tensor([moment]))
        assert value.abs().mean() < 0.03


def test_a_list_of_resolutions_as_json_gives_it_equals_a_tuple():
    assert GridConfig(resolutions=[16, 48]) == GridConfig(resolutions=(16, 48))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolutions": ()}, "one or more resolutions"),
        ({"resolutions": (8, 0)}, r"not \[8, 0\]"),
        ({"mixtures": 0}, "at least 1 mixture"),
        ({"condition": -1}, "condition of at least 0"),
        ({"geometric_radius": float("nan")}, "geometric_radius"),
        ({"geometric_radius": 0.0}, "geometric_radius"),
    ],
)
def test_refuses_what_cannot_be_built(changes, words):
    with pytest.raises(UsageError, match=words):
        GridConfig(**changes)
