"""The Triton projections of more than a few rows, interpreted: preparation, tensor-core product, gate and its gradient."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import assert_gradients
from tests.ops.test_linear_fused import naive, naive_gated, randn
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.linear import Normed, gated_linear, linear

pytest.importorskip("triton")
from zamba_lm.ops.linear import triton as routes
from zamba_lm.ops.linear.triton import few
from zamba_lm.ops.linear.triton.configs import SkinnyConfig

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def triton_on_cpu():
    with interpreted(), force(linear="triton", gated_linear="triton", norm="reference"):
        yield


@pytest.fixture(params=["ours", "cublas"])
def way(request, monkeypatch):
    """Our tensor-core kernel for the gated product, and torch's product with a kernel for the gate."""
    monkeypatch.setattr(few, "skinny_config", lambda *_: SkinnyConfig(8, 16, 16, 1))
    monkeypatch.setattr(routes, "GATED", 0 if request.param == "cublas" else 64)


@pytest.mark.parametrize("total", [5, 33])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [0, 1, 2])
def test_side_by_side_normed_with_residual(total, dtype, groups):
    x, residual = randn(total, 72, dtype=dtype), randn(total, 50, seed=1, dtype=dtype)
    weight = randn(37, 72, dtype=dtype) / 8
    norm = Normed(1 + randn(72, dtype=dtype) / 4, 1e-5, groups) if groups else None
    y = linear((x[:, :30], x[:, 30:]), weight, norm=norm, residual_TO=residual[:, 3:40])
    assert y.dtype == dtype
    assert_within("op", y, naive(x, weight, norm, residual[:, 3:40]))
    if norm is not None:
        assert linear(x.float(), weight, norm=norm).dtype == dtype


def test_the_sum_may_take_the_residuals_place():
    x, weight, residual = randn(5, 72), randn(37, 72) / 12, randn(5, 37, seed=1)
    expected = linear(x, weight, residual_TO=residual)
    y = linear(x, weight, residual_TO=residual, overwrite=True)
    assert torch.equal(y, expected) and y.data_ptr() == residual.data_ptr()
    row = randn(1, 37, seed=2)  # of one row it never does: models feed what entered their first layer
    assert linear(x[:1], weight, residual_TO=row, overwrite=True).data_ptr() != row.data_ptr()


@pytest.mark.parametrize("total", [5, 70])
@pytest.mark.parametrize("with_adapter", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated(way, dtype, with_adapter, total):
    x, weight = randn(total, 72, dtype=dtype), randn(42, 72, dtype=dtype) / 12
    norm = Normed(1 + randn(72, dtype=dtype) / 4, 1e-5)
    adapter = (randn(5, 72, dtype=dtype) / 8, randn(42, 5, dtype=dtype) / 8, None, None) if with_adapter else None
    y = gated_linear(x, weight, norm=norm, adapter=adapter)
    assert y.shape == (total, 21) and y.dtype == dtype
    assert_within("op", y, naive_gated(x, weight, norm, adapter))


def test_no_rows():
    x, weight = randn(0, 12), randn(14, 12)
    assert linear(x, weight, residual_TO=randn(0, 14)).shape == (0, 14)
    assert gated_linear(x, weight).shape == (0, 7)


def test_gradients():
    inputs = {"x": randn(5, 12), "w": randn(14, 12) / 3, "n": 1 + randn(12) / 4, "r": randn(5, 14, seed=1)}

    def function(x, w, n, r):
        return [linear(x, w, norm=Normed(n, 1e-5), residual_TO=r)]

    assert_gradients(function, lambda x, w, n, r: [naive(x, w, Normed(n, 1e-5), r)], inputs)


def test_gated_gradients():
    inputs = {"x": randn(5, 12), "w": randn(14, 12) / 3, "n": 1 + randn(12) / 4, "A": randn(3, 12) / 3, "B": randn(14, 3) / 2}

    def function(x, w, n, A, B):
        return [gated_linear(x, w, norm=Normed(n, 1e-5), adapter=(A, B, None, None))]

    assert_gradients(function, lambda x, w, n, A, B: [naive_gated(x, w, Normed(n, 1e-5), (A, B))], inputs)


def test_dtypes_that_do_not_fit():
    x, weight = randn(2, 12), randn(14, 12)
    with pytest.raises(ValueError, match="not torch.float32 and torch.bfloat16"):
        linear(x, weight.bfloat16())
    with pytest.raises(ValueError, match="not torch.float64 and torch.float64"):
        gated_linear(x.double(), weight.double())
