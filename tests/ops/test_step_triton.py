"""The step kernels, through Triton's interpreter: against the definition, on slots, in odd shapes."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.mixers import NO_LIMIT, Mamba1Token, Mamba2Token
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.step import triton as kernels
from zamba_lm.ops.step.triton import conv
from zamba_lm.ops.step.triton.configs import Mamba2Config, ProductConfig

pytest.importorskip("triton")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CASES = {
    "mamba2": (Mamba2Token, {}),
    "mamba2, 2 groups, odd sizes": (Mamba2Token, {"heads": 6, "width": 7, "groups": 2, "n": 5}),
    "mamba2, many blocks": (Mamba2Token, {"heads": 2, "width": 40, "n": 64}),
    "mamba2, two kernels": (Mamba2Token, {"heads": 4, "width": 70, "groups": 2, "n": 5}),
    "mamba1": (Mamba1Token, {}),
    "mamba1, odd sizes": (Mamba1Token, {"heads": 3, "width": 75, "n": 5, "rank": 17}),
}


@pytest.fixture(params=CASES)
def make(request, monkeypatch):
    kind, shape = CASES[request.param]
    if "two kernels" in request.param:
        monkeypatch.setattr(kernels, "MAMBA2_ALONE", 0)
    return lambda rows, **more: kind(rows, **shape, **more)


@pytest.fixture(autouse=True)
def triton_here():
    with interpreted(), force(mamba1_step="triton", mamba2_step="triton"):
        yield


@pytest.mark.parametrize(
    ("rows", "dtype", "dt_limit", "taps"),
    [(1, F32, NO_LIMIT, 4), (5, F32, NO_LIMIT, 4), (2, BF16, (0.4, 0.9), 4), (6, F16, NO_LIMIT, 2)],
)
def test_a_token(make, rows, dtype, dt_limit, taps):
    token = make(rows, dtype=dtype, dt_limit=dt_limit, taps=taps)
    expected, last_window, last = token.definition()
    kept = [v.clone() for v in token.inputs()]
    y = token.step(token.h, token.window, token.state)
    assert_within("op", y, expected, dtype=dtype)
    assert_within("op", token.state, last, dtype=dtype)
    assert torch.equal(token.window.double(), last_window)
    assert all(torch.equal(now, before) for now, before in zip(token.inputs(), kept, strict=True))


def test_what_is_old_may_be_read_early(make):
    token = make(3)
    expected, last_window, last = token.definition()
    assert_within("op", token.step(token.h, token.window, token.state, early=True), expected)
    assert_within("state", token.state, last)
    assert torch.equal(token.window.double(), last_window)


@pytest.mark.parametrize("shape", [{"heads": 6, "width": 7, "groups": 2, "n": 5}, {"heads": 5, "width": 8, "n": 8}])
def test_small_blocks(shape, monkeypatch):
    """Groups whose channels are no multiple of what a program takes, blocks that straddle heads, and those that do not."""
    monkeypatch.setattr(kernels, "MAMBA2", Mamba2Config(tile=32, warps=1))
    token = Mamba2Token(1, **shape)
    expected, last_window, last = token.definition()
    for _ in range(2):  # the counters are as before
        window, state = token.window.clone(), token.state.clone()
        assert_within("op", token.step(token.h, window, state), expected)
        assert_within("state", state, last)
        assert torch.equal(window.double(), last_window)


@pytest.mark.parametrize(("rows", "state_dtype"), [(2, F32), (4, BF16)])
def test_rows_work_on_their_slots(make, rows, state_dtype):
    """As without slots, on entries in any order; nobody touches the others. Idle rows may share one."""
    token = make(rows + 2)
    slots = torch.tensor([6, 0, 3, 2][:rows] + [5, 5], dtype=torch.int32)
    own = slots[:rows].long()
    window, state = token.window[:rows].clone(), token.state[:rows].to(state_dtype)
    pool_window, pool_state = (torch.full((8, *v.shape[1:]), torch.nan, dtype=v.dtype) for v in (window, state))
    pool_window[own], pool_state[own] = window, state
    y = token.step(token.h, pool_window, pool_state, slots)
    assert_within("op", y[:rows], token.step(token.h[:rows].contiguous(), window, state))
    assert_within("op", pool_state[own], state)
    assert torch.equal(pool_window[own], window)
    assert pool_window[[1, 4, 7]].isnan().all() and pool_state[[1, 4, 7]].isnan().all()


@pytest.mark.parametrize("name", ["mamba2, two kernels", "mamba1"])
@pytest.mark.parametrize("early", [False, True])
def test_a_program_of_the_convolution_has_several_rows(name, early, monkeypatch):
    """Not all of them there, each on a slot of its own; and Mamba-1's products by torch, as many rows have them."""
    monkeypatch.setattr(kernels, "MAMBA2_ALONE", 0)
    monkeypatch.setattr(kernels, "MAMBA1_PRODUCTS", 0)
    monkeypatch.setattr(conv, "CONV", (128, 4, 4))
    kind, shape = CASES[name]
    token = kind(6, **shape)
    expected, last_window, last = token.definition()
    slots = torch.tensor([3, 6, 0, 7, 1, 5], dtype=torch.int32)
    window, state = (torch.full((8, *v.shape[1:]), torch.nan) for v in (token.window, token.state))
    window[slots.long()], state[slots.long()] = token.window, token.state
    assert_within("op", token.step(token.h, window, state, slots, early=early), expected)
    assert_within("state", state[slots.long()], last)
    assert torch.equal(window[slots.long()].double(), last_window)
    assert window[[2, 4]].isnan().all() and state[[2, 4]].isnan().all()


@pytest.mark.parametrize("dtype", [F32, F16])  # the interpreter's own products of bfloat16 are wrong
def test_a_product_of_each_head_with_its_sum_in_parts(dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 75, generator=g).to(dtype).transpose(0, 1)
    w = (torch.randn(2, 21, 75, generator=g) / 75**0.5).to(dtype)
    arrivals = torch.zeros(4, dtype=torch.int32)
    for tiles in (1, 2, 1):
        y = kernels.product(x, w, ProductConfig(columns=16, tile=16, tiles=tiles, warps=4), arrivals)
        assert_within("op", y, x.double() @ w.double().transpose(1, 2), dtype=dtype)
        assert not arrivals.any()


def test_layouts_that_kernels_do_not_take_are_named():
    token = Mamba2Token(2)
    spread = torch.empty(2, 4, 6, 16)[..., ::2]
    with pytest.raises(ValueError, match="each slot's state contiguous"):
        token.step(token.h, token.window, spread)
    with pytest.raises(ValueError, match="h is torch.float64, expected float32, bfloat16 or float16"):
        token.step(token.h.double(), token.window, token.state)
