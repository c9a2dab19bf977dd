import dataclasses
from itertools import pairwise

import pytest
import torch

from undula.nn import trunk as trunks
from undula.nn.trunk import Trunk, value_and_slopes

FEATURES = 4


def made(
    sizes: tuple[int, ...] = (6, 5, 7),
    skip_at: int | None = 1,
    per_point: tuple[int, ...] = (),
    points: int = 9,
    scale: float = 1.0,
) -> tuple[torch.Tensor, Trunk]:
    """Draw features and layers in float64 that want their derivatives."""
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, generator=draw, dtype=torch.float64) * scale
        return drawn.requires_grad_()

    entering = {0: numbers(sizes[0], FEATURES)}
    if skip_at is not None:
        entering[skip_at] = numbers(sizes[skip_at], FEATURES)
    return numbers(points, FEATURES), Trunk(
        entering=entering,
        hidden=tuple(numbers(after, size) for size, after in pairwise(sizes)),
        last=numbers(1, sizes[-1]),
        shifts=tuple(
            numbers(points, size) if layer in per_point else numbers(size)
            for layer, size in enumerate(sizes)
        ),
    )


def leaves(features: torch.Tensor, trunk: Trunk) -> list[torch.Tensor]:
    return [features, trunk.last, *trunk.entering.values(), *trunk.shifts, *trunk.hidden]


def by_autograd(features: torch.Tensor, trunk: Trunk) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same with a loop over layers and a derivative by the features."""
    output = None
    for layer, shift in enumerate(trunk.shifts):
        z = shift if layer == 0 else output @ trunk.hidden[layer - 1].T + shift
        if layer in trunk.entering:
            z = z + features @ trunk.entering[layer].T
        output = torch.nn.functional.softplus(z, threshold=100)
    value = output @ trunk.last[0]
    (slopes,) = torch.autograd.grad(value.sum(), features, create_graph=True)
    return value, slopes


def loss(value: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    return value.abs().sum() + (slopes.norm(dim=1) - 1).square().sum() + (value**2).mean()


FORMS = {
    "skip": {},
    "no skip": {"skip_at": None},
    "skip at the last": {"skip_at": 2},
    "one layer": {"sizes": (6,), "skip_at": None},
    "a shift per point": {"per_point": (0, 1)},
    "large numbers": {"scale": 4.0},
}


@pytest.fixture(params=FORMS.values(), ids=FORMS.keys())
def form(request) -> dict:
    return request.param


def test_equals_autograd_and_its_double_backward(form):
    features, trunk = made(**form)
    expected = by_autograd(features, trunk)
    found = value_and_slopes(features, trunk, reduced=False)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    everything = leaves(features, trunk)
    ours = torch.autograd.grad(loss(*found), everything)
    theirs = torch.autograd.grad(loss(*expected), everything)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("points", [0, 1, 4, 8, 9])
def test_slices_do_not_show(monkeypatch, points):
    features, trunk = made(points=points, per_point=(0,))
    everything = leaves(features, trunk)
    whole = value_and_slopes(features, trunk, reduced=False)
    whole_derivatives = torch.autograd.grad(loss(*whole), everything) if points else []
    monkeypatch.setattr(trunks, "ROWS", 4)
    sliced = value_and_slopes(features, trunk, reduced=False)
    torch.testing.assert_close(sliced, whole, rtol=0, atol=1e-12)
    if points:
        derivatives = torch.autograd.grad(loss(*sliced), everything)
        torch.testing.assert_close(derivatives, tuple(whole_derivatives), rtol=0, atol=1e-10)


def test_going_back_twice_gives_the_same():
    features, trunk = made()
    total = loss(*value_and_slopes(features, trunk, reduced=False))
    first = torch.autograd.grad(total, leaves(features, trunk), retain_graph=True)
    second = torch.autograd.grad(total, leaves(features, trunk))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_changing_a_weight_before_going_back_is_noticed():
    features, trunk = made()
    total = loss(*value_and_slopes(features, trunk, reduced=False))
    with torch.no_grad():
        trunk.last.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_second_derivative_is_refused():
    features, trunk = made()
    total = loss(*value_and_slopes(features, trunk, reduced=False))
    (first,) = torch.autograd.grad(total, features, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_reduced_products_keep_the_values_and_nearly_the_derivatives():
    features, trunk = made(sizes=(64, 64, 64), points=200, scale=0.3)
    exact = value_and_slopes(features, trunk, reduced=False)
    single = dataclasses.replace(
        trunk,
        entering={at: weight.float() for at, weight in trunk.entering.items()},
        hidden=tuple(weight.float() for weight in trunk.hidden),
        last=trunk.last.float(),
        shifts=tuple(shift.float() for shift in trunk.shifts),
    )
    rounded = value_and_slopes(features.float(), single, reduced=True)
    torch.testing.assert_close(rounded[0].double(), exact[0], rtol=1e-5, atol=1e-5)
    assert (rounded[1] - exact[1]).norm() < 1e-2 * exact[1].norm()
    ours = torch.autograd.grad(loss(*rounded), leaves(features, trunk))
    theirs = torch.autograd.grad(loss(*exact), leaves(features, trunk))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()
