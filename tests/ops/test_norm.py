"""norm and gated_norm: the root mean square in float64, by groups, gate first."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import assert_gradients
from zamba_lm.ops.norm import gated_norm, norm

DTYPES = [torch.float32, torch.bfloat16]


def make(total, width, dtype=torch.float32):
    """x, z, weight"""
    g = torch.Generator().manual_seed(total + width)
    return tuple(torch.randn(shape, generator=g).to(dtype) for shape in ((total, width), (total, width), (width,)))


def naive_norm(x, weight, eps):
    x = x.double()
    return weight.double() * x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps)


def naive_gated(y, z, weight, eps, groups):
    gated = y.double() * z.double() * torch.sigmoid(z.double())
    parts = zip(gated.chunk(groups, -1), weight.chunk(groups), strict=True)
    return torch.cat([naive_norm(part, w, eps) for part, w in parts], dim=-1)


@pytest.mark.parametrize("total", [1, 2, 65])
@pytest.mark.parametrize("width", [1, 7, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(total, width, dtype):
    x, _, weight = make(total, width, dtype)
    y = norm(x, weight, 1e-5)
    assert y.dtype == dtype
    assert_within("op", y, naive_norm(x, weight, 1e-5))


@pytest.mark.parametrize("eps", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("size", [1e-3, 1e-20])
def test_eps_stands_inside_the_root(eps, size):
    x, z, weight = make(5, 12)
    assert_within("op", norm(size * x, weight, eps), naive_norm(size * x, weight, eps))
    assert_within("op", gated_norm(size * x, z, weight, eps, 3), naive_gated(size * x, z, weight, eps, 3))


@pytest.mark.parametrize("width", [7, 64, 2560])
def test_bfloat16_is_rounded_once(width):
    x, z, weight = make(20, width, torch.bfloat16)
    assert torch.equal(norm(x, weight, 1e-5), norm(x.float(), weight.float(), 1e-5).bfloat16())
    assert torch.equal(norm(x, weight, 1e-5), norm(x, weight.float(), 1e-5))
    in_float32 = gated_norm(x.float(), z.float(), weight.float(), 1e-5, 1)
    assert torch.equal(gated_norm(x, z, weight, 1e-5, 1), in_float32.bfloat16())


def test_zero_is_zero():
    zero, weight = torch.zeros(2, 8), torch.ones(8)
    assert torch.equal(norm(zero, weight, 1e-5), zero)
    assert torch.equal(gated_norm(zero, zero, weight, 1e-5, 2), zero)


def test_large_bfloat16_numbers_are_squared_in_float32():
    """The square of 1e15 is far beyond float16, and beside it a sum in bfloat16 would lose that of 1e14."""
    x = torch.tensor([[1e15, -1e15, 3e14, 1e14]], dtype=torch.bfloat16)
    weight = torch.ones(4, dtype=torch.bfloat16)
    assert_within("op", norm(x, weight, 1e-5), naive_norm(x, weight, 1e-5))


def test_many_channels_lose_nothing_in_bfloat16():
    """A mean of 7424 squares summed in bfloat16 would stop growing at 256."""
    x, _, weight = make(2, 7424, torch.bfloat16)
    assert_within("op", norm(x, weight, 1e-5), naive_norm(x, weight, 1e-5))


@pytest.mark.parametrize("total", [1, 2, 65])
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_norm(total, groups, dtype):
    y, z, weight = make(total, 24, dtype)
    expected = naive_gated(y, z, weight, 1e-5, groups)
    for given in (y, y.float()):  # the scan may hand over float32
        result = gated_norm(given, z, weight, 1e-5, groups)
        assert result.dtype == dtype
        assert_within("op", result, expected)


def test_groups_do_not_see_each_other():
    y, z, weight = make(3, 12)
    before = gated_norm(y, z, weight, 1e-5, 2)
    y[:, :6] = torch.nan
    after = gated_norm(y, z, weight, 1e-5, 2)
    assert after[:, :6].isnan().all() and torch.equal(after[:, 6:], before[:, 6:])


def test_columns_of_something_wider():
    wide, z, weight = make(5, 36)
    y = wide[:, 4:28]
    assert_within("op", norm(y, weight[:24], 1e-5), naive_norm(y, weight[:24], 1e-5))
    gated = gated_norm(y, z[:, 12:], weight[:24], 1e-5, 2)
    assert_within("op", gated, naive_gated(y, z[:, 12:], weight[:24], 1e-5, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype):
    inputs = dict(zip(("y", "z", "weight"), make(5, 12, dtype), strict=True))
    plain = {"x": inputs["y"], "weight": inputs["weight"]}
    assert_gradients(lambda x, weight: [norm(x, weight, 1e-5)], lambda x, weight: [naive_norm(x, weight, 1e-5)], plain)
    assert_gradients(
        lambda y, z, weight: [gated_norm(y, z, weight, 1e-5, 3)],
        lambda y, z, weight: [naive_gated(y, z, weight, 1e-5, 3)],
        inputs,
    )


def test_groups_that_do_not_divide_are_named():
    y, z, weight = make(2, 10)
    with pytest.raises(ValueError, match="width 10 does not divide into 3 groups"):
        gated_norm(y, z, weight, 1e-5, 3)
