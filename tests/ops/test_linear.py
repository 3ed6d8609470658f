"""linear: a packed weight is the same weight, or there is a reason why it cannot be packed."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from zamba_lm.errors import ZambaError
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.linear import can_pack, linear, pack, unpack
from zamba_lm.ops.linear.cpu import FEW_ROWS, SMALLEST, no_packing

CPU = torch.device("cpu")
REASON = no_packing(CPU)  # None where this machine packs
SHAPES = [(1, 1), (7, 5), (64, 48), (130, 257)]  # (I, O)


def make(total, d_in, d_out, dtype=torch.bfloat16):
    g = torch.Generator().manual_seed(total + d_in)
    return torch.randn(total, d_in, generator=g).to(dtype), (torch.randn(d_out, d_in, generator=g) / d_in**0.5).to(dtype)


@pytest.mark.parametrize("total", [1, 2, 3, 16, 65])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products(total, shape, dtype):
    x, weight = make(total, *shape, dtype)
    y = linear(x, weight)
    assert y.dtype == dtype
    assert_within("op", y, x.double() @ weight.double().T)


@pytest.mark.parametrize("total", [1, 2, 3, 16, 65])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_is_plain_bit_for_bit(total, shape):
    x, weight = make(total, *shape)
    if REASON:
        assert_cannot_pack(weight)
        return
    packed, scale = pack(weight)
    assert scale is None, "random numbers do not fit eight bits"
    with record() as calls:
        y = linear(x, packed)
    assert calls == [("linear", "onednn")]
    assert torch.equal(y, linear(x, weight))
    with force(linear="reference"):
        assert torch.equal(linear(x, packed), y)


@pytest.mark.parametrize("shape", SHAPES)
def test_packing_keeps_every_number(shape):
    _, weight = make(1, *shape)
    if REASON:
        assert_cannot_pack(weight)
        return
    packed, scale = pack(weight)
    assert packed.is_mkldnn and packed.shape == weight.shape and packed.dtype == weight.dtype
    assert torch.equal(unpack(packed, scale), weight)
    assert torch.equal(unpack(*pack(weight.T.contiguous().T)), weight), "a weight with odd strides"


def test_a_leading_shape_is_kept():
    """The same for a packed weight; a model may hand over rows (B, T, I)."""
    x, weight = make(6, 7, 5)
    y = linear(x.unflatten(0, (2, 3)), weight)
    assert y.shape == (2, 3, 5)
    if REASON:
        assert_cannot_pack(weight)
    else:
        assert torch.equal(linear(x.unflatten(0, (2, 3)), *pack(weight)), y)


def assert_cannot_pack(weight):
    """Where a machine cannot pack, it says why and computes without."""
    assert not can_pack(weight)
    with pytest.raises(ZambaError, match="op linear cannot run as onednn on cpu: this processor has no bfloat16 products"):
        with force(linear="onednn"):
            linear(weight, weight)
    with record() as calls:
        linear(weight, weight)
    assert calls == [("linear", "reference")]


def test_what_can_be_packed():
    weight = torch.zeros(3, 4, dtype=torch.bfloat16)
    assert can_pack(weight) == (REASON is None)
    assert not can_pack(weight.float())
    assert not can_pack(weight.half())
    assert not can_pack(weight.to("meta"))
    if REASON is None:
        assert not can_pack(pack(weight)[0]), "a weight is packed once"


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_other_devices_have_a_reason(device):
    assert no_packing(torch.device(device)) == "packs weights for CPUs"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype):
    x, weight = (v.requires_grad_() for v in make(5, 7, 3, dtype))
    linear(x, weight).sum().backward()
    assert_within("gradient", x.grad, weight.detach().double().sum(0).expand(5, 7))
    assert_within("gradient", weight.grad, x.detach().double().sum(0).expand(3, 7))


def eight_bit_weight(d_out, d_in):
    """Whole numbers up to 127 times a power of two a row, one row all zeros."""
    g = torch.Generator().manual_seed(d_out)
    codes = torch.randint(-127, 128, (d_out, d_in), generator=g)
    codes[:, 0] = 127
    codes[1] = 0
    scales = 2.0 ** torch.randint(-12, 3, (d_out, 1), generator=g)
    return (codes * scales).bfloat16(), codes


@pytest.mark.parametrize("total", [1, 2, FEW_ROWS, FEW_ROWS + 1, 65])
def test_eight_bits_are_found_and_lose_nothing(total):
    weight, codes = eight_bit_weight(300, SMALLEST // 256)
    x, _ = make(total, weight.shape[1], 1)
    if REASON:
        assert_cannot_pack(weight)
        return
    packed, scale = pack(weight)
    assert packed.dtype == torch.int8 and torch.equal(packed.long(), codes)
    assert torch.equal(unpack(packed, scale), weight)
    y = linear(x, packed, scale)
    assert y.dtype == torch.bfloat16 and y.shape == (total, 300)
    assert_within("op", y, x.double() @ weight.double().T)
    assert torch.equal(linear(x.unflatten(0, (total, 1)), packed, scale)[:, 0], y)
    with force(linear="reference"):
        assert_within("op", linear(x, packed, scale), x.double() @ weight.double().T)


def test_one_number_that_does_not_fit_keeps_sixteen_bits():
    weight, _ = eight_bit_weight(300, SMALLEST // 256)
    weight[7, 9] += weight[7].abs().max() / 127 / 2
    if REASON:
        assert_cannot_pack(weight)
        return
    packed, scale = pack(weight)
    assert scale is None and torch.equal(unpack(packed), weight)


def test_small_weights_keep_sixteen_bits():
    weight, _ = eight_bit_weight(8, 16)
    assert REASON or pack(weight)[1] is None
