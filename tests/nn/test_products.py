import pytest
import torch

from undula.nn.products import linear, product


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def three(rows: int = 7, inner: int = 5, columns: int = 3, dtype: torch.dtype = torch.float64):
    return (
        numbers(rows, inner, dtype=dtype).requires_grad_(),
        numbers(columns, inner, seed=1, dtype=dtype).requires_grad_(),
        numbers(columns, seed=2, dtype=dtype).requires_grad_(),
    )


@pytest.mark.parametrize("rows", [1, 2, 40, 1030])
@pytest.mark.parametrize(("inner", "columns"), [(1, 1), (3, 512), (512, 3), (447, 65)])
def test_equals_the_product_in_float64(rows, inner, columns):
    left, right, shift = (one.detach() for one in three(rows, inner, columns, torch.float32))
    expected = left.double() @ right.double().T + shift
    found = product(left, right, shift)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_transposed_stepped_and_repeated_views_are_read_as_they_are():
    left, right = numbers(40, 60), numbers(50, 60, seed=1)
    views = {
        "transposed": (left.T.contiguous().T, right.T.contiguous().T),
        "of the other axis": (left.T, numbers(50, 40, seed=3)),
        "stepped": (left[::2, ::3], right[::2, ::3]),
        "shifted": (left[3:, 7:], right[1:, 7:]),
        "repeated": (left[:1].expand(9, -1), right[:1].expand(4, -1)),
        "one column": (left[:, 5:6], right[:, 2:3]),
    }
    for name, (one, other) in views.items():
        expected = one.double() @ other.double().T
        assert (product(one, other) - expected).abs().max() < 1e-4, name


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (4, 3, 0)])
def test_nothing_times_anything_is_zero_or_empty(shape):
    rows, inner, columns = shape
    found = product(numbers(rows, inner), numbers(columns, inner), numbers(columns))
    assert torch.equal(found, numbers(columns).expand(rows, -1))


def test_gives_the_same_bytes_each_time():
    left, right = numbers(300, 512), numbers(512, 512, seed=1)
    assert torch.equal(product(left, right), product(left, right))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_kept(dtype):
    left, right = numbers(8, 8, dtype=dtype), numbers(8, 8, seed=1, dtype=dtype)
    assert torch.equal(product(left, right), left @ right.T)


def test_the_derivatives_pass_gradcheck_twice():
    assert torch.autograd.gradcheck(linear, three())
    assert torch.autograd.gradgradcheck(linear, three())
    assert torch.autograd.gradcheck(linear, three()[:2])


def test_the_derivatives_in_float32_are_torchs():
    arguments = three(64, 32, 48, torch.float32)
    weights = numbers(64, 48, seed=5)
    ours = torch.autograd.grad((linear(*arguments) * weights).sum(), arguments)
    theirs = torch.autograd.grad(
        (torch.nn.functional.linear(*arguments) * weights).sum(), arguments
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("axes", [(0, 0, 0), (None, 0, 0), (0, None, None), (1, 2, 1)])
def test_maps_over_any_argument(axes):
    shapes = (7, 5), (3, 5), (3,)
    stacked = [
        numbers(*shape, seed=i)
        if axis is None
        else torch.stack([numbers(*shape, seed=10 * i + k) for k in range(4)], dim=axis)
        for i, (shape, axis) in enumerate(zip(shapes, axes, strict=True))
    ]
    mapped = torch.func.vmap(linear, in_dims=axes)(*stacked)
    for k in range(4):
        one = [
            tensor if axis is None else tensor.select(axis, k)
            for tensor, axis in zip(stacked, axes, strict=True)
        ]
        torch.testing.assert_close(mapped[k], linear(*one), rtol=1e-5, atol=1e-5)


def test_autocast_chooses_its_own_product():
    left, right = numbers(8, 8), numbers(8, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(left, right).dtype == torch.bfloat16
