"""xent's Triton kernel through the interpreter: what tests/ops/test_xent.py asks of the reference, with chunks and long rows."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.test_xent import actual, expected, make
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.xent import triton as ours
from zamba_lm.ops.xent import xent

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_xent_cuda.py runs the real kernels")


@pytest.fixture(autouse=True)
def through_the_interpreter():
    with interpreted(), force(xent="triton"):
        yield


def assert_right(inputs, scale=1.0):
    for got, right in zip(actual(*inputs, scale), expected(*inputs, scale), strict=True):
        assert_within("gradient", got, right, dtype=inputs[0].dtype)


@pytest.mark.parametrize("total", [1, 2, 65])
@pytest.mark.parametrize("vocabulary", [2, 128, 500])
def test_value_and_gradients(total, vocabulary):
    with record() as calls:
        assert_right(make(total, vocabulary=vocabulary, ignored=range(0, total, 7)), scale=0.5)
    assert calls == [("xent", "triton")]


@pytest.mark.parametrize("tokens", [13, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_do_not_matter(tokens, dtype, monkeypatch):
    monkeypatch.setattr(ours, "chunk", lambda *_: tokens)
    x, weight, targets = make(65, dtype=dtype, ignored=(0, 63, 64))
    loss, dx, dweight = actual(x, weight, targets)
    right, right_dx, right_dweight = expected(x, weight, targets)
    assert abs(loss / right - 1) < (1e-5 if dtype == torch.float32 else 5e-3)
    assert dx.dtype == dweight.dtype == dtype
    assert_within("gradient", dx, right_dx)
    assert_within("gradient", dweight, right_dweight)


def test_rows_too_long_for_registers(monkeypatch):
    monkeypatch.setattr(ours, "WHOLE", 128)
    assert_right(make(10, vocabulary=500, ignored=(3,)))


def test_large_logits():
    x, weight, targets = make(20, vocabulary=130)
    assert_right((300 * x, weight, targets))


@pytest.mark.parametrize("mark", [-1, -100])
def test_an_ignored_target_gives_zeros_whatever_stands_there(mark):
    x, weight, targets = make(5, ignored=(2,))
    x[2] = torch.nan
    loss, dx, _ = actual(x, weight, torch.where(targets < 0, mark, targets))
    assert loss.isfinite() and torch.equal(dx[2], torch.zeros(6))


def test_nothing_to_predict_costs_nothing():
    x, weight, targets = make(3)
    loss, dx, dweight = actual(x[:0], weight, targets[:0])
    assert loss == 0 and dx.shape == (0, 6) and torch.equal(dweight, torch.zeros_like(weight))


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_a_gradient_alone_is_the_one_of_both(frozen):
    x, weight, targets = make(9)
    _, dx, dweight = actual(x, weight, targets)
    x.requires_grad_(frozen != "x")
    weight.requires_grad_(frozen != "weight")
    xent(x, weight, targets).backward()
    moving, gradient = (weight, dweight) if frozen == "x" else (x, dx)
    assert torch.equal(moving.grad, gradient)
    assert (x if frozen == "x" else weight).grad is None


def test_without_gradients_the_logits_are_left_alone():
    x, weight, targets = make(40, ignored=(1,))
    right, _, _ = expected(x, weight, targets)
    with torch.no_grad():
        assert_within("gradient", xent(x, weight.requires_grad_(), targets), right)


def test_what_cannot_be_multiplied_is_named():
    x, weight, targets = make(5)
    with pytest.raises(TypeError, match=r"x is torch.float64, expected one of torch.float32"):
        xent(x.double(), weight.double(), targets)


def test_chunks_are_powers_of_two_within_bounds():
    assert [ours.chunk(V, D, 2) for V, D in ((32000, 2560), (32000, 384), (256000, 384), (10**6, 384))] == [
        4096,
        16384,
        2048,
        1024,
    ]
