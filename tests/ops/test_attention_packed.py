"""Attention of packed documents with gradients: ours through Triton's interpreter, beside the definition in float64."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.bfloat16 import bfloat16_products  # noqa: F401
from zamba_lm.ops.attention import self_attention
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.rope import angles

pytest.importorskip("triton")
from zamba_lm.ops.attention.triton import packed

F32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def kernels():
    with interpreted():
        yield


def definition(qkv, scale, lengths, turns):
    q, k, v = qkv.unbind(1)
    if turns is not None:
        q, k = (turned(x, *turns) for x in (q, k))
    return torch.cat([naive.attention(*(x[i : i + n] for x in (q, k, v)), scale) for i, n in starts(lengths)])


def starts(lengths):
    return [(sum(lengths[:s]), n) for s, n in enumerate(lengths)]


def turned(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize(("width", "turn", "lengths"), [(64, True, (3, 140, 1)), (64, False, (65,)), (128, True, (64, 63))])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_values_and_gradients(width, turn, lengths, dtype):
    packing = Packing(lengths)
    g = torch.Generator().manual_seed(width)
    qkv = torch.randn(sum(lengths), 3, 2, width, generator=g).to(dtype).requires_grad_()
    turns = angles(packing.positions(), width, 1e4) if turn else None
    y = packed.packed_attention(qkv, width**-0.5, packing, turns)
    weights = torch.randn(y.shape, generator=g).to(dtype)
    y.backward(weights)
    wide = qkv.detach().double().requires_grad_()
    expected = definition(wide, width**-0.5, lengths, turns)
    expected.backward(weights.double())
    assert y.dtype == qkv.grad.dtype == dtype
    assert_within("op", y, expected)
    assert_within("gradient", qkv.grad, wide.grad)


def test_documents_do_not_see_each_other():
    qkv = torch.randn(40, 3, 2, 64)
    found = []
    for bad in (False, True):
        given = qkv.clone()
        if bad:
            given[10:17] = torch.nan
        given.requires_grad_()
        packed.packed_attention(given, 0.1, Packing((10, 7, 23)), None).sum().backward()
        found.append(given.grad)
    clean, poisoned = found
    assert poisoned[10:17].isnan().all()
    assert torch.equal(poisoned[:10], clean[:10]) and torch.equal(poisoned[17:], clean[17:])


def test_which_route_is_taken():
    qkv, packing = torch.randn(9, 3, 2, 64).to(BF16).requires_grad_(), Packing((4, 5))
    with force(self_attention="triton", attention="triton"):
        with record() as calls:
            y = self_attention(qkv, 0.1, packing)
        assert calls == [("self_attention", "triton")] and type(y.grad_fn).__name__ == "_PackedBackward"
        with record() as calls, torch.no_grad():
            self_attention(qkv, 0.1, packing)
        assert calls == [("self_attention", "triton"), ("attention", "triton")]
    with force(attention="reference"), record() as calls:
        self_attention(qkv, 0.1, packing)
    assert calls == [("attention", "reference")]


def test_a_shape_that_does_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        self_attention(torch.randn(9, 2, 2, 64), 0.1, Packing((9,)))
