"""ssd's Triton kernels, interpreted: the reference's numbers in any cutting, gradients, states on the way, packed neighbours."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import assert_gradients
from tests.ops.inputs import DECAYS, NAMES, decayed, packed
from tests.ops.inputs import ssd as make
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd import ssd

configs = pytest.importorskip("zamba_lm.ops.ssd.triton.configs", reason="triton is not installed")
triton = pytest.importorskip("zamba_lm.ops.ssd.triton", reason="triton is not installed")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles here; tests/gpu runs the kernels for real")

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CUT = replace(configs.EXACT, most=1)  # a segment is one chunk: every state is handed on
WHOLE = replace(configs.EXACT, chunk=64, wide=64, programs=1)  # the interpreter counts 4 multiprocessors


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that kernels are given is full of NaN, so that what they leave out shows."""
    empty = torch.empty

    def full_of_nan(*args, **kwargs):
        v = empty(*args, **kwargs)
        return v.fill_(torch.nan) if v.is_floating_point() else v

    monkeypatch.setattr(torch, "empty", full_of_nan)


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """Triton 3.6's interpreter keeps bfloat16 as its bits and multiplies those: give its products the numbers."""
    builder = pytest.importorskip("triton.runtime.interpreter").InterpreterBuilder
    create_dot = builder.create_dot

    def numbers(v):
        if v.dtype.scalar.name == "bf16":
            v = copy(v)
            v.data = (v.data.astype(np.uint32) << 16).view(np.float32)
        return v

    monkeypatch.setattr(builder, "create_dot", lambda self, a, b, *rest: create_dot(self, numbers(a), numbers(b), *rest))


def run(*args, config=None, **kwargs):
    with interpreted():
        if config is not None:
            return triton.ssd_triton(*args, config=config, **kwargs)
        with force(ssd="triton"):
            return ssd(*args, **kwargs)


def alone(inputs, lengths, states=None):
    _, _, A, _, _, D = inputs
    return naive.each(lambda x, dt, B, C, h=None: naive.ssd(x, dt, A, B, C, D, h), lengths, packed(inputs), states)


def as_the_model(inputs):
    """x, B and C as slices of one tensor, its rows longer than they are."""
    x, dt, A, B, C, D = inputs
    widths = [v[0].numel() for v in (x, B, C)]
    rows = torch.cat([*(v.flatten(1) for v in (x, B, C)), torch.full((len(x), 3), torch.nan, dtype=x.dtype)], dim=1)
    x, B, C = (part.unflatten(1, v.shape[1:]) for part, v in zip(rows.split([*widths, 3], dim=1), (x, B, C)))
    dt = torch.cat([dt, torch.full_like(dt, torch.nan)], dim=1)[:, : dt.shape[1]]
    return x, dt, A, B, C, D


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize(("carried", "groups", "n", "config"), [(False, 1, 16, WHOLE), (True, 2, 17, CUT)])
def test_the_recurrence(length, carried, groups, n, config):
    inputs, state = make(length, heads=4 if length < 100 else 2, groups=groups, n=n)
    given = state if carried else None
    y, after = run(*as_the_model(inputs), Packing([length]), given, config=config)
    expected, last = alone(inputs, [length], given)
    assert y.dtype == after.dtype == F32
    assert_within("op", y, expected)
    assert_within("state", after, last)


@pytest.mark.parametrize(
    ("lengths", "every", "dtype"), [((1, 2, 2, 65), 64, F32), ((1, 2, 2, 65), 64, F16), ((200, 129), 128, BF16)]
)
def test_packed_with_states_on_the_way(lengths, every, dtype):
    inputs, states = make(sum(lengths), heads=2, groups=2, sequences=len(lengths), dtype=dtype)
    before = states.clone()
    with record() as calls:
        y, after, kept = run(*as_the_model(inputs), Packing(lengths), states, every)
    assert calls == [("ssd", "triton")]
    assert torch.equal(states, before), "the given states were written to"
    expected, last = alone(inputs, lengths, states)
    *_, ways = ssd(*inputs, Packing(lengths), states, every)
    assert y.dtype == dtype
    assert_within("op", y, expected)
    case = "state" if dtype == F32 else "op"
    assert_within(case, after, last, dtype=dtype)
    assert_within(case, kept, ways, dtype=dtype)


@pytest.mark.parametrize(
    ("config", "width", "n"), [(CUT, 3, 4), (CUT, 20, 33), (WHOLE, 70, 8), (replace(configs.NARROW, programs=1, most=2), 20, 33)]
)
def test_any_configuration_and_size(config, width, n):
    lengths = (150, 1)
    inputs, states = make(sum(lengths), heads=2, width=width, n=n, sequences=2)
    y, after = run(*inputs, Packing(lengths), states, config=config)
    expected, last = alone(inputs, lengths, states)
    assert_within("op", y, expected)
    assert_within("state", after, last)


@pytest.mark.parametrize("decay", DECAYS)
def test_any_decay(decay):
    """As precise as ever behind a wiped state, and nothing becomes inf or nan."""
    inputs, state = make(70, heads=1)
    inputs = [v.requires_grad_() for v in (*decayed(inputs, decay), state)]
    y, after = run(*inputs[:6], Packing([70]), inputs[6])
    expected, last = alone([v.detach() for v in inputs[:6]], [70], state.detach())
    assert_within("op", y, expected)
    assert_within("state", after, last)
    with interpreted():
        (y.sum() + after.sum()).backward()
    assert all(v.grad.isfinite().all() for v in inputs)


@pytest.mark.parametrize("bad", range(3))
def test_nan_stays_in_its_sequence(bad):
    lengths = (65, 2, 33)
    inputs, states = make(sum(lengths), heads=1, sequences=3)
    clean, clean_after = run(*inputs, Packing(lengths), states)
    start = sum(lengths[:bad])
    for value in packed(inputs):
        value[start : start + lengths[bad]] = torch.nan
    states[bad] = torch.nan
    y, after = run(*inputs, Packing(lengths), states)
    for s, (now, before) in enumerate(zip(y.split(lengths), clean.split(lengths), strict=True)):
        assert now.isnan().all() if s == bad else torch.equal(now, before)
        assert after[s].isnan().all() if s == bad else torch.equal(after[s], clean_after[s])


@pytest.mark.parametrize(
    ("lengths", "groups", "config"),
    [((1,), 1, None), ((65,), 1, replace(CUT, heads=1)), ((3, 70), 2, WHOLE), ((3, 70), 2, CUT)],
)
def test_gradients(lengths, groups, config):
    values, states = make(sum(lengths), width=3, n=4, groups=groups, sequences=len(lengths))
    inputs = dict(zip((*NAMES, "state"), (*values, states), strict=True))

    def oracle(state, **inputs):
        return alone(inputs.values(), lengths, state)

    with interpreted():
        assert_gradients(lambda state, **i: run(*i.values(), Packing(lengths), state, config=config), oracle, inputs)


def test_gradients_without_states():
    """Neither given before nor used after."""
    values, _ = make(66, heads=2, width=3, n=4)
    inputs = dict(zip(NAMES, values, strict=True))
    with interpreted():
        assert_gradients(lambda **i: run(*i.values(), Packing([66]))[:1], lambda **i: alone(i.values(), [66])[:1], inputs)


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.05, 0.3)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_raw_time_steps_and_their_gradients(dtype, limit):
    """dt as a slice of a wider row, softplus and limits inside."""
    (x, dt, A, B, C, D), state = make(66, width=3, n=4)
    wide = torch.cat([dt * 40 - 5, torch.full_like(dt, torch.nan)], dim=1).to(dtype)
    bias = torch.linspace(-1, 1, 4)
    found = []
    for function in (run, ssd):
        leaves = [v.detach().clone().requires_grad_() for v in (x, wide, A, B, C, D, state, bias)]
        raw = leaves[1][:, : dt.shape[1]]
        y, after = function(leaves[0], raw, *leaves[2:6], Packing([66]), leaves[6], dt_bias_H=leaves[7], dt_limit=limit)
        with interpreted():
            torch.autograd.backward([y, after], [torch.cos(torch.arange(y.numel())).view_as(y), torch.ones_like(after)])
        found.append([y, after, *(v.grad for v in leaves)])
    assert found[1][3].abs().max() > 1e-3 and found[1][9].abs().max() > 1e-3
    assert found[0][3].dtype == dtype
    for mine, reference in zip(*found, strict=True):
        assert_within("gradient", mine.float(), reference.float(), dtype=F32 if dtype == F32 else BF16)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_narrow_gradients_stay_close(dtype):
    values, states = make(100, dtype=dtype, groups=2)
    weights = torch.randn(100, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for function in (run, ssd):
        leaves = [v.detach().clone().requires_grad_() for v in (*values, states)]
        y, after = function(*leaves[:6], Packing([100]), leaves[6])
        with interpreted():
            torch.autograd.backward([y, after], [weights, torch.ones_like(after)])
        found.append([v.grad for v in leaves])
    for leaf, mine, reference in zip((*values, states), *found, strict=True):
        assert mine.dtype == leaf.dtype
        assert_within("gradient", mine.float(), reference.float(), dtype=BF16)


def test_inference_mode_and_what_is_refused():
    (x, dt, A, B, C, D), _ = make(5)
    with torch.inference_mode():
        y, _ = run(x, dt, A, B, C, D, Packing([5]))
    run(x.requires_grad_(), dt, A, B, C, D, Packing([5]))[0].sum()  # with the tables made in inference mode
    with pytest.raises(ValueError, match="takes one of float32, bfloat16, float16 for all three"):
        run(x, dt, A, B.bfloat16(), C, D, Packing([5]))
    with pytest.raises(ValueError, match="dt is torch.bfloat16, expected torch.float32"):
        run(x, dt.bfloat16(), A, B, C, D, Packing([5]))
    (x, *rest), _ = make(5, n=300)
    with pytest.raises(ValueError, match="heads are 5 wide with d_state 300; the Triton ssd takes up to 128 and 256"):
        run(x, *rest, Packing([5]))
    (x, *rest), _ = make(5, width=65, n=200)
    with pytest.raises(ValueError, match="gradients of torch.float32 heads 65 wide with d_state 200 do not fit"):
        run(x.requires_grad_(), *rest, Packing([5]))
