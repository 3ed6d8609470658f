"""The gate alone, of a product that somebody else made."""

import pytest
import torch
import torch.nn.functional as F

from tests.numerics.tolerances import assert_within
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.linear import gate, gated_linear


@pytest.fixture(params=["reference", "triton"])
def kind(request):
    with interpreted(), force(gate=request.param):
        yield request.param


@pytest.mark.parametrize(("T", "width"), [(1, 2), (3, 130), (5, 2050)])
def test_gelu_of_one_half_times_the_other(kind, T, width):
    y = torch.randn(T, width, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    first, second = y.chunk(2, dim=-1)
    expected = F.gelu(first) * second
    assert_within("op", gate(y), expected)
    scale = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    found, wanted = (torch.autograd.grad((out * scale).sum(), y)[0] for out in (gate(y), expected))
    assert_within("op", found, wanted)


def test_as_the_fused_projection_does_it(kind):
    x, weight = torch.randn(4, 6), torch.randn(10, 6)
    assert_within("op", gate(x @ weight.T), gated_linear(x, weight))


@pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 3, 4)])
def test_rows_without_two_halves(shape):
    with pytest.raises(ValueError, match="no gate and up"):
        gate(torch.zeros(shape))
