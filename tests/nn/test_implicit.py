import dataclasses

import pytest
import torch

from undula.errors import UsageError
from undula.nn.implicit import ImplicitConfig, ImplicitNetwork, softplus_and_slope

SMALL = ImplicitConfig(
    depth=4, width=32, skip_at=2, beta=5.0, condition=4, condition_start="random"
)
VARIANTS = {
    "coordinates": SMALL,
    "solid": dataclasses.replace(SMALL, harmonics="solid", degree=3),
    "paper": dataclasses.replace(SMALL, harmonics="paper", degree=2),
    "no skip": dataclasses.replace(SMALL, skip_at=None),
    "skip at the first": dataclasses.replace(SMALL, skip_at=1),
    "skip at the last": dataclasses.replace(SMALL, skip_at=3),
    "one layer": dataclasses.replace(SMALL, depth=1, skip_at=None),
    "no condition": dataclasses.replace(SMALL, condition=0),
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(config: ImplicitConfig) -> ImplicitNetwork:
    """Make a float64 network in which no weight is zero."""
    network = ImplicitNetwork(config, generator()).double()
    noise = generator(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64)
    return network


def inputs(config: ImplicitConfig, count: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator(2)
    return (
        torch.randn(count, 3, generator=draw, dtype=torch.float64),
        torch.randn(count, config.condition, generator=draw, dtype=torch.float64),
    )


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def config(request) -> ImplicitConfig:
    return request.param


def test_has_as_many_parameters_as_dsr():
    network = ImplicitNetwork(ImplicitConfig(condition=193), generator())
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_839_421


def test_equals_a_network_that_concatenates_its_inputs(config):
    network = trained(config)
    points, condition = inputs(config)
    entering = torch.cat((network._features(points), condition), dim=1)
    softplus = torch.nn.Softplus(config.beta, threshold=1e9)
    first = torch.cat((network.first.points, network.first.condition), dim=1)
    hidden = softplus(entering @ first.T + network.first.bias)
    for layer, linear in enumerate(network.hidden, start=1):
        weight, bias = linear.weight, linear.bias
        if layer == config.skip_at:
            hidden = torch.cat((hidden, entering), dim=1) / 2**0.5
            weight = torch.cat((weight, network.skip.points, network.skip.condition), dim=1)
            bias = network.skip.bias
        hidden = softplus(hidden @ weight.T + bias)
        assert hidden.shape[1] <= config.width
    torch.testing.assert_close(network(points, condition), network.last(hidden)[:, 0])


def test_the_gradient_equals_autograd(config):
    network = trained(config)
    points, condition = inputs(config)
    points.requires_grad_()
    value, gradient = network.value_and_gradient(points, condition)
    expected = network(points, condition)
    (derived,) = torch.autograd.grad(expected.sum(), points)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, derived, rtol=0, atol=1e-10)


def test_the_parameter_gradients_of_a_loss_on_the_gradient_equal_double_backward(config):
    network = trained(config)
    points, condition = inputs(config)

    def loss(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return value.abs().sum() + (gradient.norm(dim=1) - 1).square().sum()

    parameters = list(network.parameters())
    explicit = torch.autograd.grad(loss(*network.value_and_gradient(points, condition)), parameters)
    points.requires_grad_()
    value = network(points, condition)
    (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True)
    double = torch.autograd.grad(loss(value, slope), parameters)
    for ours, theirs in zip(explicit, double, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_passes_gradcheck_by_points_and_condition():
    network = trained(VARIANTS["solid"])
    points, condition = inputs(network.config, count=3)
    arguments = points.requires_grad_(), condition.requires_grad_()
    assert torch.autograd.gradcheck(network.value_and_gradient, arguments)
    assert torch.autograd.gradgradcheck(network.explicit_value_and_gradient, arguments)


def test_the_explicit_form_the_hand_written_one_and_that_without_autograd_agree(config):
    network = trained(config)
    points, condition = inputs(config)
    parameters = list(network.parameters())
    explicit = network.explicit_value_and_gradient(points, condition)
    written = network.value_and_gradient(points, condition)
    with torch.no_grad():
        bare = network.value_and_gradient(points, condition)
    torch.testing.assert_close(written, explicit, rtol=0, atol=1e-10)
    torch.testing.assert_close(bare, explicit, rtol=0, atol=1e-10)
    derivatives = [
        torch.autograd.grad(value.abs().sum() + gradient.norm(dim=1).sum(), parameters)
        for value, gradient in (explicit, written)
    ]
    torch.testing.assert_close(*derivatives, rtol=1e-9, atol=1e-10)


def test_the_softplus_passes_gradcheck_twice():
    numbers = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: softplus_and_slope(a, 3.0), numbers)
    assert torch.autograd.gradgradcheck(lambda a: softplus_and_slope(a, 3.0), numbers)
    assert torch.autograd.gradgradcheck(lambda a: softplus_and_slope(a, 3.0)[1], numbers)
    assert torch.autograd.gradgradcheck(lambda a: softplus_and_slope(a, 3.0)[0], numbers)


def test_the_softplus_is_stable_in_float32():
    numbers = torch.tensor([-1e4, -50.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 50.0, 1e4])
    value, slope = softplus_and_slope(numbers, 100.0)
    exact = torch.logaddexp(100 * numbers.double(), torch.zeros(9).double()) / 100
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(slope.double(), torch.sigmoid(100 * numbers.double()))


def test_a_shared_condition_equals_a_repeated_one(config):
    network = trained(config)
    points, condition = inputs(config)
    shared = network.value_and_gradient(points, condition[0])
    repeated = network.value_and_gradient(points, condition[:1].expand(len(points), -1))
    torch.testing.assert_close(shared, repeated, rtol=0, atol=1e-12)
    torch.testing.assert_close(network(points, condition[0]), shared[0])


def test_one_by_one_equals_the_batch(config):
    network = trained(config)
    points, condition = inputs(config)
    together = network(points, condition)
    one_by_one = [network(points[i : i + 1], condition[i : i + 1]) for i in range(len(points))]
    torch.testing.assert_close(torch.cat(one_by_one), together, rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("harmonics", "degree"), [("coordinates", 1), ("solid", 3), ("paper", 3)])
def test_starts_as_a_sphere_under_any_condition(harmonics, degree, radius):
    config = ImplicitConfig(
        harmonics=harmonics, degree=degree, condition=193, geometric_radius=radius
    )
    network = ImplicitNetwork(config, generator())
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator(3)), dim=1)
    condition = torch.randn(193, generator=generator(4))
    with torch.no_grad():
        at = {
            scale: network(scale * radius * directions, condition) for scale in (0, 0.7, 1, 1.5, 3)
        }
    assert at[0].max() < 0
    assert at[0.7].max() < 0
    assert abs(at[1].mean()) < 0.02 * radius
    assert at[1.5].min() > 0
    assert at[3].min() > at[1.5].max()


def test_the_sphere_of_radius_one_has_the_values_measured_for_dsr():
    network = ImplicitNetwork(ImplicitConfig(), generator())
    along = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [1, 0, 0]])
    with torch.no_grad():
        values = network(along, torch.zeros(0))
    torch.testing.assert_close(values, torch.tensor([-0.58, -0.38, 0.0]), rtol=0, atol=0.12)


def test_a_random_start_of_the_condition_loses_the_sphere_as_measured():
    config = ImplicitConfig(condition=193, condition_start="random")
    network = ImplicitNetwork(config, generator())
    with torch.no_grad():
        centre = network(torch.zeros(1, 3), torch.randn(193, generator=generator(4)))
    assert centre > 3


def test_a_zero_last_layer_gives_exactly_zero():
    network = ImplicitNetwork(dataclasses.replace(SMALL, zero_last=True), generator())
    points, condition = (tensor.float() for tensor in inputs(SMALL))
    value, gradient = network.value_and_gradient(points, condition)
    assert not value.any()
    assert not gradient.any()
    value.sum().backward()
    assert network.last.weight.grad.any()


def test_learns_a_box_from_distances_and_normals():
    config = ImplicitConfig(depth=3, width=64, skip_at=2, beta=20.0, harmonics="solid", degree=3)
    network = ImplicitNetwork(config, generator())
    draw = generator(8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(150):
        points = (2 * torch.rand(256, 3, generator=draw) - 1).requires_grad_()
        outside = points.abs() - torch.tensor([0.8, 0.5, 0.3])
        distance = outside.clamp_min(0).norm(dim=1) + outside.max(dim=1).values.clamp_max(0)
        (normals,) = torch.autograd.grad(distance.sum(), points)
        value, gradient = network.value_and_gradient(points.detach(), torch.zeros(0))
        loss = (value - distance.detach()).abs().mean()
        optimizer.zero_grad()
        (loss + 0.1 * (gradient - normals).norm(dim=1).mean()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_the_same_generator_gives_the_same_network():
    first, second = (ImplicitNetwork(SMALL, generator(5)).state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_no_points_give_no_values(config):
    network = trained(config)
    value, gradient = network.value_and_gradient(*inputs(config, count=0))
    assert value.shape == (0,)
    assert gradient.shape == (0, 3)


def test_bfloat16_keeps_the_dtype_and_nearly_the_numbers():
    config = ImplicitConfig(depth=8, width=128, condition=9)
    network = ImplicitNetwork(config, generator())
    points = torch.randn(64, 3, generator=generator(3))
    condition = torch.randn(64, 9, generator=generator(4))
    exact = network.value_and_gradient(points, condition)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network.value_and_gradient(points, condition)
        loss = rounded[0].abs().mean() + (rounded[1].norm(dim=1) - 1).square().mean()
    loss.backward()
    assert rounded[0].dtype == rounded[1].dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    for ours, theirs in zip(rounded, exact, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_bfloat16_keeps_the_parameter_gradient_of_a_trained_network():
    config = ImplicitConfig(harmonics="paper", degree=3, condition=9)
    network, draw = ImplicitNetwork(config, generator()), generator(5)
    with torch.no_grad():
        for entry in (network.first, network.skip):
            entry.points.normal_(0, 0.08, generator=draw)
        for layer in network.hidden:
            layer.weight *= 1.15
        network.last.weight.normal_(0, 0.04, generator=draw)
    points = 2 * torch.rand(2048, 3, generator=draw) - 1
    normals = torch.nn.functional.normalize(torch.randn(2048, 3, generator=draw), dim=1)

    def parameter_gradient(method, reduced: bool) -> torch.Tensor:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            value, gradient = method(points, torch.zeros(9))
        eikonal = (gradient.norm(dim=1) - 1).square().mean()
        (value.abs().mean() + (gradient - normals).norm(dim=1).mean() + eikonal).backward()
        return torch.cat([one.grad.flatten() for one in network.parameters()])

    exact = parameter_gradient(network.value_and_gradient, reduced=False)
    error = (parameter_gradient(network.value_and_gradient, reduced=True) - exact).norm()
    plain = (parameter_gradient(network.explicit_value_and_gradient, reduced=True) - exact).norm()
    assert error < 8e-3 * exact.norm()
    assert error < 0.5 * plain


def test_several_networks_can_be_evaluated_at_once():
    networks = [trained(SMALL), ImplicitNetwork(SMALL, generator(7)).double()]
    points, condition = inputs(SMALL)
    parameters, _ = torch.func.stack_module_state(networks)
    together = torch.func.vmap(
        lambda weights: torch.func.functional_call(networks[0], weights, (points, condition))
    )(parameters)
    expected = torch.stack([network(points, condition) for network in networks])
    torch.testing.assert_close(together, expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 0}, "depth"),
        ({"degree": 2}, "coordinates have degree 1"),
        ({"skip_at": 8}, "from 1 to 7, not 8"),
        ({"skip_at": 0}, "from 1 to 7, not 0"),
        ({"beta": float("nan")}, "beta"),
        ({"geometric_radius": 0.0}, "geometric_radius"),
        ({"condition": 600}, "width of at least 604, not 512"),
    ],
)
def test_refuses_what_cannot_be_built(changes, words):
    with pytest.raises(UsageError, match=words):
        ImplicitConfig(**changes)
