import pytest
import torch
from tests.nn.turning import reflection, rotation

from undula.nn.gated import Gated, lengths, linear


def drawn(*shape):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def layer(**changes) -> Gated:
    return Gated(5, 4, 3, 2, 8, torch.Generator().manual_seed(1), **changes).double()


@pytest.mark.parametrize("matrix", [rotation(2), reflection(3)], ids=["turned", "mirrored"])
def test_turns_and_mirrors_with_its_vectors(matrix):
    net, s, v = layer(), drawn(7, 5), drawn(7, 3, 4)
    scalars, vectors = net(s, v)
    again, turned = net(s, matrix @ v)
    torch.testing.assert_close(again, scalars, rtol=0, atol=1e-12)
    torch.testing.assert_close(turned, matrix @ vectors, rtol=0, atol=1e-12)


def test_rows_do_not_hear_each_other_and_may_have_any_shape():
    net, s, v = layer(), drawn(2, 3, 5), drawn(2, 3, 3, 4)
    scalars, vectors = net(s, v)
    assert scalars.shape == (2, 3, 3)
    assert vectors.shape == (2, 3, 3, 2)
    alone = net(s[1, 2], v[1, 2])
    torch.testing.assert_close(alone, (scalars[1, 2], vectors[1, 2]), rtol=0, atol=1e-12)


def test_is_silent_at_the_start_with_gain_zero_but_learns():
    net = layer(gain=0.0)
    scalars, vectors = net(drawn(7, 5), drawn(7, 3, 4))
    assert not scalars.any()
    assert not vectors.any()
    (scalars.sum() + vectors.sum()).backward()
    assert net.leave.weight.grad.any()
    assert net.mixed.weight.grad.any()


def test_no_vectors_in_no_vectors_out():
    _, vectors = layer()(drawn(7, 5), torch.zeros(7, 3, 4, dtype=torch.float64))
    assert not vectors.any()


def test_long_vectors_are_not_multiplied_by_more_than_short_ones():
    net, s, v = layer(), drawn(7, 5), drawn(7, 3, 4)
    sizes = [float(net(s, size * v)[1].detach().norm()) / size for size in (1e3, 1e6)]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-2)


def test_lengths_are_right_and_have_no_slope_where_they_vanish():
    v = torch.tensor([[3.0], [0], [4]], dtype=torch.float64)
    assert float(lengths(v)) == pytest.approx(5, abs=2e-4)
    nothing = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    lengths(nothing).sum().backward()
    assert float(lengths(nothing).detach()) == 0
    assert not nothing.grad.any()
    assert torch.autograd.gradcheck(lengths, drawn(2, 3, 4).requires_grad_())


def test_a_linear_layer_keeps_the_spread_times_its_gain():
    numbers = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    for gain in (1.0, 0.1, 0.0):
        made = linear(64, 128, torch.Generator().manual_seed(1), gain=gain)
        assert not made.bias.any()
        assert float(made(numbers).detach().std()) == pytest.approx(gain, rel=0.05, abs=1e-12)
    assert linear(3, 2, torch.Generator(), bias=False).bias is None
