"""The mixer between and with its projections: its parts one by one, gradients, packed neighbours, and the Triton route."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.bfloat16 import bfloat16_products  # noqa: F401
from tests.ops.gradients import gradients
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.linear import Normed
from zamba_lm.ops.mamba2 import mamba2, mamba2_mixer
from zamba_lm.ops.packing import Packing

F32, BF16 = torch.float32, torch.bfloat16
NAMES = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")
LENGTHS = (3, 1, 36)


def make(total, *, heads=2, width=6, groups=1, n=8, model=10):
    """Inputs of ``mamba2_mixer`` by name, outputs of the order of 1; a row of h is 2 x 12 + 16 groups + 2 wide."""
    g = torch.Generator().manual_seed(total + groups)
    inner, convolved = heads * width, heads * width + 2 * groups * n

    def randn(*shape, size=1.0):
        return torch.randn(*shape, generator=g) * size

    return {
        "x": randn(total, model),
        "gain": 1 + randn(model, size=0.2),
        "in_weight": randn(inner + convolved + heads, model, size=0.3),
        "out_weight": randn(model, inner, size=0.3),
        "residual": randn(total, model),
        "conv_weight": randn(convolved, 4, size=0.5),
        "conv_bias": randn(convolved, size=0.2),
        "dt_bias": randn(heads) - 2,
        "A_log": randn(heads, size=0.5),
        "D": randn(heads),
        "norm_weight": 1 + randn(inner, size=0.2),
    }


def whole(lengths, groups, *, shared=False):
    """The mixer as a function of the inputs' names; ``shared``: x is its own residual."""

    def run(x, gain, in_weight, out_weight, residual, **inside):
        given = (x, Normed(gain, 1e-5), in_weight, out_weight, x if shared else residual, *inside.values())
        y = mamba2_mixer(*given, Packing(lengths), groups=groups, eps=1e-5)
        return [y + residual if shared else y]

    return run


def definition(lengths, groups, *, shared=False):
    """The same in float64, token by token."""

    def run(x, gain, in_weight, out_weight, residual, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight):
        xn = gain * x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        z, xBC, dt = (xn @ in_weight.T).split((len(norm_weight), len(conv_weight), len(D)), dim=1)
        (xBC, _) = naive.each(lambda v: naive.conv(v, conv_weight, conv_bias, None), lengths, (xBC,))
        both = (len(conv_weight) - len(norm_weight)) // 2
        v, B, C = xBC.split((len(norm_weight), both, both), dim=1)
        v, B, C = v.unflatten(1, (len(D), -1)), B.unflatten(1, (groups, -1)), C.unflatten(1, (groups, -1))
        dt = torch.nn.functional.softplus(dt + dt_bias)
        y, _ = naive.each(lambda v, dt, B, C: naive.ssd(v, dt, -A_log.exp(), B, C, D), lengths, (v, dt, B, C))
        gated = (y.flatten(1) * torch.nn.functional.silu(z)).unflatten(1, (groups, -1))
        normed = (gated * (gated.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).flatten(1) * norm_weight
        return [normed @ out_weight.T + residual + (x if shared else 0)]

    return run


@pytest.fixture(params=["reference", "triton"])
def route(request):
    if request.param == "reference":
        yield "reference"
        return
    pytest.importorskip("triton")
    with interpreted(), force(mamba2="triton", mamba2_mixer="triton"):
        yield "triton"


@pytest.mark.parametrize(("groups", "shared"), [(1, False), (2, True)])
def test_values_and_gradients(route, groups, shared):
    inputs = make(sum(LENGTHS), groups=groups)
    function = whole(LENGTHS, groups, shared=shared)
    expected = definition(LENGTHS, groups, shared=shared)
    wide = {name: value.double() for name, value in inputs.items()}
    with torch.no_grad():
        assert_within("op", function(**inputs)[0], expected(**wide)[0])
    actual, truth = gradients(function, inputs), gradients(expected, wide)
    for name in inputs:
        assert truth[name].abs().max() > 1e-3, f"the test does not exercise {name}"
        assert actual[name].shape == inputs[name].shape
        assert_within("gradient", actual[name] / 8, truth[name] / 8)


def test_the_inside_alone(route):
    inputs, lengths = make(sum(LENGTHS)), LENGTHS
    inside = {name: inputs[name] for name in NAMES}
    h = torch.randn(sum(lengths), len(inputs["in_weight"]) + 3)[:, :-3]  # columns of something wider

    def run(h, **inside):
        return [mamba2(h, *inside.values(), Packing(lengths), groups=1, eps=1e-5)]

    def truth(h, **inside):
        with force(mamba2="reference", conv="reference", ssd="reference", gated_norm="reference"):
            return run(h, **inside)

    assert_within("op", run(h, **inside)[0], truth(h, **inside)[0])
    actual, expected = gradients(run, {"h": h, **inside}), gradients(truth, {"h": h, **inside})
    for name, value in expected.items():
        assert_within("gradient", actual[name] / 8, value / 8)


@pytest.mark.usefixtures("bfloat16_products")
def test_autocast_multiplies_in_bfloat16_and_keeps_gradients_in_float32():
    pytest.importorskip("triton")
    inputs, function = make(sum(LENGTHS)), whole(LENGTHS, 1)
    truth = gradients(function, inputs)
    with interpreted(), force(mamba2_mixer="triton"), torch.autocast("cpu", BF16):
        actual = gradients(function, inputs)
    for name, value in truth.items():
        assert actual[name].dtype == F32
        error = (actual[name] - value).norm() / value.norm()
        # in bfloat16, and nowhere far off; three vectors are a few sums of both signs
        least, most = (-1, 0) if name == "residual" else (1e-5, 0.2 if name in ("A_log", "dt_bias", "D") else 0.05)
        assert least < error <= most, f"{name}: {error}"


def test_neighbours_do_not_see_each_other(route):
    inputs = make(sum(LENGTHS))
    before = whole(LENGTHS, 1)(**inputs)[0]
    inputs["x"] = inputs["x"].clone()
    inputs["x"][3:4] = torch.nan
    after = whole(LENGTHS, 1)(**inputs)[0]
    assert after[3].isnan().all() and torch.equal(after[:3], before[:3]) and torch.equal(after[4:], before[4:])


def test_a_part_that_was_chosen_is_the_part_that_runs():
    pytest.importorskip("triton")
    inputs = make(5)
    with interpreted(), force(ssd="reference"), record() as calls:
        whole((5,), 1)(**inputs)
    assert ("ssd", "reference") in calls and ("mamba2_mixer", "triton") not in calls


def test_frozen_weights_get_no_gradient_and_keep_nothing():
    """As under LoRA: x alone wants a gradient, so the inputs of the projections are not kept."""
    pytest.importorskip("triton")
    inputs = make(20)
    x = inputs.pop("x").requires_grad_()
    sizes = []
    with (
        interpreted(),
        force(mamba2_mixer="triton"),
        torch.autograd.graph.saved_tensors_hooks(lambda v: sizes.append(tuple(v.shape)) or v, lambda v: v),
    ):
        (y,) = whole((20,), 1)(x=x, **inputs)
    y.sum().backward()
    assert x.grad is not None and all(v.grad is None for v in inputs.values())
    assert sizes.count((20, 10)) == 1  # x itself, and not its norm


def test_shapes_that_do_not_fit():
    inputs = make(5)
    with pytest.raises(ValueError, match="does not fit"):
        mamba2(torch.zeros(5, 7), *(inputs[name] for name in NAMES), Packing([5]), groups=1, eps=1e-5)
