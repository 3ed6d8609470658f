"""Memory continued in place, in the slots that a list names; and frames, whose lengths kernels read on the device."""

from contextlib import contextmanager

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import inputs
from tests.ops.attention_cases import make as make_qkv
from tests.ops.caches import content, paged
from tests.ops.test_conv import make as make_conv
from zamba_lm.ops.attention import KVCache, attention
from zamba_lm.ops.attention.reference import attention_reference
from zamba_lm.ops.conv import conv
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.packing import Frame, Packing
from zamba_lm.ops.scan import scan
from zamba_lm.ops.ssd import ssd

LENGTHS = [(5,), (2, 9, 1), (1, 1), (70, 3)]
SEATS, ROOM = 3, 80
SLOTS = (4, 0, 2)


@contextmanager
def kernels(way):
    """Inside, the kernels are interpreted, or the references run."""
    if way == "triton":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("Triton compiles here; tests/gpu runs the kernels for real")
    with interpreted(), force(conv=way, ssd=way, scan=way, attention=way):
        yield


def packings(lengths):
    """The plain packing of these lengths with its slots, and frames that were used for others before."""
    slots = torch.tensor(SLOTS[: len(lengths)], dtype=torch.int32)
    yield Packing(lengths), slots
    frame = Frame(SEATS, ROOM)
    frame.cu_seqlens()
    for before in ((7, 60, 3), lengths):
        frame.fill(before)
    padded = torch.full((SEATS,), 5, dtype=torch.int32)  # nobody's, and nobody may touch it
    padded[: len(lengths)] = slots
    yield frame, padded


def filled(x, packing):
    """x with as many rows as the packing has room for; those behind it are NaN."""
    return torch.cat([x, x.new_full((packing.total - len(x), *x.shape[1:]), torch.nan)])


def check_memory(memory, before, after, lengths):
    used = list(SLOTS[: len(lengths)])
    assert_within("state" if memory.dtype == torch.float32 else "op", memory[used], after)
    others = [slot for slot in range(len(memory)) if slot not in used]
    assert torch.equal(memory[others], before[others])


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("way", ["triton", "reference"])
def test_conv(way, lengths):
    x, weight, bias, window = make_conv(sum(lengths), sequences=6)
    expected, after = conv(x, weight, bias, Packing(lengths), window[list(SLOTS[: len(lengths)])])
    for packing, slots in packings(lengths):
        if way == "reference" and not packing.known:
            continue
        memory = window.clone()
        with kernels(way):
            y, same = conv(filled(x, packing), weight, bias, packing, memory, slots_S=slots, in_place=True)
        assert same is memory
        assert_within("op", y[: len(x)], expected)
        check_memory(memory, window, after, lengths)


WAYS = pytest.mark.parametrize(
    ("way", "dtype"), [("triton", torch.float32), ("triton", torch.bfloat16), ("reference", torch.float32)]
)


@WAYS
@pytest.mark.parametrize("lengths", LENGTHS)
def test_ssd(way, dtype, lengths):
    check_recurrence(ssd, *inputs.ssd(sum(lengths), sequences=6), way, dtype, lengths)


@WAYS
@pytest.mark.parametrize("lengths", LENGTHS[:3])
def test_scan(way, dtype, lengths):
    check_recurrence(scan, *inputs.scan(sum(lengths), heads=1, sequences=6), way, dtype, lengths)


def check_recurrence(op, arguments, state, way, dtype, lengths):
    """``op`` goes on with the states of some slots in their place, and leaves the others alone."""
    x, dt, A, B, C, D = arguments
    state = state.to(dtype).float()
    expected, after = op(x, dt, A, B, C, D, Packing(lengths), state[list(SLOTS[: len(lengths)])])
    for packing, slots in packings(lengths):
        if way == "reference" and not packing.known:
            continue
        memory = state.clone().to(dtype)
        x_T, dt_T, B_T, C_T = (filled(v, packing) for v in (x, dt, B, C))
        with kernels(way):
            y, same = op(x_T, dt_T, A, B_T, C_T, D, packing, memory, slots_S=slots, in_place=True)
        assert same is memory
        assert_within("op", y[: len(x)], expected)
        check_memory(memory, state.to(dtype), after.to(dtype), lengths)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention(lengths):
    past = (20, 0, 33)[: len(lengths)]
    q, k, v = make_qkv(sum(lengths), 20)
    before = [make_qkv(p + 1, 20)[1:] for p in past]
    before = [(keys[:-1], values[:-1]) for keys, values in before]
    totals = [p + n for p, n in zip(past, lengths, strict=True)]
    frame = Frame(SEATS, ROOM)
    for some in ((7, 60, 3), lengths):
        frame.fill(some)
    cache, plain = (paged(before, totals, page=16, heads=2, width=20) for _ in range(2))
    pad = [0] * (SEATS - len(lengths))
    pages = torch.cat([cache.pages_SM, torch.zeros(len(pad), cache.pages_SM.shape[1], dtype=torch.int32)])
    ages = torch.tensor([*past, *pad], dtype=torch.int32)
    expected = attention_reference(q, k, v, 0.3, Packing(lengths), plain)
    with kernels("triton"):
        y = attention(*(filled(one, frame) for one in (q, k, v)), 0.3, frame, KVCache(cache.keys, cache.values, pages, ages))
    assert_within("op", y[: sum(lengths)], expected)
    for s, total in enumerate(totals):
        for kept, given in zip(content(cache, s, total), content(plain, s, total), strict=True):
            assert torch.equal(kept, given)
    assert cache.keys.isnan().sum() == plain.keys.isnan().sum(), "nothing but the new entries is written"


def test_a_long_past_and_the_new_tokens_are_joined(monkeypatch):
    pytest.importorskip("triton")
    from zamba_lm.ops.attention.triton import joined as run

    def flash(q, k, v, scale, causal):
        scores = torch.einsum("thd,nhd->htn", q, k) * scale
        if causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(), -torch.inf)
        return torch.einsum("htn,nhd->thd", scores.softmax(-1), v), scores.logsumexp(-1)

    monkeypatch.setitem(run.__globals__, "flash", flash)  # torch's own is for GPUs
    q, k, v = make_qkv(20, 24)
    keys, values = (one[:37] for one in make_qkv(38, 24)[1:])
    cache = paged([(keys, values)], [57], page=16, heads=2, width=24)
    expected = attention_reference(q, k, v, 0.3, Packing([20]), cache)
    with kernels("triton"):
        assert_within("op", run(q, k, v, 0.3, cache, 37), expected)


def test_a_frame_has_room_for_whatever_fits():
    frame = Frame(3, 10)
    assert len(frame) == 3 and frame.total == 10 and not frame.known
    starts = frame.cu_seqlens()
    rows = frame.tables(lambda lengths: ([(s, n) for s, n in enumerate(lengths) if n],))[0]
    for lengths in [(10,), (1, 2), (8, 1, 1), (1,)]:
        frame.fill(lengths)
        assert starts.tolist() == [sum(lengths[:s]) for s in range(4)], "the same tensor, for captured passes hold its address"
        pad = [[0, 0]] * (3 - len(lengths))
        assert rows.tolist() == [[s, n] for s, n in enumerate(lengths)] + pad
        assert frame.last()[: len(lengths)].tolist() == [sum(lengths[: s + 1]) - 1 for s in range(len(lengths))]


@pytest.mark.parametrize("lengths", [(), (11,), (3, 0), (1, 1, 1, 1)])
def test_what_does_not_fit_a_frame_is_named(lengths):
    with pytest.raises(ValueError, match=f"{len(lengths)} sequences of {sum(lengths)} tokens do not fit a frame of 3 and 10"):
        Frame(3, 10).fill(lengths)


def test_slots_that_make_no_sense_are_named():
    x, weight, bias, window = make_conv(4, sequences=2)
    slots = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="slots and in_place speak of a given window"):
        conv(x, weight, bias, Packing([4]), in_place=True)
    with pytest.raises(ValueError, match="one that is continued in place"):
        conv(x, weight, bias, Packing([4]), window, slots_S=slots)
    with pytest.raises(ValueError, match=r"slots are \(1,\), expected \(2,\)"):
        conv(x, weight, bias, Packing([2, 2]), window, slots_S=slots, in_place=True)
    with pytest.raises(ValueError, match="cannot be continued in place"):
        conv(x, weight, bias, Packing([2, 2]), window.transpose(0, 2).contiguous().transpose(0, 2), in_place=True)
