"""mamba2_step and mamba1_step: a mixer's token between its projections, in place, on the slots it is given."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.mixers import NO_LIMIT, Mamba1Token, Mamba2Token
from zamba_lm.ops.step import mamba1_step

ROWS = 5
CASES = {
    "mamba2": (Mamba2Token, {}),
    "mamba2, 2 groups": (Mamba2Token, {"groups": 2}),
    "mamba2, a group a head": (Mamba2Token, {"groups": 4}),
    "mamba1": (Mamba1Token, {}),
    "mamba1, 3 heads": (Mamba1Token, {"heads": 3, "width": 7, "n": 5}),
}


@pytest.fixture(params=CASES)
def make(request):
    kind, shape = CASES[request.param]
    return lambda rows=ROWS, **more: kind(rows, **shape, **more)


@pytest.mark.parametrize("rows", [1, 2, ROWS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("dt_limit", "taps"), [(NO_LIMIT, 4), ((0.4, 0.9), 2)])
def test_the_mixer_is_its_parts_in_a_row(make, rows, dtype, dt_limit, taps):
    token = make(rows, dtype=dtype, dt_limit=dt_limit, taps=taps)
    expected, last_window, last = token.definition()
    kept = [v.clone() for v in token.inputs()]
    y = token.step(token.h, token.window, token.state)
    assert token.window.dtype == dtype and token.state.dtype == torch.float32
    assert y.dtype == (torch.float32 if isinstance(token, Mamba2Token) else dtype)
    assert_within("op", y, expected)
    if isinstance(token, Mamba1Token) and dtype == torch.bfloat16:  # B, C and dt are products of rounded numbers
        assert_within("op", token.state, last, dtype=dtype)
    else:
        assert_within("state", token.state, last)
    assert torch.equal(token.window.double(), last_window), "the window holds inputs, bit for bit"
    assert all(torch.equal(now, before) for now, before in zip(token.inputs(), kept, strict=True))


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2_does_not_round(groups):
    """A bfloat16 row is computed like the same numbers in float32."""
    token = Mamba2Token(ROWS, groups=groups, dtype=torch.bfloat16)
    wide_state = token.state.clone()
    wide = token.step(token.h.float(), token.window.float(), wide_state)
    assert torch.equal(token.step(token.h, token.window, token.state), wide)
    assert torch.equal(token.state, wide_state)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_rows_work_on_their_slots(make, state_dtype):
    """Any order, with slots between them that nobody may touch."""
    token = make()
    slots = torch.tensor([6, 0, 3, 2, 5], dtype=torch.int32)
    state = token.state.to(state_dtype)
    direct_window, direct_state = token.window.clone(), state.clone()
    direct = token.step(token.h, direct_window, direct_state)
    pool_window, pool_state = (torch.full((8, *v.shape[1:]), torch.nan, dtype=v.dtype) for v in (token.window, state))
    pool_window[slots.long()], pool_state[slots.long()] = token.window, state
    y = token.step(token.h, pool_window, pool_state, slots)
    assert pool_state.dtype == state_dtype
    assert torch.equal(y, direct)
    assert torch.equal(pool_window[slots.long()], direct_window) and torch.equal(pool_state[slots.long()], direct_state)
    assert pool_window[[1, 4, 7]].isnan().all() and pool_state[[1, 4, 7]].isnan().all()


def test_a_narrow_state_is_a_wide_one_rounded(make):
    token = make()
    token.state = token.state.bfloat16()
    wide = token.state.float()
    narrow_y = token.step(token.h, token.window.clone(), token.state)
    assert torch.equal(narrow_y, token.step(token.h, token.window, wide))
    assert torch.equal(token.state, wide.bfloat16())


@pytest.mark.parametrize("bad", range(ROWS))
def test_rows_are_independent(make, bad):
    """Window and state may be some slots of larger ones; NaN in one slot is its own affair."""
    token = make()
    clean_window, clean_state = token.window.clone(), token.state.clone()
    clean = token.step(token.h, clean_window, clean_state)
    larger = [torch.full((3, ROWS + 2, *v.shape[1:]), torch.nan) for v in (token.window, token.state)]
    views = [v[1, 1:-1] for v in larger]
    for view, v in zip(views, (token.window, token.state), strict=True):
        view.copy_(v)
        view[bad] = torch.nan
    token.h[bad] = torch.nan
    y = token.step(token.h, *views)
    others = [s for s in range(ROWS) if s != bad]
    assert all(v[bad].isnan().all() for v in (y, views[1]))
    assert torch.equal(y[others], clean[others])
    assert torch.equal(views[0][others], clean_window[others]) and torch.equal(views[1][others], clean_state[others])
    assert all(v[::2].isnan().all() and v[1, [0, -1]].isnan().all() for v in larger)


def test_what_does_not_fit_is_named(make):
    token = make()
    shapes = r"h \(\d, \d+\) and window \(\d, 3, \d+\) do not fit state \(\d, \d, \d+, \d\)"
    for h, window, state in (
        (token.h[:, 1:], token.window, token.state),
        (token.h[:2], token.window, token.state),
        (token.h, token.window[:2], token.state),
        (token.h, token.window[:, :, 1:], token.state),
    ):
        with pytest.raises(ValueError, match=shapes):
            token.step(h, window, state)
    with pytest.raises(ValueError, match=r"slots are \(2,\), expected \(5,\), one for each row"):
        token.step(token.h, token.window, token.state, torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"state is torch.float16, expected float32 or bfloat16"):
        token.step(token.h, token.window, token.state.half())


def test_projections_of_mamba1_that_do_not_fit_are_named():
    t = Mamba1Token(1)
    with pytest.raises(ValueError, match=r"x_proj \(2, 21, 24\) and dt_proj \(2, 24, 4\) do not fit state \(1, 2, 24, 8\)"):
        mamba1_step(t.h, t.window, t.state, t.constants, t.x_proj, t.dt_proj[..., :4], t.dt_limit)
