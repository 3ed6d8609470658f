"""The norm kernels, through Triton's interpreter: values, gradients, widths that are no power of two, rows of something wider."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import assert_gradients
from tests.ops.test_norm import make, naive_gated, naive_norm
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.norm import gated_norm, norm

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def triton_here():
    pytest.importorskip("triton")
    with interpreted(), force(norm="triton", gated_norm="triton"):
        yield


@pytest.mark.parametrize(("total", "width"), [(1, 1), (2, 7), (17, 64), (3, 2560)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(total, width, dtype):
    x, _, weight = make(total, width, dtype)
    y = norm(x, weight, 1e-5)
    assert y.dtype == dtype and y.is_contiguous()
    assert_within("op", y, naive_norm(x, weight, 1e-5))
    assert_within("op", norm(x, weight.float(), 1e-5), naive_norm(x, weight.float(), 1e-5))


@pytest.mark.parametrize(("total", "groups"), [(1, 1), (2, 2), (9, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_norm(total, groups, dtype):
    y, z, weight = make(total, 42, dtype)
    expected = naive_gated(y, z, weight, 1e-5, groups)
    for given in (y, y.float()):  # the scan may hand over float32
        result = gated_norm(given, z, weight, 1e-5, groups)
        assert result.dtype == dtype
        assert_within("op", result, expected)


@pytest.mark.parametrize("size", [1e-3, 1e-20])
def test_eps_stands_inside_the_root(size):
    x, z, weight = make(5, 12)
    assert_within("op", norm(size * x, weight, 1e-2), naive_norm(size * x, weight, 1e-2))
    assert_within("op", gated_norm(size * x, z, weight, 1e-2, 3), naive_gated(size * x, z, weight, 1e-2, 3))
    assert torch.equal(norm(0 * x, weight, 1e-5), 0 * x)


def test_rows_and_groups_do_not_see_each_other():
    y, z, weight = make(3, 12)
    before = gated_norm(y, z, weight, 1e-5, 2)
    y[1, :6] = torch.nan
    after = gated_norm(y, z, weight, 1e-5, 2)
    assert after[1, :6].isnan().all() and torch.equal(after[1, 6:], before[1, 6:]) and torch.equal(after[::2], before[::2])


def test_columns_of_something_wider():
    wide, z, weight = make(5, 36)
    y = wide[:, 4:28]
    assert_within("op", norm(y, weight[:24], 1e-5), naive_norm(y, weight[:24], 1e-5))
    gated = gated_norm(y, z[:, 12:], weight[:24], 1e-5, 2)
    assert_within("op", gated, naive_gated(y, z[:, 12:], weight[:24], 1e-5, 2))


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("total", [1, 7])
def test_gradients(dtype, total):
    inputs = dict(zip(("y", "z", "weight"), make(total, 42, dtype), strict=True))
    plain = {"x": inputs["y"], "weight": inputs["weight"]}
    assert_gradients(lambda x, weight: [norm(x, weight, 1e-5)], lambda x, weight: [naive_norm(x, weight, 1e-5)], plain)
    for groups in (1, 3):
        assert_gradients(
            lambda y, z, weight, groups=groups: [gated_norm(y, z, weight, 1e-5, groups)],
            lambda y, z, weight, groups=groups: [naive_gated(y, z, weight, 1e-5, groups)],
            inputs,
        )


def test_a_gradient_for_columns_of_something_wider():
    """What the mixer does: y from the scan, z a slice of its projection."""
    (h, y, _), weight = make(5, 36), make(5, 24)[2]
    y = y[:, :24].contiguous()
    inputs = {"y": y, "h": h, "weight": weight}
    assert_gradients(
        lambda y, h, weight: [gated_norm(y, h[:, 12:], weight, 1e-5, 2)],
        lambda y, h, weight: [naive_gated(y, h[:, 12:], weight, 1e-5, 2)],
        inputs,
    )


def test_other_dtypes_are_named():
    x, _, weight = make(2, 8)
    with pytest.raises(ValueError, match="norm takes float32, bfloat16 or float16, not"):
        norm(x.double(), weight, 1e-5)
