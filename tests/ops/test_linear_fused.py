"""linear with what stands next to it: two inputs side by side, a norm before, a residual after, a gate."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.gradients import assert_gradients
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.linear import Normed, can_pack, gated_linear, linear, pack

DTYPES = [torch.float32, torch.bfloat16]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def normed(x, weight, eps, groups):
    parts = x.view(*x.shape[:-1], groups, -1)
    return (parts / (parts.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(-2) * weight


def naive(x, weight, norm=None, residual=None):
    x = torch.cat(x, -1) if isinstance(x, tuple) else x
    if norm is not None:
        x = normed(x.double(), norm.weight_I.double(), norm.eps, norm.groups)
    y = x.double() @ weight.double().T
    return y if residual is None else y + residual.double()


def naive_gated(x, weight, norm=None, adapter=None):
    y = naive(x, weight, norm)
    if adapter is not None:
        A, B = (v.double() for v in adapter[:2])
        y = y + naive(x, B @ A, norm)
    gate, up = y.chunk(2, -1)
    return torch.nn.functional.gelu(gate) * up


@pytest.mark.parametrize("total", [1, 2, 65])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3])
def test_side_by_side_normed_with_residual(total, dtype, groups):
    x = randn(total, 7, dtype=dtype), randn(total, 5, dtype=dtype)
    weight, norm = randn(11, 12, dtype=dtype) / 3, Normed(1 + randn(12, dtype=dtype) / 4, 1e-5, groups)
    residual = randn(total, 11, seed=1, dtype=dtype)
    before = residual.clone()
    y = linear(x, weight, norm=norm, residual_TO=residual)
    assert y.dtype == dtype
    assert_within("op", y, naive(x, weight, norm, residual))
    assert torch.equal(residual, before), "the residual was written to"
    assert_within("op", linear(torch.cat(x, -1), weight, norm=norm), naive(x, weight, norm))
    assert_within("op", linear(x, weight), naive(x, weight))


@pytest.mark.parametrize("total", [1, 2, 65])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_gated(total, dtype, with_adapter):
    x, weight = randn(total, 12, dtype=dtype), randn(14, 12, dtype=dtype) / 3
    norm = Normed(1 + randn(12, dtype=dtype) / 4, 1e-5)
    adapter = (randn(3, 12, dtype=dtype) / 3, randn(14, 3, dtype=dtype) / 2, None, None) if with_adapter else None
    y = gated_linear(x, weight, norm=norm, adapter=adapter)
    assert y.shape == (total, 7) and y.dtype == dtype
    assert_within("op", y, naive_gated(x, weight, norm, adapter), dtype=dtype)


@pytest.mark.parametrize("total", [1, 65])
def test_packed_weights(total):
    """The same numbers through packed weights, or through plain ones where a machine cannot pack."""
    dtype = torch.bfloat16
    x, weight, residual = randn(total, 12, dtype=dtype), randn(14, 12, dtype=dtype) / 3, randn(total, 14, seed=1, dtype=dtype)
    A, B = randn(3, 12, dtype=dtype) / 3, randn(14, 3, dtype=dtype) / 2
    norm = Normed(1 + randn(12, dtype=dtype) / 4, 1e-5)
    plain = [(w, None) for w in (weight, A, B)]
    (w, scale), (a, a_scale), (b, b_scale) = [pack(w) for w, _ in plain] if can_pack(weight) else plain
    y = linear(x, w, scale, norm=norm, residual_TO=residual)
    assert torch.equal(y, linear(x, weight, norm=norm, residual_TO=residual))
    y = gated_linear(x, w, scale, norm=norm, adapter=(a, b, a_scale, b_scale))
    assert torch.equal(y, gated_linear(x, weight, norm=norm, adapter=(A, B, None, None)))


def test_more_axes():
    x, weight, residual = randn(6, 12), randn(14, 12), randn(6, 14, seed=1)
    fold = lambda v: v.unflatten(0, (2, 3))  # noqa: E731
    y = linear((fold(x[:, :5]), fold(x[:, 5:])), weight, residual_TO=fold(residual))
    assert torch.equal(y, fold(linear((x[:, :5], x[:, 5:]), weight, residual_TO=residual)))
    assert torch.equal(gated_linear(fold(x), weight), fold(gated_linear(x, weight)))


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients(groups):
    inputs = {"x": randn(5, 12), "w": randn(14, 12) / 3, "n": 1 + randn(12) / 4, "r": randn(5, 14, seed=1)}

    def function(x, w, n, r):
        return [linear(x, w, norm=Normed(n, 1e-5, groups), residual_TO=r)]

    assert_gradients(function, lambda x, w, n, r: [naive(x, w, Normed(n, 1e-5, groups), r)], inputs)


def test_gated_gradients():
    inputs = {"x": randn(5, 12), "w": randn(14, 12) / 3, "n": 1 + randn(12) / 4, "A": randn(3, 12) / 3, "B": randn(14, 3) / 2}

    def function(x, w, n, A, B):
        return [gated_linear(x, w, norm=Normed(n, 1e-5), adapter=(A, B, None, None))]

    assert_gradients(function, lambda x, w, n, A, B: [naive_gated(x, w, Normed(n, 1e-5), (A, B))], inputs)


def test_what_does_not_fit():
    x, weight, norm = randn(2, 12), randn(14, 12), Normed(randn(12), 1e-5)
    with pytest.raises(ValueError, match=r"x \(2, 12\) and \(2, 3\) does not fit a weight \(14, 12\)"):
        linear((x, x[:, :3]), weight)
    with pytest.raises(ValueError, match="a norm of .5,. in 1 groups does not fit rows of 12"):
        linear(x, weight, norm=Normed(norm.weight_I[:5], 1e-5))
    with pytest.raises(ValueError, match="in 5 groups does not fit rows of 12"):
        gated_linear(x, weight, norm=Normed(norm.weight_I, 1e-5, 5))
    with pytest.raises(ValueError, match=r"residual \(2, 13\) does not fit the product \(2, 14\)"):
        linear(x, weight, norm=norm, residual_TO=randn(2, 13))
    with pytest.raises(ValueError, match="a weight of 13 rows has no gate and up"):
        gated_linear(x, weight[:13])


def test_the_reference_does_all_of_it():
    x, weight, norm = randn(2, 12), randn(14, 12), Normed(randn(12), 1e-5, 2)
    with force(linear="reference", gated_linear="reference"):
        assert_within("op", linear(x, weight, norm=norm), naive(x, weight, norm))
        assert_within("op", gated_linear(x, weight / 3, norm=norm), naive_gated(x, weight / 3, norm))
