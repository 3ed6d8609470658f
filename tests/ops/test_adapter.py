"""adapter: y + B (A x), and nothing else."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import assert_gradients
from zamba_lm.ops.adapter import adapter

NAMES = ("y", "x", "A", "B")


def make(total=5, rank=3, dtype=torch.float32):
    """y_TO, x_TI, A_RI, B_OR with O = 11 and I = 7"""
    g = torch.Generator().manual_seed(total + rank)
    y, x = torch.randn(total, 11, generator=g), torch.randn(total, 7, generator=g)
    A, B = torch.randn(rank, 7, generator=g) / 7**0.5, torch.randn(11, rank, generator=g) / rank**0.5
    return tuple(v.to(dtype) for v in (y, x, A, B))


def naive(y, x, A, B):
    """The correction as one dense matrix: no scaling, no bias."""
    y, x, A, B = (v.double() for v in (y, x, A, B))
    return y + x @ (B @ A).T


@pytest.mark.parametrize("total", [1, 2, 65])
@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_low_rank_correction(total, rank, dtype):
    inputs = make(total, rank, dtype)
    before = inputs[0].clone()
    y = adapter(*inputs)
    assert y.dtype == dtype
    assert_within("op", y, naive(*inputs))
    assert torch.equal(inputs[0], before), "y was written to"


def test_without_a_correction_nothing_changes():
    y, x, A, B = make()
    assert torch.equal(adapter(y, x, A, 0 * B), y)


def test_gradients():
    inputs = dict(zip(NAMES, make(), strict=True))
    assert_gradients(lambda **i: [adapter(*i.values())], lambda **i: [naive(*i.values())], inputs)
