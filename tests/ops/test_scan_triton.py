"""The scan's Triton kernels through the interpreter: small, odd and packed, poisoned outputs, strided inputs, gradients."""

from contextlib import nullcontext

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import assert_gradients, gradients
from tests.ops.inputs import NAMES, decayed, packed
from tests.ops.inputs import scan as make
from tests.ops.scans import defined, mixer
from zamba_lm.ops.dispatch import force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan import scan
from zamba_lm.ops.scan.triton import configs
from zamba_lm.ops.soon import backward_follows

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu/test_scan_cuda.py runs the real kernels")


@pytest.fixture(autouse=True)
def through_the_interpreter():
    """What is not written to stays NaN: torch fills new tensors with it while it is deterministic."""
    torch.use_deterministic_algorithms(True)
    with interpreted(), force(scan="triton"):
        yield
    torch.use_deterministic_algorithms(False)


def alone(inputs, lengths, states=None):
    _, _, A, _, _, D = inputs
    return naive.each(lambda x, dt, B, C, h=None: naive.scan(x, dt, A, B, C, D, h), lengths, packed(inputs), states)


def assert_right(inputs, lengths, state=None):
    y, after = scan(*inputs, Packing(lengths), state)
    expected, last = alone(inputs, lengths, state)
    assert y.dtype == inputs[0].dtype and after.dtype == torch.float32
    assert_within("op", y, expected)
    assert_within("state", after, last)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 63, 64, 65])
def test_the_recurrence(length):
    inputs, state = make(length, heads=1)
    with record() as calls:
        assert_right(inputs, [length], state if length % 2 else None)
    assert calls == [("scan", "triton")]


@pytest.mark.parametrize(("heads", "width", "n"), [(3, 5, 5), (1, 33, 16), (1, 16, 1), (1, 4, 64)])
def test_any_width_and_state_size(heads, width, n):
    inputs, state = make(5, heads=heads, width=width, n=n)
    assert_right(inputs, [5], state)


@pytest.mark.parametrize("how", [{"SPLIT": 1, "TILES": 2, "HOLD": 1, "FAR": 0}, {"SPLIT": 8, "TILES": 1, "HOLD": 16, "FAR": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_split(how, dtype, monkeypatch):
    monkeypatch.setattr(configs, "forward", lambda *_: how)
    inputs, states = make(23, heads=1, sequences=3, dtype=dtype)
    assert_right(inputs, [9, 1, 13], states)


@pytest.mark.parametrize("bad", range(3))
def test_nan_stays_in_its_sequence(bad):
    lengths = [9, 3, 12]
    inputs, states = make(24, heads=1, sequences=3)
    kept = states.clone()
    clean, clean_after = scan(*inputs, Packing(lengths), states)
    assert torch.equal(states, kept), "the given states were written to"
    start = sum(lengths[:bad])
    for value in packed(inputs):
        value[start : start + lengths[bad]] = torch.nan
    states[bad] = torch.nan
    y, after = scan(*inputs, Packing(lengths), states)
    for s, (now, before) in enumerate(zip(y.split(lengths), clean.split(lengths), strict=True)):
        assert now.isnan().all() if s == bad else torch.equal(now, before)
        assert after[s].isnan().all() if s == bad else torch.equal(after[s], clean_after[s])


@pytest.mark.parametrize("decay", ["to zero at once", "strong and weak by turns", "weak, then strong"])
def test_any_decay(decay):
    inputs, state = make(9, heads=1, width=3, n=4)
    inputs = decayed(inputs, decay)
    assert_right(inputs, [9], state)
    leaves = [v.requires_grad_() for v in (*inputs, state)]
    y, after = scan(*leaves[:6], Packing([9]), leaves[6])
    (y.sum() + after.sum()).backward()
    assert all(v.grad.isfinite().all() for v in leaves)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("lengths", [(1,), (3, 9, 2)])
def test_with_raw_time_steps_and_gate(lengths, limited):
    given = mixer(sum(lengths), sequences=len(lengths), limited=limited)
    y, after = scan(packing=Packing(lengths), **given)
    expected, last = defined(lengths, **given)
    assert_within("op", y, expected)
    assert_within("state", after, last)


def test_tiny_and_large_time_steps():
    """softplus of -20 is 2e-9 and must not become 0, and that of 50 is 50."""
    given = mixer(10, limited=False, heads=1)
    given["dt_THP"] = torch.linspace(-20, 50, 10)[:, None, None].expand(10, 1, 5).contiguous()
    given["x_THP"] = 1.0 / torch.nn.functional.softplus(given["dt_THP"] + given["dt_bias_HP"])
    assert_within("op", scan(packing=Packing([10]), **given)[0], defined([10], **given)[0])


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("lengths", [(1,), (8,), (3, 3, 20)])
def test_gradients(lengths, at_once, monkeypatch):
    monkeypatch.setattr(configs, "KEEP", 16)
    values, states = make(sum(lengths), heads=1, width=3, n=4, sequences=len(lengths))
    inputs = dict(zip((*NAMES, "state"), (*values, states), strict=True))

    def oracle(state, **inputs):
        return alone(inputs.values(), lengths, state)

    with backward_follows() if at_once else nullcontext():
        assert_gradients(lambda state, **i: scan(*i.values(), Packing(lengths), state), oracle, inputs)


def test_gradients_over_several_parts_of_the_channels(monkeypatch):
    monkeypatch.setattr(configs, "parts", lambda *_: 2)
    values, state = make(4, heads=1, width=50, n=5)
    inputs = dict(zip((*NAMES, "state"), (*values, state), strict=True))
    oracle = lambda state, **i: alone(i.values(), (4,), state)  # noqa: E731
    assert_gradients(lambda state, **i: scan(*i.values(), Packing([4]), state), oracle, inputs)


@pytest.mark.parametrize(("lengths", "limited", "heads"), [((5,), True, 2), ((9, 2), False, 1)])
def test_gradients_with_raw_time_steps_and_gate(lengths, limited, heads):
    given = mixer(sum(lengths), width=3, heads=heads, sequences=len(lengths), limited=limited)
    rest = {"dt_limit": given.pop("dt_limit")}
    ours = lambda **i: scan(packing=Packing(lengths), **i, **rest)  # noqa: E731
    assert_gradients(ours, lambda **i: defined(lengths, **i, **rest), given)


@pytest.mark.parametrize("only", [0, 2, 3])
def test_a_gradient_alone_is_the_one_among_all(only):
    values, state = make(5, heads=1, width=3, n=4)
    everything = [v.clone().requires_grad_() for v in (*values, state)]
    one = [v.clone().requires_grad_(i == only) for i, v in enumerate((*values, state))]
    for inputs in (everything, one):
        y, _ = scan(*inputs[:6], Packing([5]), inputs[6])
        y.sin().sum().backward()
    assert torch.equal(one[only].grad, everything[only].grad)


def test_the_gradient_of_the_last_state_alone():
    values, state = make(9, heads=1, width=3, n=4)
    inputs = dict(zip((*NAMES, "state"), (*values, state), strict=True))
    actual = gradients(lambda state, **i: scan(*i.values(), Packing([9]), state)[1:], inputs)
    double = {name: v.double() for name, v in inputs.items()}
    expected = gradients(lambda state, **i: alone(i.values(), [9], state)[1:], double)
    for name in ("x", "dt", "A", "B", "state"):
        assert_within("gradient", actual[name], expected[name])


def test_bfloat16_gradients_come_back_in_bfloat16():
    given = mixer(5, width=3, heads=1, dtype=torch.bfloat16)
    rest = {"dt_limit": given.pop("dt_limit")}
    actual = gradients(lambda **i: scan(packing=Packing([5]), **i, **rest), given)
    expected = gradients(lambda **i: defined([5], **i, **rest), {name: v.double() for name, v in given.items()})
    for name, value in given.items():
        assert actual[name].dtype == value.dtype
        assert_within("gradient", actual[name], expected[name], dtype=torch.bfloat16)


def test_what_no_kernel_reads_is_named():
    (x, dt, A, B, C, D), _ = make(3)
    with pytest.raises(TypeError, match=r"B is torch.float64, expected one of torch.float32"):
        scan(x, dt, A, B.double(), C, D, Packing([3]))
