"""linear: right for any number of rows, and a packed weight is the same weight."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.linear import can_pack, cpu, linear, pack, unpack
from zamba_lm.ops.linear.cpu import FEW_ROWS, MANY_ROWS, SMALLEST, no_cpu

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


@pytest.mark.parametrize("widens", [True, False])
@pytest.mark.parametrize("total", [MANY_ROWS - 1, MANY_ROWS, 65])
@pytest.mark.parametrize("piece", [1, 64, cpu.PIECE])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_rows_in_pieces(total, piece, threads, widens, monkeypatch):
    """Whole pieces, a last one that is short, a single one; as many rows as threads can share evenly, and more; and as processors
    multiply that gain nothing by it."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu, "PIECE", piece)
    monkeypatch.setattr(cpu, "WIDENS", widens)
    x, weight = make(total, 64, 200)
    y = linear(x, weight)
    assert y.dtype == torch.bfloat16 and y.is_contiguous()
    assert_within("op", y, x.double() @ weight.double().T)
    assert torch.equal(linear(x.unflatten(0, (1, total)), weight), y[None])


def test_many_rows_keep_their_gradients():
    x, weight = (v.requires_grad_() for v in make(MANY_ROWS, 7, 3))
    linear(x, weight).sum().backward()
    assert_within("gradient", x.grad, weight.detach().double().sum(0).expand(MANY_ROWS, 7))
    assert_within("gradient", weight.grad, x.detach().double().sum(0).expand(3, 7))


def test_a_leading_shape_is_kept():
    """A model may hand over rows (B, T, I)."""
    x, weight = make(6, 7, 5)
    y = linear(x, weight)
    assert torch.equal(linear(x.unflatten(0, (2, 3)), weight), y.unflatten(0, (2, 3)))


def test_what_can_be_packed():
    weight = torch.zeros(3, 4, dtype=torch.bfloat16)
    assert can_pack(weight) and not any(can_pack(other) for other in (weight.float(), weight.half(), weight.to("meta")))
    assert not can_pack(weight.to(torch.int8)), "a weight is packed once"


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_other_devices_have_a_reason(device):
    assert no_cpu(torch.device(device)) == "reads weights as CPUs do"


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
@pytest.mark.parametrize("widens", [True, False])
def test_eight_bits_are_found_and_lose_nothing(total, widens, monkeypatch):
    monkeypatch.setattr(cpu, "WIDENS", widens)
    weight, codes = eight_bit_weight(300, SMALLEST // 256)
    x, _ = make(total, weight.shape[1], 1)
    packed, scale = pack(weight)
    assert packed.dtype == torch.int8 and torch.equal(packed.long(), codes)
    assert torch.equal(unpack(packed, scale), weight)
    with record() as calls:
        y = linear(x, packed, scale)
    assert calls == [("linear", "cpu")]
    assert y.dtype == torch.bfloat16 and y.shape == (total, 300)
    assert_within("op", y, x.double() @ weight.double().T)
    assert torch.equal(linear(x.unflatten(0, (total, 1)), packed, scale)[:, 0], y)
    with force(linear="reference"):
        assert_within("op", linear(x, packed, scale), x.double() @ weight.double().T)


def test_a_weight_with_odd_strides_is_packed():
    weight, codes = eight_bit_weight(300, SMALLEST // 256)
    packed, scale = pack(weight.T.contiguous().T)
    assert torch.equal(packed.long(), codes) and torch.equal(unpack(packed, scale), weight)


def test_one_number_that_does_not_fit_keeps_sixteen_bits():
    weight, _ = eight_bit_weight(300, SMALLEST // 256)
    weight[7, 9] += weight[7].abs().max() / 127 / 2
    packed, scale = pack(weight)
    assert scale is None and packed.data_ptr() == weight.data_ptr(), "it stays where it is, the view of a file, say"


def test_small_weights_keep_sixteen_bits():
    weight, _ = eight_bit_weight(8, 16)
    assert pack(weight)[1] is None


@pytest.mark.parametrize("columns", [257, 264])
def test_rows_that_the_kernel_would_read_past_keep_sixteen_bits(columns):
    weight, _ = eight_bit_weight(300, columns)
    assert pack(weight)[1] is None
