"""The step kernels on a GPU at published shapes: on slots, one after another without waiting, inside a CUDA graph."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.mixers import NO_LIMIT, Mamba1Token, Mamba2Token
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.linear import Normed, Squares, Unmade, linear
from zamba_lm.ops.step import mamba2_step

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHAPES = {
    "zamba2-2.7b": (Mamba2Token, {"heads": 80, "width": 64, "n": 64}),
    "zamba2-7b": (Mamba2Token, {"heads": 112, "width": 64, "n": 64, "groups": 2}),
    "zamba2-1.2b": (Mamba2Token, {"heads": 64, "width": 64, "n": 128}),
    "odd mamba2": (Mamba2Token, {"heads": 6, "width": 50, "n": 13, "groups": 3}),
    "zamba-7b-v1": (Mamba1Token, {"heads": 2, "width": 3712, "rank": 232, "n": 16}),
    "odd mamba1": (Mamba1Token, {"heads": 3, "width": 75, "rank": 17, "n": 5}),
}


@pytest.fixture(params=SHAPES)
def make(request):
    kind, shape = SHAPES[request.param]
    return lambda rows, **more: kind(rows, device="cuda", **shape, **more)


def on_slots(token, spare=3):
    """Window and state spread over the slots of larger ones, NaN between them; which slots."""
    rows = len(token.h)
    slots = torch.randperm(rows + spare, device="cuda")[:rows].int()
    larger = [
        torch.full((rows + spare, *v.shape[1:]), torch.nan, dtype=v.dtype, device="cuda") for v in (token.window, token.state)
    ]
    for whole, own in zip(larger, (token.window, token.state), strict=True):
        whole[slots.long()] = own
    return *larger, slots


@pytest.mark.parametrize("rows", [1, 2, 5, 33, 70])
@pytest.mark.parametrize(("dtype", "dt_limit", "taps"), [(F32, NO_LIMIT, 4), (BF16, (0.4, 0.9), 4), (F16, NO_LIMIT, 2)])
def test_a_token(make, rows, dtype, dt_limit, taps):
    token = make(rows, dtype=dtype, dt_limit=dt_limit, taps=taps)
    expected, last_window, last = token.definition()
    window, state, slots = on_slots(token)
    kept = [v.clone() for v in token.inputs()]
    with record() as calls:
        y = token.step(token.h, window, state, slots)
    assert [name for _, name in calls] == ["triton"]
    assert_within("op", y, expected, dtype=dtype)
    if dtype == F32 or isinstance(token, Mamba2Token):
        assert_within("state", state[slots.long()], last)
    else:  # B, C and dt are products of rounded numbers
        assert_within("op", state[slots.long()], last, dtype=dtype)
    assert torch.equal(window[slots.long()].double(), last_window), "the window holds inputs, bit for bit"
    others = torch.ones(len(window), dtype=torch.bool).index_fill(0, slots.long().cpu(), False)
    assert window[others].isnan().all() and state[others].isnan().all()
    assert all(torch.equal(now, before) for now, before in zip(token.inputs(), kept, strict=True))


@pytest.mark.parametrize("rows", [1, 7])
def test_a_narrow_state_is_a_wide_one_rounded(make, rows):
    token = make(rows, dtype=BF16)
    token.state = token.state.bfloat16()
    wide = token.state.float()
    y = token.step(token.h, token.window.clone(), token.state)
    assert_within("op", y, token.step(token.h, token.window, wide))  # compiled apart: last places may differ
    assert_within("op", token.state, wide)


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_what_is_old_is_read_early(make, rows):
    """Behind a kernel of the same chain that makes h; torch's own, which wait for all, stand between one token and the next."""
    token = make(rows, dtype=F32)
    window, state, slots = on_slots(token)
    weight = torch.eye(token.h.shape[1], device="cuda")
    for h in torch.randn(9, *token.h.shape, device="cuda"):
        y = token.step(linear(h, weight), window, state, slots, early=True)
        with force(mamba1_step="reference", mamba2_step="reference"):
            expected = token.step(h, token.window, token.state)
        assert_within("gradient", y, expected)
    assert_within("gradient", state[slots.long()], token.state)


@pytest.mark.parametrize("rows", [1, 4, 40])
def test_steps_without_waiting_between_them(make, rows):
    """Kernels may start while the one before still runs; here that is the one which made their state."""
    token = make(rows, dtype=F32)
    hs = torch.randn(65, *token.h.shape, device="cuda")
    window, state, slots = on_slots(token)
    y = torch.stack([token.step(h, window, state, slots) for h in hs])
    with force(mamba1_step="reference", mamba2_step="reference"):
        expected = torch.stack([token.step(h, token.window, token.state) for h in hs])
    assert_within("gradient", y, expected)  # 65 tokens' errors add
    assert_within("gradient", state[slots.long()], token.state)
    assert torch.equal(window[slots.long()], token.window)


@pytest.mark.parametrize("rows", [1, 2, 9, 17, 32, 33, 64, 65])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("name", ["zamba2-2.7b", "zamba2-1.2b", "zamba2-7b"])
@pytest.mark.parametrize("dtype", [BF16, F16])
def test_input_projection_and_norm_are_part_of_the_step(name, rows, early, dtype):
    """To the bit what the projection, the convolution and the recurrence make apart."""
    _, shape = SHAPES[name]
    token = Mamba2Token(rows, device="cuda", dtype=dtype, **shape)
    window, state, slots = on_slots(token)
    apart = window.clone(), state.clone()
    x, weight = torch.randn(rows, 2560).to("cuda", dtype), (torch.randn(token.h.shape[1], 2560) / 50).to("cuda", dtype)
    norm_in = Normed((1 + torch.randn(2560) / 4).to("cuda", dtype), 1e-5)
    norm = Normed((1 + torch.randn(token.state[0, ..., 0].numel()) / 4).to("cuda", dtype), 1e-5, token.groups)
    how = token.constants, token.groups, token.dt_limit, slots, early
    y, left = mamba2_step(Unmade(x, weight, None, norm_in), window, state, *how, norm)
    expected = mamba2_step(linear(x, weight, norm=norm_in), *apart, *how)
    own = slots.long()
    assert torch.equal(window[own], apart[0][own]) and torch.equal(state[own], apart[1][own])
    assert (type(left) is Squares) == (rows > 8 and token.groups == 1 and dtype == BF16)
    assert_within("op", left(y), norm(expected), dtype=dtype)
    others = torch.ones(len(window), dtype=torch.bool).index_fill(0, own.cpu(), False)
    assert window[others].isnan().all() and state[others].isnan().all()


def test_inside_a_graph(make):
    """Replayed with other inputs and other slots, some rows idle: they all point at one slot that nobody reads."""
    rows, idle = 5, 3
    token = make(rows + idle, dtype=F32)
    window, state, slots = on_slots(token)
    slots[rows:] = slots[rows]
    h, warm = token.h.clone(), (window.clone(), state.clone())
    token.step(h, *warm, slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            y = token.step(h, window, state, slots)
    own = [v[slots[:rows].long()] for v in (window, state)]
    for _ in range(4):
        order = torch.randperm(rows, device="cuda")
        slots[:rows] = slots[:rows][order]
        own = [v[order] for v in own]
        h.normal_()
        graph.replay()
        with force(mamba1_step="reference", mamba2_step="reference"):
            for _ in range(3):
                expected = token.step(h[:rows], *own)
        assert_within("gradient", y[:rows], expected)
        assert_within("gradient", state[slots[:rows].long()], own[1])
        assert torch.equal(window[slots[:rows].long()], own[0])
