"""The projections while training: weights cast once a pass, gradients added up in one place, nothing kept for frozen weights."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.numerics.tolerances import assert_within
from tests.ops.bfloat16 import bfloat16_products  # noqa: F401
from tests.ops.gradients import gradients
from tests.ops.test_linear_fused import naive, naive_gated, randn
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.linear import Normed, gated_linear, linear, one_pass
from zamba_lm.ops.linear.weights import operand

pytest.importorskip("triton")
from zamba_lm.ops.linear.triton import train
from zamba_lm.ops.linear.triton.unprepare import unprepare

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def triton_on_cpu():
    with interpreted(), force(linear="triton", gated_linear="triton", norm="reference"):
        yield


def test_a_weight_is_cast_once_a_pass():
    w = randn(6, 4).requires_grad_()
    with one_pass():
        first, second = operand(w, BF16), operand(w, BF16)
        assert first[0] is second[0] and first[1] is second[1] and first[0].dtype == BF16
    with one_pass():
        assert operand(w, BF16)[0] is not first[0]
    assert operand(w, BF16)[0] is not operand(w, BF16)[0]


def test_frozen_weights_have_no_sum():
    w = randn(6, 4)
    with one_pass():
        assert operand(w, BF16)[1] is None and operand(w, F32)[0].data_ptr() == w.data_ptr()
    w.requires_grad_()
    with one_pass():
        with torch.no_grad():
            assert operand(w, BF16)[1] is None
        assert operand(w, BF16)[1] is not None


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_a_shared_weight_adds_up_its_uses(passes, plain):
    """Three products, and where ``plain`` also a use that knows nothing of sums; backward twice, as with accumulated steps."""
    w, x = randn(6, 4).requires_grad_(), randn(5, 4)

    def loss(w, product):
        y = product(product(product(x, w) @ randn(6, 4), w) @ randn(6, 4, seed=1), w)
        return y.square().sum() + (w.pow(3).sum() if plain else 0)

    def run():
        return loss(w, lambda x, w: linear(x, w))

    for _ in range(2):
        if passes:
            with one_pass():
                total = run()
        else:
            total = run()
        total.backward()
    other = w.detach().clone().requires_grad_()
    (2 * loss(other, lambda x, w: x @ w.T)).backward()
    torch.testing.assert_close(w.grad, other.grad)


def test_a_pass_that_is_gone_back_through_twice():
    w, x = randn(6, 4).requires_grad_(), randn(5, 4).requires_grad_()
    with one_pass():
        total = linear(x, w).sum() + linear(2 * x, w).sum()
    (alone,) = torch.autograd.grad(total, x, retain_graph=True)  # leaves the weight's sum unfinished
    total.backward()
    torch.testing.assert_close(x.grad, alone)
    torch.testing.assert_close(w.grad, (3 * x.detach().sum(0)).expand(6, 4))


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("residual_dtype", [F32, BF16, None])
def test_autocast(pair, residual_dtype):
    """float32 parameters, products in bfloat16, a residual stream of either kind: gradients in each input's own dtype."""
    inputs = {"x": randn(9, 12), "w": randn(14, 12) / 3, "n": 1 + randn(12) / 4}
    if residual_dtype is not None:
        inputs["r"] = randn(9, 14, seed=1)

    def run(x, w, n, r=None):
        with torch.autocast("cpu", BF16):
            x = (x[:, :5], x[:, 5:]) if pair else x
            y = linear(x, w, norm=Normed(n, 1e-5), residual_TO=None if r is None else r.to(residual_dtype))
        assert y.dtype == (residual_dtype or BF16)
        return [y.float()]

    actual = gradients(run, inputs)
    expected = gradients(lambda x, w, n, r=None: [naive(x, w, Normed(n, 1e-5), r)], {k: v.double() for k, v in inputs.items()})
    for name in inputs:
        assert actual[name].dtype == F32
        assert_within("gradient", actual[name], expected[name], dtype=BF16)


@pytest.mark.parametrize(("widths", "more"), [((6, 6), False), ((6, 6), True), ((10,), True)])
def test_back_through_the_norm_of_more_rows_than_programs(widths, more):
    """Rows are asked for one ahead, in tiles of which one holds the border of both inputs; another gradient of x is added."""
    T, width = 70, sum(widths)
    inputs = [randn(T, w, seed=i).requires_grad_() for i, w in enumerate(widths)]
    gain, d, other = (1 + randn(width) / 4).requires_grad_(), randn(T, width, seed=2), randn(T, widths[0], seed=3)
    y = naive(tuple(inputs), torch.eye(width), Normed(gain, 1e-5))
    wanted = torch.autograd.grad((y * d).sum() + (inputs[0] * other).sum() * more, [*inputs, gain])
    x, x2 = (*inputs, None)[:2]
    found = unprepare(d, x.detach(), None if x2 is None else x2.detach(), gain.detach(), 1e-5, other if more else None)
    for actual, expected in zip((g for g in found if g is not None), wanted, strict=True):
        assert_within("gradient", actual, expected)


@pytest.mark.parametrize("merged", [1, 1000])
@pytest.mark.parametrize("frozen", ["", "w", "AB"])
def test_adapters_added_to_the_weight_or_to_the_product(monkeypatch, merged, frozen):
    """Many tokens merge an adapter into its weight first: the same gradients, whichever of them are wanted."""
    monkeypatch.setattr(train, "MERGED", merged)
    inputs = {"x": randn(30, 12), "w": randn(14, 12) / 3, "n": 1 + randn(12) / 4, "A": randn(3, 12) / 3, "B": randn(14, 3) / 2}
    still = {name: inputs.pop(name) for name in [*inputs] if name in frozen}

    def run(norm=Normed, **given):
        given = {**given, **{name: value.to(given["x"].dtype) for name, value in still.items()}}
        adapter = (given["A"], given["B"], None, None)
        if norm is None:
            return [naive_gated(given["x"], given["w"], Normed(given["n"], 1e-5), adapter)]
        return [gated_linear(given["x"], given["w"], norm=Normed(given["n"], 1e-5), adapter=adapter)]

    actual = gradients(run, inputs)
    expected = gradients(lambda **given: run(None, **given), {name: value.double() for name, value in inputs.items()})
    for name in inputs:
        assert_within("gradient", actual[name], expected[name])


def test_rows_are_padded_in_memory():
    y = linear(randn(3, 8).requires_grad_(), randn(13, 8))
    assert y.shape == (3, 13) and y.stride() == (16, 1)


@pytest.mark.parametrize("trained", ["x", "w"])
def test_what_is_kept(trained):
    """With a frozen weight no input of the product, with a frozen input no weight."""
    x, w, n = randn(9, 12), randn(14, 12), torch.ones(12)
    (x if trained == "x" else w).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda v: kept.append(tuple(v.shape)) or v, lambda v: v):
        linear(x, w, norm=Normed(n, 1e-5))
    assert sorted(kept) == ([(9, 12), (12,), (14, 12)] if trained == "x" else [(9, 12)])


def test_a_product_at_the_end_of_what_is_recomputed_is_made_once(monkeypatch):
    made, w, x, residual = [], randn(6, 4).requires_grad_(), randn(5, 4).requires_grad_(), randn(5, 6).requires_grad_()
    monkeypatch.setattr(train, "times", lambda *given, times=train.times: made.append(given) or times(*given))

    def last(x, residual):
        return linear(x.sin(), w, residual_TO=residual)

    def found(run):
        return torch.autograd.grad(run(x, residual).square().sum(), (x, w, residual))

    expected = found(lambda x, residual: x.sin() @ w.T + residual)
    once = found(lambda *given: checkpoint(last, *given, use_reentrant=False))
    assert len(made) == 1
    for a, b in zip(once, expected, strict=True):
        assert_within("op", a, b)
