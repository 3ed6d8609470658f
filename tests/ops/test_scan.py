"""scan: the recurrence token by token, beside any neighbour, with any decay, never a (T, H, P, N) tensor."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import assert_gradients
from tests.ops.inputs import DECAYS, LENGTHS, MIXED, NAMES, decayed, packed
from tests.ops.inputs import scan as make
from tests.ops.memory import Held
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan import reference, scan


def alone(inputs, lengths, states=None):
    """Every sequence by itself, by the definition."""
    _, _, A, _, _, D = inputs
    return naive.each(lambda x, dt, B, C, h=None: naive.scan(x, dt, A, B, C, D, h), lengths, packed(inputs), states)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("heads", "n"), [(1, 16), (2, 16), (3, 5), (2, 64)])
def test_the_recurrence(length, heads, n):
    inputs, state = make(length, heads=heads, n=n)
    for given in (None, state):
        y, after = scan(*inputs, Packing([length]), given)
        expected, last = alone(inputs, [length], given)
        assert after.dtype == torch.float32
        assert_within("op", y, expected)
        assert_within("state", after, last)


@pytest.mark.parametrize("carried", [False, True])
def test_packed_equals_alone(carried):
    inputs, states = make(sum(MIXED), sequences=len(MIXED))
    given = states if carried else None
    kept = states.clone()
    y, after = scan(*inputs, Packing(MIXED), given)
    expected, last = alone(inputs, MIXED, given)
    assert_within("op", y, expected)
    assert_within("state", after, last)
    assert torch.equal(states, kept), "the given states were written to"


@pytest.mark.parametrize("cut", [1, 7, 16, 100])
def test_pieces_that_hand_on_their_state_equal_the_whole(cut):
    inputs, state = make(300)
    whole, last = scan(*inputs, Packing([300]), state)
    (_, _, A, _, _, D), pieces = inputs, []
    for x, dt, B, C in zip(*(v.split(cut) for v in packed(inputs)), strict=True):
        y, state = scan(x, dt, A, B, C, D, Packing([len(x)]), state)
        pieces.append(y)
    assert_within("op", torch.cat(pieces), whole)
    assert_within("state", state, last)


@pytest.mark.parametrize("chunk", [1, 2, 15, 64, 300, 1000])
def test_any_chunk_gives_the_same(chunk, monkeypatch):
    inputs, states = make(301 * 2 + 5, sequences=3)
    packing = Packing([301, 301, 5])
    monkeypatch.setattr(reference, "CHUNK", chunk)
    y, after = scan(*inputs, packing, states)
    expected, last = alone(inputs, packing.lengths, states)
    assert_within("op", y, expected)
    assert_within("state", after, last)


@pytest.mark.parametrize("length", [17, 500])
@pytest.mark.parametrize("decay", [decay for decay in DECAYS if decay != "tiny"])
def test_any_decay(decay, length):
    """Nothing becomes inf or nan, and what is left is as precise as ever."""
    inputs, state = make(length)
    inputs = [v.requires_grad_() for v in (*decayed(inputs, decay), state)]
    y, after = scan(*inputs[:6], Packing([length]), inputs[6])
    expected, last = alone([v.detach() for v in inputs[:6]], [length], state.detach())
    assert_within("op", y, expected)
    assert_within("state", after, last)
    (y.sum() + after.sum()).backward()
    assert all(v.grad.isfinite().all() for v in inputs)


@pytest.mark.parametrize("length", [17, 500])
def test_a_tiny_decay(length):
    """A float32 state that hardly changes rounds the same way at every token: decay, product and sum lose half a unit each."""
    inputs, state = make(length)
    inputs = decayed(inputs, "tiny")
    _, after = scan(*inputs, Packing([length]), state)
    _, last = alone(inputs, [length], state)
    assert (after - last).abs().max() < 3 * length * 2**-24 * last.abs().max()


@pytest.mark.parametrize("bad", range(len(MIXED)))
def test_nan_stays_in_its_sequence(bad):
    inputs, states = make(sum(MIXED), sequences=len(MIXED))
    clean, clean_after = scan(*inputs, Packing(MIXED), states)
    start = sum(MIXED[:bad])
    for value in packed(inputs):
        value[start : start + MIXED[bad]] = torch.nan
    states[bad] = torch.nan
    y, after = scan(*inputs, Packing(MIXED), states)
    for s, (now, before) in enumerate(zip(y.split(MIXED), clean.split(MIXED), strict=True)):
        assert now.isnan().all() if s == bad else torch.equal(now, before)
        assert after[s].isnan().all() if s == bad else torch.equal(after[s], clean_after[s])


@pytest.mark.parametrize("length", [1, 2, 63, 65, 300])
def test_bfloat16_stays_close(length):
    inputs, state = make(length, dtype=torch.bfloat16)
    y, after = scan(*inputs, Packing([length]), state)
    expected, last = alone(inputs, [length], state)
    assert y.dtype == torch.bfloat16
    assert_within("op", y, expected)
    assert_within("state", after, last)


@pytest.mark.parametrize("lengths", [(1,), (2,), (16,), (65,), (3, 3, 40)])
def test_gradients(lengths):
    values, states = make(sum(lengths), width=3, n=4, sequences=len(lengths))
    inputs = dict(zip((*NAMES, "state"), (*values, states), strict=True))

    def oracle(state, **inputs):
        return alone(inputs.values(), lengths, state)

    assert_gradients(lambda state, **i: scan(*i.values(), Packing(lengths), state), oracle, inputs)


@pytest.mark.parametrize("only", range(7))
def test_a_gradient_alone_is_the_one_among_all(only):
    """Where nothing wants a gradient, states are made in place: that must not destroy what one lone input needs."""
    values, state = make(40, width=3, n=4)
    everything = [v.clone().requires_grad_() for v in (*values, state)]
    one = [v.clone().requires_grad_(i == only) for i, v in enumerate((*values, state))]
    for inputs in (everything, one):
        y, _ = scan(*inputs[:6], Packing([40]), inputs[6])
        y.sin().sum().backward()
    assert_within("gradient", one[only].grad, everything[only].grad)


def test_never_a_tensor_of_all_tokens_and_states():
    inputs, state = make(1000, width=100)
    with torch.no_grad(), Held() as held:
        y, after = scan(*inputs, Packing([1000]), state)
    assert held.now == y.nbytes + after.nbytes, "something outlives the call"
    assert held.peak < 1000 * state.nbytes / 5
    assert held.largest <= max(y.nbytes, reference.CHUNK * state.nbytes)


def test_gradients_keep_no_tensor_of_all_tokens_and_states():
    inputs, state = make(1000, width=50)
    inputs = [v.requires_grad_() for v in inputs]
    with Held() as held:
        y, _ = scan(*inputs, Packing([1000]), state)
        assert held.now < 1000 * state.nbytes / 5, "kept for the way back"
        y.sum().backward()
    assert held.peak < 1000 * state.nbytes / 2


def test_what_does_not_fit_is_named():
    (x, dt, A, B, C, D), state = make(7)
    for wrong in (
        (x, dt, A, B, C, D, Packing([8])),
        (x, dt[:, :, :1], A, B, C, D, Packing([7])),
        (x, dt, A, B[:, :1], C[:, :1], D, Packing([7])),
        (x, dt, A, B, C[:, :, :3], D, Packing([7])),
    ):
        with pytest.raises(ValueError, match=r"x \(7, 2, 6\), dt .*, B .*, C .* do not fit Packing"):
            scan(*wrong)
    with pytest.raises(ValueError, match=r"state is \(1, 2, 6, 16\), expected \(2, 2, 6, 16\) for Packing\(\(3, 4\)\)"):
        scan(x, dt, A, B, C, D, Packing([3, 4]), state)
