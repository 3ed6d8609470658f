"""step: one token of ssd and of scan, and of a whole Mamba-2 mixer, in place, slot by slot."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import inputs as random
from tests.ops import naive
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan import scan
from zamba_lm.ops.ssd import ssd
from zamba_lm.ops.step import mamba2_step, step

SLOTS = 5


def mamba2(slots=SLOTS, **shape):
    """Arguments of step for Mamba-2, and those of ssd for the same token of every slot."""
    inputs, state = random.ssd(slots, sequences=slots, **shape)
    x, dt, A, B, C, D = inputs
    return (x, dt[..., None], A[:, None, None], B, C, D[:, None]), inputs, state


def mamba1(slots=SLOTS, **shape):
    """Arguments of step for Mamba-1, which are those of scan."""
    inputs, state = random.scan(slots, sequences=slots, **shape)
    return inputs, inputs, state


CASES = {
    "mamba2": (mamba2, {}, ssd, naive.ssd),
    "mamba2, 2 groups": (mamba2, {"groups": 2, "n": 64}, ssd, naive.ssd),
    "mamba2, a group a head": (mamba2, {"groups": 4, "n": 128}, ssd, naive.ssd),
    "mamba1": (mamba1, {}, scan, naive.scan),
    "mamba1, 3 heads": (mamba1, {"heads": 3, "n": 5}, scan, naive.scan),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def by_definition(function, inputs, state):
    """Every slot's token by itself."""
    x, dt, A, B, C, D = inputs
    return naive.each(lambda x, dt, B, C, h: function(x, dt, A, B, C, D, h), (1,) * len(x), (x, dt, B, C), state)


@pytest.mark.parametrize("slots", [1, 2, SLOTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_of_the_recurrence(case, slots, dtype):
    make, shape, whole, definition = case
    arguments, inputs, state = make(slots, dtype=dtype, **shape)
    expected, last = by_definition(definition, inputs, state)
    by_pass, after = whole(*inputs, Packing((1,) * slots), state)
    y = step(*arguments, state)
    assert y.dtype == dtype and state.dtype == torch.float32
    assert_within("op", y, expected)
    assert_within("state", state, last)
    assert_within("op", y, by_pass)
    assert_within("state", state, after)


def test_steps_equal_a_pass(case):
    make, shape, whole, _ = case
    arguments, inputs, states = make(65, **shape)
    x, dt, A, B, C, D = arguments
    state = states[:1].clone()
    expected, last = whole(*inputs, Packing([65]), state)
    y = [step(x[t], dt[t], A, B[t], C[t], D, state) for t in torch.arange(65)[:, None]]
    assert_within("op", torch.cat(y), expected)
    assert_within("state", state, last)


def test_in_place_and_nowhere_else(case):
    """The state may be a few slots of a larger one; the inputs and the other slots stay as they are."""
    make, shape, _, definition = case
    arguments, inputs, state = make(**shape)
    kept = [v.clone() for v in arguments]
    larger = torch.full((3, SLOTS + 2, *state.shape[1:]), torch.nan)
    larger[1, 1:-1] = state
    y = step(*arguments, larger[1, 1:-1])
    expected, last = by_definition(definition, inputs, state)
    assert_within("op", y, expected)
    assert_within("state", larger[1, 1:-1], last)
    assert larger[::2].isnan().all() and larger[1, 0].isnan().all() and larger[1, -1].isnan().all()
    assert all(torch.equal(now, before) for now, before in zip(arguments, kept, strict=True))


@pytest.mark.parametrize("bad", range(SLOTS))
def test_slots_are_independent(case, bad):
    make, shape, _, _ = case
    arguments, _, state = make(**shape)
    clean_state = state.clone()
    clean = step(*arguments, clean_state)
    state[bad] = torch.nan
    x, dt, A, B, C, D = (v.clone() for v in arguments)
    for value in (x, dt, B, C):
        value[bad] = torch.nan
    y = step(x, dt, A, B, C, D, state)
    others = [s for s in range(SLOTS) if s != bad]
    assert y[bad].isnan().all() and state[bad].isnan().all()
    assert torch.equal(y[others], clean[others]) and torch.equal(state[others], clean_state[others])


@pytest.mark.parametrize("decay", random.DECAYS)
def test_any_decay(case, decay):
    make, shape, _, definition = case
    (_, dt, A, _, _, D), inputs, state = make(**shape)
    inputs = random.decayed(inputs, decay)
    expected, last = by_definition(definition, inputs, state)
    x, dts, As, B, C, _ = inputs
    assert_within("op", step(x, dts.view(dt.shape), As.view(A.shape), B, C, D, state), expected)
    assert_within("state", state, last)


def test_what_does_not_fit_is_named():
    (x, dt, A, B, C, D), _, state = mamba2(groups=2)
    for wrong in (
        (x[:4], dt, A, B, C, D, state),
        (x, dt, A, B[:1], C[:1], D, state),
        (x, dt, A, B[:, :, :1], C[:, :, :1], D, state),
        (x, dt, A, B, C[:, :1], D, state),
        (x, dt, A, B[:1], C, D, state),
        (x, dt, A, B, C[:1], D, state),
        (x[:, :3], dt[:, :3], A[:3], B, C, D[:3], state[:, :3]),
    ):
        with pytest.raises(ValueError, match=r"x .*, B .*, C .* do not fit state \(5, \d, 5, 16\)"):
            step(*wrong)


def mixer(slots=SLOTS, *, heads=4, width=6, groups=1, n=8, taps=4, dtype=torch.float32):
    """Arguments of mamba2_step: h, window, state, constants, weight of the norm."""
    g = torch.Generator().manual_seed(slots + groups)
    channels = heads * width + 2 * groups * n
    h = torch.randn(slots, heads * width + channels + heads, generator=g).to(dtype)
    window = torch.randn(slots, taps - 1, channels, generator=g).to(dtype)
    conv_weight, conv_bias = torch.randn(channels, taps, generator=g) / 2, torch.randn(channels, generator=g)
    dt_bias, A, D = torch.randn(heads, generator=g), -torch.rand(heads, generator=g) * 8, torch.randn(heads, generator=g)
    norm_weight = torch.randn(heads * width, generator=g).to(dtype)
    state = torch.randn(slots, heads, width, n, generator=g)
    return h, window, state, (conv_weight, conv_bias, dt_bias, A, D), norm_weight


def mixer_by_definition(h, window, state, constants, norm_weight, groups, eps, dt_limit):
    """Convolution, recurrence, gate and norm one after another in float64; also window and state after."""
    conv_weight, conv_bias, dt_bias, A, D = constants
    S, H, P, N = state.shape
    z, xBC, dt = h.double().split((H * P, len(conv_bias), H), dim=1)
    xBC, window = naive.each(lambda x, w: naive.conv(x, conv_weight, conv_bias, w), (1,) * S, (xBC,), window)
    x, B, C = xBC.split((H * P, groups * N, groups * N), dim=1)
    x, B, C = x.unflatten(1, (H, P)), B.unflatten(1, (groups, N)), C.unflatten(1, (groups, N))
    dt = torch.log1p(torch.exp(dt + dt_bias.double())).clamp(*dt_limit)
    y, state = by_definition(naive.ssd, (x, dt, A, B, C, D), state)
    gated = (y.flatten(1) * z * torch.sigmoid(z)).unflatten(1, (groups, -1))
    normed = gated / torch.sqrt((gated * gated).mean(-1, keepdim=True) + eps)
    return normed.flatten(1) * norm_weight.double(), window, state


NO_LIMIT = (0.0, float("inf"))


@pytest.mark.parametrize("slots", [1, 2, SLOTS])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dt_limit", "taps"), [(NO_LIMIT, 4), ((0.4, 0.9), 2)])
def test_the_mixer_is_its_parts_in_a_row(slots, groups, dtype, dt_limit, taps):
    h, window, state, constants, weight = mixer(slots, groups=groups, dtype=dtype, taps=taps)
    settings = {"groups": groups, "eps": 1e-2, "dt_limit": dt_limit}
    expected, last_window, last = mixer_by_definition(h, window, state, constants, weight, **settings)
    kept = [v.clone() for v in (h, weight, *constants)]
    y = mamba2_step(h, window, state, constants, weight, **settings)
    assert y.dtype == window.dtype == dtype and state.dtype == torch.float32
    assert_within("op", y, expected)
    assert_within("state", state, last)
    assert torch.equal(window.double(), last_window), "the window holds inputs, bit for bit"
    assert all(torch.equal(now, before) for now, before in zip((h, weight, *constants), kept, strict=True))


def test_the_mixer_rounds_once():
    """A bfloat16 row is computed like the same numbers in float32, and only the result is rounded."""
    h, window, state, constants, weight = mixer(groups=2, dtype=torch.bfloat16)
    settings = {"groups": 2, "eps": 1e-5, "dt_limit": NO_LIMIT}
    wide_state = state.clone()
    wide = mamba2_step(h.float(), window.float(), wide_state, constants, weight.float(), **settings)
    assert torch.equal(mamba2_step(h, window, state, constants, weight, **settings), wide.bfloat16())
    assert torch.equal(state, wide_state)


@pytest.mark.parametrize("bad", range(SLOTS))
def test_slots_of_the_mixer_are_independent(bad):
    """Window and state may be some slots of larger ones; NaN in one slot is its own affair."""
    h, window, state, constants, weight = mixer(groups=2)
    settings = {"groups": 2, "eps": 1e-5, "dt_limit": NO_LIMIT}
    clean_window, clean_state = window.clone(), state.clone()
    clean = mamba2_step(h, clean_window, clean_state, constants, weight, **settings)
    larger = [torch.full((3, SLOTS + 2, *v.shape[1:]), torch.nan) for v in (window, state)]
    views = [v[1, 1:-1] for v in larger]
    for view, v in zip(views, (window, state), strict=True):
        view.copy_(v)
        view[bad] = torch.nan
    h[bad] = torch.nan
    y = mamba2_step(h, *views, constants, weight, **settings)
    others = [s for s in range(SLOTS) if s != bad]
    assert all(v[bad].isnan().all() for v in (y, views[1]))
    assert torch.equal(y[others], clean[others])
    assert torch.equal(views[0][others], clean_window[others]) and torch.equal(views[1][others], clean_state[others])
    assert all(v[::2].isnan().all() and v[1, [0, -1]].isnan().all() for v in larger)


def test_what_does_not_fit_the_mixer_is_named():
    h, window, state, constants, weight = mixer()
    settings = {"groups": 1, "eps": 1e-5, "dt_limit": NO_LIMIT}
    for wrong in ((h[:, 1:], window, state), (h[:2], window, state), (h, window[:2], state)):
        with pytest.raises(ValueError, match=r"h \(\d, \d+\) and window \(\d, 3, 40\) do not fit state \(5, 4, 6, 8\)"):
            mamba2_step(*wrong, constants, weight, **settings)
