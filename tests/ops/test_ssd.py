"""ssd: the recurrence token by token, in any cutting, beside any neighbour, with any decay."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import assert_gradients
from tests.ops.inputs import DECAYS, LENGTHS, MIXED, NAMES, decayed, packed
from tests.ops.inputs import ssd as make
from tests.ops.memory import Held
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd import ssd
from zamba_lm.ops.ssd.reference import ssd_reference
from zamba_lm.ops.step import time_step


def alone(inputs, lengths, states=None):
    """Every sequence by itself, by the definition."""
    _, _, A, _, _, D = inputs
    return naive.each(lambda x, dt, B, C, h=None: naive.ssd(x, dt, A, B, C, D, h), lengths, packed(inputs), states)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("groups", "n"), [(1, 16), (2, 16), (2, 64), (1, 128)])
def test_the_recurrence(length, groups, n):
    inputs, state = make(length, groups=groups, n=n)
    for given in (None, state):
        y, after = ssd(*inputs, Packing([length]), given)
        expected, last = alone(inputs, [length], given)
        assert after.dtype == torch.float32
        assert_within("op", y, expected)
        assert_within("state", after, last)


@pytest.mark.parametrize("carried", [False, True])
def test_packed_equals_alone(carried):
    inputs, states = make(sum(MIXED), groups=2, sequences=len(MIXED))
    given = states if carried else None
    kept = states.clone()
    y, after = ssd(*inputs, Packing(MIXED), given)
    expected, last = alone(inputs, MIXED, given)
    assert_within("op", y, expected)
    assert_within("state", after, last)
    assert torch.equal(states, kept), "the given states were written to"


@pytest.mark.parametrize("cut", [1, 7, 64, 100])
def test_pieces_that_hand_on_their_state_equal_the_whole(cut):
    inputs, state = make(300)
    whole, last = ssd(*inputs, Packing([300]), state)
    (_, _, A, _, _, D), pieces = inputs, []
    for x, dt, B, C in zip(*(v.split(cut) for v in packed(inputs)), strict=True):
        y, state = ssd(x, dt, A, B, C, D, Packing([len(x)]), state)
        pieces.append(y)
    assert_within("op", torch.cat(pieces), whole)
    assert_within("state", state, last)


@pytest.mark.parametrize(("chunk", "span"), [(1, 1), (3, 7), (7, 64), (16, 16), (64, 100), (500, 64), (64, 300), (1000, 1000)])
def test_any_chunk_and_span_give_the_same(chunk, span):
    inputs, states = make(301 * 2 + 5, groups=2, sequences=3)
    packing = Packing([301, 301, 5])
    expected, last = alone(inputs, packing.lengths, states)
    y, after = ssd_reference(*inputs, packing, states, chunk=chunk, span=span)
    assert_within("op", y, expected)
    assert_within("state", after, last)


@pytest.mark.parametrize("length", [65, 1500])
@pytest.mark.parametrize("decay", DECAYS)
def test_any_decay(decay, length):
    """What is left is as precise as ever, however large the sums of log decays grow, and nothing becomes inf or nan."""
    inputs, state = make(length)
    inputs = [v.requires_grad_() for v in (*decayed(inputs, decay), state)]
    y, after = ssd(*inputs[:6], Packing([length]), inputs[6])
    expected, last = alone([v.detach() for v in inputs[:6]], [length], state.detach())
    assert_within("op", y, expected)
    assert_within("state", after, last)
    (y.sum() + after.sum()).backward()
    assert all(v.grad.isfinite().all() for v in inputs)


@pytest.mark.parametrize("every", [64, 192, 2048, 4096])
@pytest.mark.parametrize("lengths", [(1,), (64, 65), (2500, 63), (191, 192, 192, 193)])
def test_states_on_the_way(lengths, every):
    """They are the states after pieces of that many tokens; the last one of a sequence is its final state."""
    inputs, states = make(sum(lengths), heads=2, groups=2, sequences=len(lengths))
    y, after, kept = ssd(*inputs, Packing(lengths), states, chunk_states=every)
    plain = ssd(*inputs, Packing(lengths), states)
    assert torch.equal(y, plain[0]) and torch.equal(after, plain[1])
    x, dt, A, B, C, D = inputs
    expected, start = [], 0
    for length, state in zip(lengths, states.split(1), strict=True):
        for piece in range(start, start + length, every):
            cut = slice(piece, min(piece + every, start + length))
            state = ssd(x[cut], dt[cut], A, B[cut], C[cut], D, Packing([cut.stop - cut.start]), state)[1]
            expected.append(state)
        start += length
    assert_within("state", kept, torch.cat(expected))


def test_states_on_the_way_carry_no_gradient():
    (x, *rest), _ = make(70)
    y, after, kept = ssd(x.requires_grad_(), *rest, Packing([70]), chunk_states=64)
    assert y.requires_grad and after.requires_grad and not kept.requires_grad


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.05, 0.3)])
def test_a_raw_time_step(limit):
    (x, dt, A, B, C, D), state = make(70)
    raw, bias = dt.mul(20).sub(3).bfloat16(), torch.linspace(-1, 1, 4)
    y, after = ssd(x, raw, A, B, C, D, Packing([70]), state, dt_bias_H=bias, dt_limit=limit)
    expected = ssd(x, time_step(raw, bias, limit), A, B, C, D, Packing([70]), state)
    assert torch.equal(y, expected[0]) and torch.equal(after, expected[1])


@pytest.mark.parametrize("bad", range(len(MIXED)))
def test_nan_stays_in_its_sequence(bad):
    inputs, states = make(sum(MIXED), sequences=len(MIXED))
    clean, clean_after = ssd(*inputs, Packing(MIXED), states)
    start = sum(MIXED[:bad])
    for value in packed(inputs):
        value[start : start + MIXED[bad]] = torch.nan
    states[bad] = torch.nan
    y, after = ssd(*inputs, Packing(MIXED), states)
    for s, (now, before) in enumerate(zip(y.split(MIXED), clean.split(MIXED), strict=True)):
        assert now.isnan().all() if s == bad else torch.equal(now, before)
        assert after[s].isnan().all() if s == bad else torch.equal(after[s], clean_after[s])


@pytest.mark.parametrize("length", [1, 2, 63, 65, 300])
def test_bfloat16_stays_close(length):
    inputs, state = make(length, dtype=torch.bfloat16)
    expected, last = alone(inputs, [length], state)
    for product_dtype in (torch.float32, torch.bfloat16):
        y, after = ssd_reference(*inputs, Packing([length]), state, product_dtype=product_dtype)
        assert y.dtype == torch.bfloat16 and after.dtype == torch.float32
        assert_within("op", y, expected)
        assert_within("state" if product_dtype == torch.float32 else "op", after, last, dtype=product_dtype)


@pytest.mark.parametrize(("lengths", "groups"), [((1,), 1), ((2,), 2), ((65,), 2), ((130,), 1), ((3, 3, 70), 2)])
def test_gradients(lengths, groups):
    values, states = make(sum(lengths), width=3, n=4, groups=groups, sequences=len(lengths))
    inputs = dict(zip((*NAMES, "state"), (*values, states), strict=True))

    def oracle(state, **inputs):
        return alone(inputs.values(), lengths, state)

    assert_gradients(lambda state, **i: ssd(*i.values(), Packing(lengths), state), oracle, inputs)


def test_gradients_through_spans():
    values, states = make(75, width=3, n=4)
    inputs = dict(zip((*NAMES, "state"), (*values, states), strict=True))

    def in_spans(state, **inputs):
        return ssd_reference(*inputs.values(), Packing([75]), state, chunk=8, span=20)

    assert_gradients(in_spans, lambda state, **i: alone(i.values(), [75], state), inputs)


def extra_bytes(length):
    """Most bytes held at once beyond the inputs and the output."""
    inputs, _ = make(length, heads=4, width=16, n=16)
    with torch.no_grad(), Held() as held:
        y, after = ssd(*inputs, Packing([length]))
    assert held.now == y.nbytes + after.nbytes, "something outlives the call"
    return held.peak - y.nbytes


def test_memory_does_not_grow_with_length():
    short, long = extra_bytes(4096), extra_bytes(8192)
    assert short < 8e6  # 2048 tokens x 4 heads x 4 bytes x some 210 numbers: three times a chunk's 64, and states
    assert long < 1.02 * short


def test_what_does_not_fit_is_named():
    (x, dt, A, B, C, D), state = make(7, groups=2)
    for wrong in (
        (x, dt, A, B, C, D, Packing([8])),
        (x, dt[:6], A, B, C, D, Packing([7])),
        (x, dt, A, B[:, :1], C, D, Packing([7])),
        (x, dt, A, torch.cat([B, B]), torch.cat([C, C]), D, Packing([7])),
        (x[:, :3], dt[:, :3], A[:3], B, C, D[:3], Packing([7])),
    ):
        with pytest.raises(ValueError, match=r"x \(7, \d, 5\), dt .*, B .*, C .* do not fit Packing"):
            ssd(*wrong)
    with pytest.raises(ValueError, match=r"state is \(1, 4, 5, 16\), expected \(2, 4, 5, 16\) for Packing\(\(3, 4\)\)"):
        ssd(x, dt, A, B, C, D, Packing([3, 4]), state)
    with pytest.raises(ValueError, match=r"state is \(1, 4, 16, 5\), expected \(1, 4, 5, 16\)"):
        ssd(x, dt, A, B, C, D, Packing([7]), state.transpose(2, 3))
    with pytest.raises(ValueError, match="chunk_states is 100, expected 0 or a multiple of 64"):
        ssd(x, dt, A, B, C, D, Packing([7]), chunk_states=100)
