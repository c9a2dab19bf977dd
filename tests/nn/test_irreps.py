import pytest
import torch
from tests.nn.turning import reflection, rotation, turned

from undula.nn.irreps import (
    EquivariantLinear,
    EquivariantNorm,
    by_degree,
    gate_channels,
    gated,
    joined,
    width,
)

CHANNELS = (5, 3, 2)


def draw(count: int, channels, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width(channels), dtype=torch.float64, generator=generator)


def linear(outputs=(4, 2, 6), bias=True) -> EquivariantLinear:
    layer = EquivariantLinear(CHANNELS, outputs, torch.Generator().manual_seed(1), bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(2))
    return layer.double()


def test_a_row_lies_degree_by_degree_component_by_component_channel_by_channel():
    row = torch.arange(width(CHANNELS)).float()[None]
    scalars, vectors, tensors = by_degree(row, CHANNELS)
    assert scalars[0].tolist() == [[0, 1, 2, 3, 4]]
    assert vectors[0].tolist() == [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    assert tensors.shape == (1, 5, 2)
    assert torch.equal(joined([scalars, vectors, tensors]), row)


@pytest.mark.parametrize("matrix", [rotation(), reflection()], ids=["turned", "mirrored"])
def test_layers_turn_with_their_features(matrix):
    norm = EquivariantNorm(CHANNELS).double()
    into = draw(20, gate_channels(CHANNELS))
    for layer, features, before, after in (
        (linear(), draw(20, CHANNELS), CHANNELS, (4, 2, 6)),
        (norm, draw(20, CHANNELS), CHANNELS, CHANNELS),
        (lambda x: gated(x, CHANNELS), into, gate_channels(CHANNELS), CHANNELS),
    ):
        moved = layer(turned(features, before, matrix))
        torch.testing.assert_close(moved, turned(layer(features), after, matrix))


def test_a_shared_bias_makes_the_linear_layer_of_a_sum_the_sum_of_linear_layers():
    layer, rows = linear(), draw(6, CHANNELS)
    shares = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = layer(rows.sum(dim=0, keepdim=True), shares.sum()[None])
    torch.testing.assert_close(together[0], layer(rows, shares).sum(dim=0))
    torch.testing.assert_close(layer(rows, torch.ones(6).double()), layer(rows))


def test_the_bias_is_on_degree_zero_alone():
    zero = torch.zeros(1, width(CHANNELS), dtype=torch.float64)
    scalars, *others = by_degree(linear()(zero), (4, 2, 6))
    assert scalars.all()
    assert not any(other.any() for other in others)
    assert not linear(bias=False)(zero).any()


def test_a_degree_without_channels_comes_out_as_zero():
    layer = EquivariantLinear((5, 0, 0), CHANNELS, torch.Generator().manual_seed(1))
    scalars, *others = by_degree(layer(torch.ones(2, 5)), CHANNELS)
    assert scalars.any()
    assert not any(other.any() for other in others)


def test_linear_layers_keep_the_size_of_numbers():
    channels = (64, 32, 16)
    layer = EquivariantLinear(channels, channels, torch.Generator().manual_seed(1)).double()
    for part in by_degree(layer(draw(500, channels)), channels):
        assert 0.8 < part.square().mean() < 1.2


def test_normalised_rows_have_a_mean_square_of_one_in_each_degree_whatever_their_size():
    norm = EquivariantNorm(CHANNELS).double()
    rows = draw(10, CHANNELS)
    for part in by_degree(norm(1e3 * rows), CHANNELS):
        torch.testing.assert_close(
            part.square().mean(dim=(1, 2)), torch.ones(10).double(), rtol=1e-6, atol=0
        )
    assert not norm(0 * rows).any()


def test_a_closed_gate_lets_nothing_through_and_an_open_one_everything():
    rows = draw(4, gate_channels(CHANNELS))
    for value, factor in ((-1e3, 0.0), (1e3, 1.0)):
        rows[:, CHANNELS[0] : sum(CHANNELS)] = value
        _, *after = by_degree(gated(rows, CHANNELS), CHANNELS)
        _, *before = by_degree(rows, gate_channels(CHANNELS))
        for one, other in zip(after, before, strict=True):
            torch.testing.assert_close(one, factor * other)


def test_no_rows_give_no_rows():
    nothing = torch.zeros(0, width(CHANNELS), dtype=torch.float64)
    assert linear()(nothing).shape == (0, width((4, 2, 6)))
    assert EquivariantNorm(CHANNELS).double()(nothing).shape == nothing.shape
