"""The convolution's kernels, through Triton's interpreter: values, windows, gradients, sequences kept apart."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import assert_gradients
from tests.ops.test_conv import make
from zamba_lm.ops.conv import conv
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.packing import Packing

PACKED = ((1,), (2,), (63,), (64,), (65,), (1, 2, 2, 16, 15, 3, 1, 40))


@pytest.fixture(autouse=True)
def triton_here():
    pytest.importorskip("triton")
    with interpreted(), force(conv="triton"):
        yield


def definition(lengths):
    return lambda x, weight, bias, window=None: naive.each(
        lambda x, w=None: naive.conv(x, weight, bias, w), lengths, (x,), window
    )


@pytest.mark.parametrize("lengths", PACKED)
@pytest.mark.parametrize(("width", "dtype"), [(4, torch.float32), (4, torch.bfloat16)])
def test_the_explicit_loop(lengths, width, dtype):
    check(lengths, width, dtype)


@pytest.mark.parametrize(("width", "dtype"), [(2, torch.float16), (5, torch.float32)])
def test_other_widths(width, dtype):
    check((1, 2, 36, 3), width, dtype)


def check(lengths, width, dtype):
    x, weight, bias, window = make(sum(lengths), width=width, sequences=len(lengths), dtype=dtype)
    for given in (None, window):
        y, after = conv(x, weight, bias, Packing(lengths), given)
        expected, last = definition(lengths)(x, weight, bias, given)
        assert y.dtype == after.dtype == dtype
        assert_within("op", y, expected)
        assert torch.equal(after.double(), last)


def test_nan_stays_in_its_sequence():
    lengths = PACKED[-1]
    x, weight, bias, window = make(sum(lengths), sequences=len(lengths))
    clean, clean_after = conv(x, weight, bias, Packing(lengths), window)
    for bad in (3,):
        poisoned, poisoned_window = [*x.clone().split(lengths)], window.clone()
        poisoned[bad][:], poisoned_window[bad] = torch.nan, torch.nan
        y, after = conv(torch.cat(poisoned), weight, bias, Packing(lengths), poisoned_window)
        for s, (now, before) in enumerate(zip(y.split(lengths), clean.split(lengths), strict=True)):
            assert now.isnan().all() if s == bad else torch.equal(now, before)
            assert after[s].isnan().all() if s == bad else torch.equal(after[s], clean_after[s])


def test_inputs_may_be_columns_of_something_wider():
    wide, weight, bias, window = make(70, channels=11)
    y, after = conv(wide[:, 2:9], weight[2:9], bias[2:9], Packing([70]), window[:, :, 2:9])
    assert y.is_contiguous() and after.is_contiguous()
    assert_within("op", y, naive.conv(wide, weight, bias, window[0])[0][:, 2:9])


@pytest.mark.parametrize(("lengths", "dtype"), [((1,), torch.float32), ((1, 2, 9), torch.float32), ((7,), torch.bfloat16)])
def test_gradients(lengths, dtype):
    names = ("x", "weight", "bias", "window")
    inputs = dict(zip(names, make(sum(lengths), channels=3, sequences=len(lengths), dtype=dtype), strict=True))

    def actual(x, weight, bias, window=None):
        return conv(x, weight, bias, Packing(lengths), window)

    assert_gradients(actual, definition(lengths), inputs)
    del inputs["window"]
    assert_gradients(actual, definition(lengths), inputs)


def test_gradients_without_the_windows():
    """What training asks for: nobody looks at the windows after."""
    x, weight, bias, _ = (v.requires_grad_() for v in make(20, channels=3))
    conv(x, weight, bias, Packing([20]))[0].sum().backward()
    expected = torch.autograd.grad(naive.conv(x, weight, bias)[0].sum(), (x, weight, bias))
    for v, e in zip((x, weight, bias), expected, strict=True):
        assert_within("gradient", v.grad, e)


def test_other_dtypes_are_named():
    x, weight, bias, _ = make(3)
    with pytest.raises(ValueError, match="conv takes float32, bfloat16 or float16; x is torch.float64"):
        conv(x.double(), weight, bias, Packing([3]))
