"""The Triton projections, interpreted: the same numbers as the reference, whatever the sizes and strides."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.test_linear_fused import naive, naive_gated, randn
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.linear import Normed, gated_linear, linear
from zamba_lm.ops.linear import triton as routes
from zamba_lm.ops.linear.triton import few
from zamba_lm.ops.linear.triton.configs import Config

pytest.importorskip("triton")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def triton_on_cpu(monkeypatch):
    monkeypatch.setattr(routes, "FEW", 8)  # the kernel is right for any number of rows
    with interpreted(), force(linear="triton", gated_linear="triton"):
        yield


@pytest.fixture(params=[Config(2, 64, 1), Config(4, 16, 1)], ids=["one tile", "many tiles"])
def small(request, monkeypatch):
    monkeypatch.setattr(few, "config", lambda *_: request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("total", [1, 3])
def test_plain(small, total, dtype):
    x, weight = randn(total, 52, dtype=dtype), randn(13, 52, dtype=dtype) / 7
    with record() as calls:
        y = linear(x, weight)
    assert calls == [("linear", "triton")]
    assert y.dtype == dtype
    assert_within("op", y, naive(x, weight))


@pytest.mark.parametrize(("total", "dtype"), [(1, torch.float32), (1, torch.bfloat16), (4, torch.float32)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("split", [0, 20])
def test_normed_side_by_side_with_residual(small, total, dtype, groups, split):
    x = randn(total, 52, dtype=dtype)
    weight, norm = randn(13, 52, dtype=dtype) / 7, Normed(1 + randn(52, dtype=dtype) / 4, 1e-5, groups)
    residual = randn(total, 13, seed=1, dtype=dtype)
    parts = (x[:, :split], x[:, split:]) if split else x
    assert_within("op", linear(parts, weight, norm=norm, residual_TO=residual), naive(x, weight, norm, residual))


@pytest.mark.parametrize(("total", "dtype"), [(1, torch.float32), (1, torch.bfloat16), (3, torch.float32)])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_gated(small, total, dtype, with_adapter):
    x, weight = randn(total, 52, dtype=dtype), randn(14, 52, dtype=dtype) / 7
    norm = Normed(1 + randn(52, dtype=dtype) / 4, 1e-5)
    adapter = (randn(5, 52, dtype=dtype) / 7, randn(14, 5, dtype=dtype) / 2, None, None) if with_adapter else None
    y = gated_linear(x, weight, norm=norm, adapter=adapter)
    assert y.shape == (total, 7) and y.dtype == dtype
    assert_within("op", y, naive_gated(x, weight, norm, adapter))


def test_strided_rows_and_more_axes(small):
    wide, weight, residual = randn(3, 200), randn(13, 52) / 7, randn(3, 40, seed=1)
    x, residual = wide[:, 9:61], residual[:, 3:16]
    assert_within("op", linear(x, weight, residual_TO=residual), naive(x, weight, None, residual))
    assert_within("op", linear(wide[:, 0:104:2], weight), naive(wide[:, 0:104:2], weight))
    fold = lambda v: v.unflatten(0, (3, 1))  # noqa: E731
    assert_within("op", linear(fold(x), weight, residual_TO=fold(residual)), fold(naive(x, weight, None, residual)))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("groups", [1, 2])
def test_float32_rows_and_a_narrow_weight(small, dtype, groups):
    """What a recurrence hands over: rounded nowhere before the product."""
    x, weight, norm = randn(2, 52), randn(13, 52, dtype=dtype) / 7, Normed(1 + randn(52, dtype=dtype) / 4, 1e-5, groups)
    residual = randn(2, 13, seed=1, dtype=dtype)
    y = linear(x, weight, norm=norm, residual_TO=residual)
    assert y.dtype == dtype
    assert_within("op", y, naive(x, weight, norm, residual))
    assert_within("op", linear((x[:, :20], x[:, 20:]), weight, norm=norm), naive(x, weight, norm))
    assert gated_linear(x, weight[:12], norm=norm).dtype == dtype
