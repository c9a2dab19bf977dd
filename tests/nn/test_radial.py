import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from undula.errors import UsageError
from undula.nn.radial import (
    RadialConfig,
    RadialNetwork,
    RadialWeights,
    cosine_cutoff,
    gaussian_basis,
)

CONFIG = RadialConfig(window=9.0, centres=12, hidden=16, knots=256)


def network(config: RadialConfig = CONFIG, weights: int = 5) -> RadialNetwork:
    return RadialNetwork(config, weights, torch.Generator().manual_seed(0)).double()


def distances(count: int = 500) -> torch.Tensor:
    return 9 * torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_gaussian_is_one_at_its_centre_and_overlaps_its_neighbours():
    at = torch.linspace(0, 9, 10, dtype=torch.float64)
    values = gaussian_basis(at, 10, 9.0)
    torch.testing.assert_close(values.diagonal(), torch.ones(10).double())
    torch.testing.assert_close(values.diagonal(1), torch.full((9,), math.exp(-0.5)).double())


def test_a_given_sharpness_is_used_as_it_is():
    values = gaussian_basis(torch.tensor([0.5], dtype=torch.float64), 2, 9.0, sharpness=10.0)
    torch.testing.assert_close(values[0, 0].item(), math.exp(-2.5))


def test_the_window_falls_from_one_to_zero_without_an_edge():
    at = torch.tensor([0.0, 4.5, 9.0, 100.0], dtype=torch.float64, requires_grad=True)
    values = cosine_cutoff(at, 9.0)
    torch.testing.assert_close(values, torch.tensor([1, 0.5, 0, 0]).double(), atol=1e-15, rtol=0)
    (slopes,) = torch.autograd.grad(values.sum(), at)
    expected = torch.tensor([0, -math.pi / 18, 0, 0]).double()
    torch.testing.assert_close(slopes, expected, atol=1e-12, rtol=1e-6)


def test_the_table_is_exact_at_its_knots():
    radial = network()
    knots = torch.linspace(0, 9, CONFIG.knots, dtype=torch.float64)
    torch.testing.assert_close(radial.weights(knots).of_pairs(), radial(knots))


def test_the_error_of_the_table_is_of_second_order_in_the_spacing_of_the_knots():
    errors = []
    for knots in (256, 512, 1024):
        radial = network(replace(CONFIG, knots=knots))
        errors.append((radial.weights(distances()).of_pairs() - radial(distances())).norm())
    for coarse, fine in pairwise(errors):
        assert 3 < coarse / fine < 5


def test_the_default_table_is_exact_to_1e_5():
    radial = RadialNetwork(RadialConfig(), 96, torch.Generator().manual_seed(0)).double()
    exact = radial(distances(5000))
    error = (radial.weights(distances(5000)).of_pairs() - exact).norm() / exact.norm()
    assert error < 1e-5


def test_the_network_form_is_the_network_itself():
    radial = network(replace(CONFIG, form="network"))
    torch.testing.assert_close(
        radial.weights(distances()).of_pairs(), radial(distances()), rtol=0, atol=0
    )


@pytest.mark.parametrize("form", ["table", "network"])
def test_from_the_window_on_the_weights_are_zero(form):
    radial = network(replace(CONFIG, form=form))
    weights = radial.weights(torch.tensor([8.0, 9.0, 9.1, 50.0], dtype=torch.float64)).of_pairs()
    assert weights[0].all()
    assert weights[1:].abs().max() < 1e-14


def test_a_loss_on_weights_from_the_table_moves_the_network():
    gradients = []
    for form in ("table", "network"):
        radial = network(replace(CONFIG, form=form, knots=4096))
        loss = radial.weights(distances()).of_pairs().square().sum()
        gradients.append(torch.autograd.grad(loss, list(radial.parameters())))
    for table, exact in zip(*gradients, strict=True):
        assert exact.any()
        assert (table - exact).norm() < 1e-4 * exact.norm()


def test_places_between_rows_are_interpolated():
    rows = torch.tensor([[0.0, 1.0], [10.0, 2.0], [20.0, 4.0]])
    weights = RadialWeights(rows, torch.tensor([0, 1]), torch.tensor([0.1, 0.5])).of_pairs()
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.1], [15.0, 3.0]]))


def test_fresh_weights_are_about_as_large_as_one():
    radial = RadialNetwork(RadialConfig(), 200, torch.Generator().manual_seed(0))
    near = radial(torch.linspace(0, 0.5, 50))
    assert 0.5 < near.square().mean() < 2


@pytest.mark.parametrize("form", ["table", "network"])
def test_no_pairs_have_no_weights(form):
    radial = network(replace(CONFIG, form=form))
    assert radial.weights(distances(0)).of_pairs().shape == (0, 5)


def test_the_same_generator_gives_the_same_weights_and_leaves_torchs_own_alone():
    state = torch.get_rng_state()
    first, second = network(), network()
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 0.0}, "radial.window"),
        ({"window": math.nan}, "radial.window"),
        ({"sharpness": -1.0}, "radial.sharpness"),
        ({"centres": 1}, "radial.centres must be at least 2"),
        ({"knots": 1}, "radial.knots"),
        ({"hidden": 0}, "radial.hidden"),
    ],
)
def test_refuses_what_cannot_be_built(changes, words):
    with pytest.raises(UsageError, match=words):
        RadialConfig(**changes)
