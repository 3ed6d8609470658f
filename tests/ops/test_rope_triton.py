"""rope's kernel through Triton's interpreter."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.rope import angles, rope

pytest.importorskip("triton")


def by(name, x, turns):
    with interpreted(), force(rope=name):
        return rope(x, turns)


@pytest.mark.parametrize("width", [2, 8, 80, 224])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference(width, dtype):
    """x as a model passes it: a view of some heads of a wider row; positions need not ascend."""
    positions = [0, 1, 2, 17, 0, 1, 64]
    rows = torch.randn(7, 5, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    x, turns = rows[:, 1:4], angles(torch.tensor(positions), width, 1e4)
    y = by("triton", x, turns)
    assert y.dtype == dtype
    assert_within("op", y, by("reference", x.double(), turns))
    assert torch.equal(y[0], x[0])


def test_gradients():
    turns = angles(torch.tensor([5, 6, 7]), 8, 1e4)
    given = torch.randn(2, 3, 2, 8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for name in ("reference", "triton"):
        x = given[0].clone().requires_grad_()
        gradients.append(torch.autograd.grad(by(name, x, turns), x, given[1])[0])
    assert_within("gradient", *gradients)
