"""What projections leave to whoever reads them: sums to a norm, half of a norm, all of themselves."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.mixers import Mamba2Token
from tests.ops.test_linear_fused import naive, naive_gated, randn
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.linear import Normed, Squares, Unmade, Unsummed, gated_linear, linear, made, summed
from zamba_lm.ops.step import mamba2_step

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["reference", "triton"])
def way(request):
    if request.param == "reference":
        with force(linear="reference", gated_linear="reference", norm="reference", mamba2_step="reference"):
            yield request.param
    else:
        pytest.importorskip("triton")
        with interpreted(), force(linear="triton", gated_linear="triton", norm="reference", mamba2_step="triton"):
            yield request.param


def squares(x, eps=1e-5):
    """x in two halves each, as two programs would add up."""
    return Squares(x.float().unflatten(-1, (2, -1)).square().sum(-1), x.shape[-1], eps)


def halves(dtype, rows=5, width=44, **how):
    """A sum of 37 numbers a row that is still to be made, and what it is in float64."""
    parts, x = randn(3, rows, 37), randn(rows, width, seed=1)
    residual = randn(rows, 40, seed=2, dtype=dtype)[:, 3:] if how.get("residual") else None
    left = squares(x) if how.get("squares") else None
    total = parts.double().sum(0)
    if left is not None:
        total = total * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return Unsummed(parts, residual, left, dtype), total if residual is None else total + residual.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", [{}, {"residual": True}, {"squares": True}, {"residual": True, "squares": True}])
def test_a_norm_makes_the_sum_on_its_way(way, dtype, how):
    later, total = halves(dtype, **how)
    beside, weight = randn(5, 20, seed=3, dtype=dtype), randn(11, 57, dtype=dtype) / 8
    norm = Normed(1 + randn(57, dtype=dtype) / 4, 1e-5)
    with interpreted():
        y = linear((later, beside), weight, norm=norm)
    assert_within("op", later.made_TO, total)
    assert_within("op", y, naive((later.made_TO, beside), weight, norm))
    twin, _ = halves(dtype, **how)
    assert_within("op", twin.sum(), total)
    assert summed(twin) is twin.sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_whoever_comes_finds_the_sum(way, dtype):
    """A norm in groups, no norm, a gate, a residual; and afterwards the same tensor."""
    weight, norm = randn(10, 36, dtype=dtype) / 6, Normed(1 + randn(36, dtype=dtype) / 4, 1e-5, 2)
    parts = randn(1, 5, 36, dtype=dtype)
    for read in (lambda x: linear(x, weight, norm=norm), lambda x: linear(x, weight), lambda x: gated_linear(x, weight)):
        assert torch.equal(read(Unsummed(parts, None, None, dtype)), read(parts[0]))
    later = Unsummed(parts, None, None, dtype)
    assert later.shape == (5, 36) and later.device == parts.device
    with interpreted():
        y = gated_linear(later, weight, norm=Normed(norm.weight_I, 1e-5))
    assert_within("op", y, naive_gated(parts[0], weight, Normed(norm.weight_I, 1e-5)))
    x, square = randn(5, 20, dtype=dtype), randn(36, 20, dtype=dtype) / 4
    assert torch.equal(linear(x, square, residual_TO=later), linear(x, square, residual_TO=later.made_TO))


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_half_of_a_norm(way, dtype, later):
    x, norm = randn(5, 44), Normed(1 + randn(44, dtype=dtype) / 4, 1e-5)
    weight, residual = randn(37, 44, dtype=dtype) / 8, randn(5, 37, seed=1, dtype=dtype)
    begun = (x * norm.weight_I).to(dtype)
    y = linear(begun, weight, norm=squares(x), residual_TO=residual, overwrite=True, later=later)
    assert (type(y) is Unsummed) == (later and way == "triton")
    assert_within("op", summed(y), naive(x, weight, norm, randn(5, 37, seed=1, dtype=dtype)), dtype=dtype)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("rows", [3, 9])
def test_a_step_begins_its_norm_and_makes_its_input(way, rows, groups):
    """Nine rows take two kernels, of which the second may begin a norm over all channels."""
    token = Mamba2Token(rows, groups=groups)
    width = token.state[0, ..., 0].numel()
    expected, window, state = token.definition()
    norm = Normed(1 + randn(width) / 4, 1e-5, groups)
    unmade = Unmade(token.h, torch.eye(token.h.shape[1]), None, None)
    assert unmade.shape == token.h.shape and torch.equal(made(unmade), token.h)
    y, left = mamba2_step(unmade, token.window, token.state, token.constants, groups, token.dt_limit, norm=norm)
    assert (type(left) is Squares) == (way == "triton" and rows == 9 and groups == 1)
    assert_within("op", left(y), naive(expected, torch.eye(width), norm))
    assert_within("state", token.state, state)
    assert torch.equal(token.window.double(), window)
