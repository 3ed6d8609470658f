"""The norm kernels on a GPU at published widths."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.test_norm import naive_gated, naive_norm
from zamba_lm.ops.dispatch import record
from zamba_lm.ops.norm import gated_norm, norm

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ROWS = (1, 2, 63, 64, 65, 500, 4097)


def make(rows, width, dtype):
    """x, z as columns of something wider, weight, gradient of the output"""
    g = torch.Generator("cuda").manual_seed(rows + width)
    x, z, d = (torch.randn(rows, width + 8, generator=g, device="cuda").to(dtype) for _ in range(3))
    return x[:, :width], z[:, 8:], torch.randn(width, generator=g, device="cuda").to(dtype), d[:, :width]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [77, 2048, 2560, 3584, 3712, 5120, 7424, 14848])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_norm(rows, width, dtype):
    x, _, weight, _ = make(rows, width, dtype)
    with record() as calls:
        y = norm(x, weight, 1e-5)
    assert calls == [("norm", "triton")] and y.dtype == dtype
    assert_within("op", y, naive_norm(x, weight, 1e-5))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("width", "groups"), [(4096, 1), (5120, 1), (7168, 2), (78, 3)])
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_gated_norm(rows, width, groups, dtype):
    y, z, weight, _ = make(rows, width, dtype)
    expected = naive_gated(y, z, weight, 1e-5, groups)
    for given in (y, y.float()):
        result = gated_norm(given, z, weight, 1e-5, groups)
        assert result.dtype == dtype
        assert_within("op", result, expected)


@pytest.mark.parametrize("rows", ROWS[:-1])
@pytest.mark.parametrize(("width", "groups"), [(2560, 1), (5120, 1), (7168, 2), (7424, 1), (14848, 1), (78, 3)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_gradients(rows, width, groups, dtype):
    y, z, weight, d = make(rows, width, dtype)
    cases = (
        (lambda y, w: norm(y, w, 1e-5), lambda y, w: naive_norm(y, w, 1e-5), (y, weight)),
        (lambda y, z, w: gated_norm(y, z, w, 1e-5, groups), lambda y, z, w: naive_gated(y, z, w, 1e-5, groups), (y, z, weight)),
    )
    for function, definition, inputs in cases:
        narrow, wide = ([v.detach().to(to).requires_grad_() for v in inputs] for to in (dtype, torch.float64))
        function(*narrow).backward(d)
        definition(*wide).backward(d.double())
        for actual, expected in zip(narrow, wide, strict=True):
            scale = max(1.0, expected.grad.abs().max().item() / 8)  # the weight's sums over rows grow with their number
            assert_within("gradient", actual.grad / scale, expected.grad / scale)
