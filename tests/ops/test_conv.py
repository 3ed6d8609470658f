"""conv: the explicit loop, windows carried on, sequences kept apart."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import assert_gradients
from zamba_lm.ops.conv import conv
from zamba_lm.ops.packing import Packing

LENGTHS = (1, 2, 63, 64, 65, 300, 500)
MIXED = (1, 2, 2, 65, 65, 3, 1, 300)  # neighbours of one length and of different ones


def make(total, *, width=4, channels=5, sequences=1, dtype=torch.float32):
    """x_TC, weight_CK, bias_C, window_SKC"""
    generator = torch.Generator().manual_seed(total + width)
    shapes = ((total, channels), (channels, width), (channels,), (sequences, width - 1, channels))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("width", [2, 3, 4, 5])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_explicit_loop(length, width):
    x, weight, bias, window = make(length, width=width)
    for given in (None, window):
        y, after = conv(x, weight, bias, Packing([length]), given)
        expected, last = naive.conv(x, weight, bias, None if given is None else given[0])
        assert_within("op", y, expected)
        assert torch.equal(after[0].double(), last)


@pytest.mark.parametrize("width", [2, 4, 5])
@pytest.mark.parametrize("cut", [1, 2, 3, 64])
def test_a_carried_window_equals_the_whole(cut, width):
    x, weight, bias, window = make(65, width=width)
    whole, last = conv(x, weight, bias, Packing([65]), window)
    pieces = []
    for part in x.split(cut):
        y, window = conv(part, weight, bias, Packing([len(part)]), window)
        pieces.append(y)
    assert_within("op", torch.cat(pieces), whole)
    assert torch.equal(window, last)


@pytest.mark.parametrize("carried", [False, True])
def test_packed_equals_alone(carried):
    x, weight, bias, window = make(sum(MIXED), sequences=len(MIXED))
    y, after = conv(x, weight, bias, Packing(MIXED), window if carried else None)
    expected, last = naive.each(lambda x, w=None: naive.conv(x, weight, bias, w), MIXED, (x,), window if carried else None)
    assert_within("op", y, expected)
    assert torch.equal(after.double(), last)


@pytest.mark.parametrize("bad", range(len(MIXED)))
def test_nan_stays_in_its_sequence(bad):
    x, weight, bias, window = make(sum(MIXED), sequences=len(MIXED))
    clean, clean_after = conv(x, weight, bias, Packing(MIXED), window)
    poisoned, poisoned_window = [*x.clone().split(MIXED)], window.clone()
    poisoned[bad][:], poisoned_window[bad] = torch.nan, torch.nan
    y, after = conv(torch.cat(poisoned), weight, bias, Packing(MIXED), poisoned_window)
    for s, (now, before) in enumerate(zip(y.split(MIXED), clean.split(MIXED), strict=True)):
        assert now.isnan().all() if s == bad else torch.equal(now, before)
        assert after[s].isnan().all() if s == bad else torch.equal(after[s], clean_after[s])


@pytest.mark.parametrize("length", LENGTHS)
def test_bfloat16_stays_close(length):
    x, weight, bias, window = make(length, dtype=torch.bfloat16)
    y, after = conv(x, weight, bias, Packing([length]), window)
    expected, last = naive.conv(x, weight, bias, window[0])
    assert y.dtype == after.dtype == torch.bfloat16
    assert_within("op", y, expected)
    assert torch.equal(after[0].double(), last)


def test_inputs_may_be_columns_of_something_wider():
    wide, weight, bias, window = make(70, channels=11)
    y, _ = conv(wide[:, 2:9], weight[2:9], bias[2:9], Packing([70]), window[:, :, 2:9])
    assert_within("op", y, conv(wide, weight, bias, Packing([70]), window)[0][:, 2:9])


@pytest.mark.parametrize("lengths", [(1,), (2,), (1, 1, 3), (65, 7)])
def test_gradients(lengths):
    names = ("x", "weight", "bias", "window")
    inputs = dict(zip(names, make(sum(lengths), channels=3, sequences=len(lengths)), strict=True))

    def oracle(x, weight, bias, window):
        return naive.each(lambda x, w: naive.conv(x, weight, bias, w), lengths, (x,), window)

    assert_gradients(lambda x, weight, bias, window: conv(x, weight, bias, Packing(lengths), window), oracle, inputs)


def test_what_does_not_fit_is_named():
    x, weight, bias, window = make(7)
    with pytest.raises(ValueError, match=r"x is \(7, 5\), expected \(8, 5\) for Packing\(\(8,\)\)"):
        conv(x, weight, bias, Packing([8]))
    with pytest.raises(ValueError, match=r"x is \(7, 4\), expected \(7, 5\)"):
        conv(x[:, :4], weight, bias, Packing([7]))
    with pytest.raises(ValueError, match=r"window is \(1, 4, 5\), expected \(1, 3, 5\)"):
        conv(x, weight, bias, Packing([7]), torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match=r"window is \(1, 3, 5\), expected \(2, 3, 5\)"):
        conv(x, weight, bias, Packing([3, 4]), window)
