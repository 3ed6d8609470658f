"""ssd's Triton kernels on a GPU at published shapes: values, states, gradients, against the reference in higher precision."""

from dataclasses import replace

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.inputs import DECAYS, decayed
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd import ssd
from zamba_lm.ops.step import time_step

pytestmark = pytest.mark.gpu

SHAPES = {"1.2B": (64, 64, 128, 1), "2.7B": (80, 64, 64, 1), "7B": (112, 64, 64, 2)}  # H, P, N, G
LENGTHS = [(1,), (2,), (63,), (64,), (65,), (500,), (4097,), (1, 2, 65, 65, 700, 64)]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def make(shape, lengths, dtype):
    """(x, dt, A, B, C, D) as the mixer passes them, x, B and C slices of one tensor, and states; outputs of the order of 1."""
    (H, P, N, G), T = shape, sum(lengths)
    g = torch.Generator().manual_seed(T + N)
    rows = torch.cat([torch.randn(T, H * P, generator=g) / 3, torch.randn(T, 2 * G * N, generator=g) / N**0.5], dim=1)
    rows = rows.to("cuda", dtype)
    x = rows[:, : H * P].unflatten(1, (H, P))
    B, C = rows[:, H * P :].unflatten(1, (2, G, N)).unbind(1)
    dt = torch.rand(T, H, generator=g) * 0.1 + 1e-3
    A, D = -torch.rand(H, generator=g) * 8 - 0.5, torch.randn(H, generator=g)
    states = torch.randn(len(lengths), H, P, N, generator=g)
    return (x, dt.cuda(), A.cuda(), B, C, D.cuda()), states.cuda()


def precise(inputs, packing, state, *more):
    """The reference on wider numbers."""
    x, _, _, B, *_ = inputs
    wide = torch.float64 if x.dtype == F32 else F32
    if state is None:
        state = torch.zeros(len(packing), *x.shape[1:], B.shape[2], device=x.device)
    with force(ssd="reference"):
        return ssd(*(v.to(wide) for v in inputs), packing, state.to(wide), *more)


@pytest.fixture(autouse=True)
def poisoned():
    """Free memory is full of NaN, so that what kernels leave out shows."""
    torch.full((1 << 28,), torch.nan, device="cuda")


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_states(shape, lengths, dtype):
    inputs, state = make(SHAPES[shape], lengths, dtype)
    packing, kept = Packing(lengths), state.clone()
    for given in (None, state):
        with record() as calls:
            y, after, ways = ssd(*inputs, packing, given, 192)
        assert calls == [("ssd", "triton")]
        expected, last, expected_ways = precise(inputs, packing, given, 192)
        case = "state" if dtype == F32 else "op"
        assert y.dtype == dtype and after.dtype == F32
        assert_within("op", y, expected)
        assert_within(case, after, last, dtype=dtype)
        assert_within(case, ways, expected_ways, dtype=dtype)
    assert torch.equal(state, kept), "the given states were written to"


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("lengths", [(1,), (65,), (1, 500, 300)])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, lengths, dtype):
    inputs, state = make(SHAPES[shape], lengths, dtype)
    packing, found = Packing(lengths), []
    g = torch.Generator("cuda").manual_seed(1)
    weights = [torch.randn(v.shape, device="cuda", generator=g) / 8 for v in (inputs[0], state)]
    for function in (ssd, precise, ssd):
        leaves = [v.detach().requires_grad_() for v in (*inputs, state)]
        outputs = function(leaves[:6], packing, leaves[6]) if function is precise else ssd(*leaves[:6], packing, leaves[6])
        torch.autograd.backward(outputs, [w.to(dtype).to(v.dtype) for w, v in zip(weights, outputs, strict=True)])
        found.append([v.grad for v in leaves])
    for name, mine, expected, again in zip(("x", "dt", "A", "B", "C", "D", "state"), *found, strict=True):
        assert torch.equal(mine, again), f"the gradient of {name} differs from run to run"
        scale = expected.abs().max().clamp(min=1)  # those of A and D are sums over thousands of tokens and channels
        assert_within("gradient", mine / scale, expected / scale, dtype=F32 if dtype == F32 else BF16)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("decay", DECAYS)
def test_any_decay(decay, dtype):
    inputs, state = make((16, 64, 64, 1), (1500,), dtype)
    x, *rest = decayed([v.cpu() for v in inputs], decay)
    inputs = [v.cuda() for v in (x.to(dtype), *rest)]
    leaves = [v.requires_grad_() for v in (*inputs, state)]
    y, after = ssd(*leaves[:6], Packing([1500]), leaves[6])
    expected, last = precise([v.detach() for v in inputs], Packing([1500]), state.detach())
    assert_within("op", y, expected)
    assert_within("state" if dtype == F32 else "op", after, last, dtype=dtype)
    (y.float().sum() + after.sum()).backward()
    assert all(v.grad.isfinite().all() for v in leaves)


@pytest.mark.parametrize(("P", "N", "G"), [(24, 17, 2), (128, 64, 1), (100, 100, 2), (64, 256, 1), (3, 4, 4)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_odd_sizes(P, N, G, dtype):
    inputs, state = make((4, P, N, G), (70, 1, 200), dtype)
    leaves = [v.detach().requires_grad_() for v in (*inputs, state)]
    y, after = ssd(*leaves[:6], Packing((70, 1, 200)), leaves[6])
    expected, last = precise(inputs, Packing((70, 1, 200)), state)
    assert_within("op", y, expected)
    assert_within("state" if dtype == F32 else "op", after, last, dtype=dtype)
    (y.float().sum() + after.sum()).backward()
    assert all(v.grad.isfinite().all() for v in leaves)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.05, 0.3)])
def test_raw_time_steps(dtype, limit):
    """dt as the input projection leaves it: a slice of a wider row."""
    inputs, state = make(SHAPES["2.7B"], (300, 65), dtype)
    H, packing, found = 80, Packing((300, 65)), []
    wide = (torch.randn(365, 3 * H, device="cuda") * 2 - 3).to(dtype)
    bias = torch.linspace(-2, 2, H, device="cuda")
    weight = torch.randn(inputs[0].shape, device="cuda").to(dtype) / 8
    for made_inside in (True, False):
        x, _, A, B, C, D, before, raw, b = (v.detach().requires_grad_() for v in (*inputs, state, wide, bias))
        dt, more = (raw[:, H : 2 * H], {"dt_bias_H": b, "dt_limit": limit})
        if not made_inside:
            dt, more = time_step(dt, b, limit), {}
        y, after = ssd(x, dt, A, B, C, D, packing, before, **more)
        y.backward(weight)
        found.append([y, after, *(v.grad for v in (x, raw, A, B, C, D, before, b))])
    for mine, expected in zip(*found, strict=True):
        scale = expected.abs().max().clamp(min=1)
        assert_within("gradient", mine / scale, expected / scale, dtype=F32 if dtype == F32 else BF16)


def test_nothing_waits_and_memory_stays_small():
    """No host synchronisation, and no tensor of the size T x N x P x H."""
    inputs, _ = make(SHAPES["2.7B"], (16384,), BF16)
    packing = Packing((16384,))
    with torch.no_grad():
        ssd(*inputs, packing)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            y, after = ssd(*inputs, packing)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before < 1.6 * y.nbytes


def test_a_configuration_of_one_chunk_a_segment():
    from zamba_lm.ops.ssd.triton import configs, ssd_triton

    inputs, state = make(SHAPES["2.7B"], (500, 65), BF16)
    y, after = ssd_triton(*inputs, Packing((500, 65)), state, config=replace(configs.NARROW, most=1))
    expected, last = precise(inputs, Packing((500, 65)), state)
    assert_within("op", y, expected)
    assert_within("op", after, last, dtype=BF16)
