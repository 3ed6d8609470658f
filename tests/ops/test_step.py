"""step: one token of ssd and of scan, in place, slot by slot."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import inputs as random
from tests.ops import naive
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan import scan
from zamba_lm.ops.ssd import ssd
from zamba_lm.ops.step import step

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
