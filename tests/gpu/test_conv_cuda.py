"""The convolution's kernels on a GPU at published widths."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import gradients
from zamba_lm.ops.conv import conv
from zamba_lm.ops.dispatch import record
from zamba_lm.ops.packing import Packing

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# (channels, width of the projection they are columns of, the first of them)
WIDTHS = {
    "zamba2-2.7b": (5248, 10448, 5120),
    "zamba2-7b": (7424, 14704, 7168),
    "zamba2-1.2b": (4352, 8512, 4096),
    "zamba-7b-v1": (7424, 14848, 0),
    "odd": (77, 161, 3),
}
PACKED = [(1,), (2,), (63,), (64,), (65,), (500,), (4097,), (1, 2, 63, 64, 65, 500), (1,) * 300, (3, 1, 1, 900, 2)]


def make(width, lengths, dtype, scale=1.0):
    C, E, first = WIDTHS[width]
    g = torch.Generator("cuda").manual_seed(sum(lengths))
    h = torch.randn(sum(lengths), E, generator=g, device="cuda").to(dtype)
    weight, bias = torch.randn(C, 4, generator=g, device="cuda") / 2, torch.randn(C, generator=g, device="cuda")
    window = torch.randn(len(lengths), 3, C, generator=g, device="cuda").to(dtype)
    return h[:, first : first + C], weight, bias, window


def definition(x, weight, bias, lengths, window=None):
    """As naive.conv, a whole sequence at a time: too many tokens for a loop."""
    parts = []
    for s, x_TC in enumerate(x.double().split(lengths)):
        before = x_TC.new_zeros(3, x.shape[1]) if window is None else window[s].double()
        seen = torch.cat((before, x_TC))
        y = bias.double() + sum(weight[:, k].double() * seen[k : k + len(x_TC)] for k in range(4))
        parts.append((y * torch.sigmoid(y), seen[-3:]))
    return torch.cat([y for y, _ in parts]), torch.stack([last for _, last in parts])


def test_the_definition_is_the_loop():
    x, weight, bias, window = make("odd", (5, 1), F32)
    expected = naive.each(lambda x, w: naive.conv(x.cpu(), weight.cpu(), bias.cpu(), w.cpu()), (5, 1), (x,), window)
    for actual, e in zip(definition(x, weight, bias, (5, 1), window), expected, strict=True):
        assert torch.allclose(actual.cpu(), e)


@pytest.mark.parametrize("lengths", PACKED, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_forward(width, lengths, dtype):
    x, weight, bias, window = make(width, lengths, dtype)
    for given in (None, window):
        with record() as calls:
            y, after = conv(x, weight, bias, Packing(lengths), given)
        assert calls == [("conv", "triton")]
        expected, last = definition(x, weight, bias, lengths, given)
        assert_within("op", y, expected)
        assert torch.equal(after.double(), last)


@pytest.mark.parametrize("lengths", [(1,), (2,), (65,), (500,), (1, 2, 63, 64, 65, 30), (3, 1, 1, 90, 2)], ids=str)
@pytest.mark.parametrize("width", ["zamba2-2.7b", "odd"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_gradients(width, lengths, dtype):
    inputs = dict(zip(("x", "weight", "bias", "window"), make(width, lengths, dtype), strict=True))
    inputs["x"], inputs["bias"] = inputs["x"] / 4, inputs["bias"] / 4  # sums over tokens stay of the order of 1
    for names in (tuple(inputs), ("x", "weight", "bias")):
        given = {name: inputs[name] for name in names}
        actual = gradients(lambda window=None, **v: conv(**v, packing=Packing(lengths), window_SKC=window), renamed(given))
        wide = renamed({name: v.double() for name, v in given.items()})
        expected = gradients(
            lambda x_TC, weight_CK, bias_C, window=None: definition(x_TC, weight_CK, bias_C, lengths, window),
            wide,
            rounded=dtype,
        )
        for name, v in expected.items():
            assert_within("gradient", actual[name], v, dtype=dtype)


def renamed(inputs):
    names = {"x": "x_TC", "weight": "weight_CK", "bias": "bias_C", "window": "window"}
    return {names[name]: v for name, v in inputs.items()}


def test_nan_stays_in_its_sequence():
    lengths = (20, 1, 2, 33, 3)
    x, weight, bias, window = make("odd", lengths, F32)
    clean, clean_after = conv(x, weight, bias, Packing(lengths), window)
    for bad in range(len(lengths)):
        poisoned, poisoned_window = [*x.clone().split(lengths)], window.clone()
        poisoned[bad][:], poisoned_window[bad] = torch.nan, torch.nan
        y, after = conv(torch.cat(poisoned), weight, bias, Packing(lengths), poisoned_window)
        for s, (now, before) in enumerate(zip(y.split(lengths), clean.split(lengths), strict=True)):
            assert now.isnan().all() if s == bad else torch.equal(now, before)
            assert after[s].isnan().all() if s == bad else torch.equal(after[s], clean_after[s])
