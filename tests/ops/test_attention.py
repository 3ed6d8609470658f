"""attention: the softmax of the definition, packed, with a cache, beside stale memory."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.gradients import assert_gradients
from tests.ops.inputs import MIXED
from zamba_lm.ops.attention import attention
from zamba_lm.ops.packing import Packing


def make(total, *, heads=2, width=8, dtype=torch.float32):
    g = torch.Generator().manual_seed(total + width)
    return tuple(torch.randn(3, total, heads, width, generator=g).to(dtype))


def empty(sequences, capacity, *, heads=2, width=8, dtype=torch.float32):
    """A cache full of NaN: what lies behind a sequence's end is anybody's."""
    return torch.full((2, sequences, heads, capacity, width), torch.nan, dtype=dtype).unbind(0)


def alone(q, k, v, scale, lengths):
    """Every sequence by itself, by the definition."""
    parts = zip(*(x.split(tuple(lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([naive.attention(*part, scale) for part in parts])


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
def test_the_softmax(length):
    q, k, v = make(length)
    assert_within("op", attention(q, k, v, 0.5, Packing([length])), naive.attention(q, k, v, 0.5))


@pytest.mark.parametrize("width", [8, 64, 80, 224, 464])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_sizes(width, dtype):
    """The scale is the caller's, (d / 2)^-0.5 in both families, not the usual d^-0.5."""
    scale = (width / 2) ** -0.5
    q, k, v = make(37, width=width, dtype=dtype)
    y = attention(q, k, v, scale, Packing([37]))
    expected = naive.attention(q, k, v, scale)
    assert y.dtype == dtype
    assert_within("op", y, expected)
    cache = empty(1, 40, width=width, dtype=dtype)
    pieces = [attention(*(x[part] for x in (q, k, v)), scale, Packing([n]), cache, [past]) for past, n, part in cuts(37, 20)]
    assert_within("op", torch.cat(pieces), expected)


def cuts(length, size):
    """(tokens before, tokens, slice) of pieces of at most ``size``."""
    for past in range(0, length, size):
        n = min(size, length - past)
        yield past, n, slice(past, past + n)


def test_packed_equals_alone():
    q, k, v = make(sum(MIXED))
    assert_within("op", attention(q, k, v, 0.5, Packing(MIXED)), alone(q, k, v, 0.5, MIXED))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("bad", range(len(MIXED)))
def test_nan_stays_in_its_sequence(bad, cached):
    tensors, packing = make(sum(MIXED)), Packing(MIXED)
    past = (0,) * len(MIXED)
    caches = [empty(len(MIXED), max(MIXED)) if cached else None for _ in range(2)]
    clean = attention(*tensors, 0.5, packing, caches[0], past)
    start = sum(MIXED[:bad])
    for x in tensors:
        x[start : start + MIXED[bad]] = torch.nan
    y = attention(*tensors, 0.5, packing, caches[1], past)
    for s, (now, before) in enumerate(zip(y.split(MIXED), clean.split(MIXED), strict=True)):
        assert now.isnan().all() if s == bad else torch.equal(now, before)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 100])
def test_any_chunking_equals_the_whole(size):
    """Two sequences of one age, read on in pieces: what is behind the cache's end stays untouched and unread."""
    q, k, v = (x.unflatten(0, (2, 130)) for x in make(260))
    cache = empty(2, 133)
    pieces = []
    for past, n, part in cuts(130, size):
        y = attention(*(x[:, part].flatten(0, 1) for x in (q, k, v)), 0.5, Packing([n, n]), cache, [past, past])
        pieces.append(y.unflatten(0, (2, n)))
        assert all(c[:, :, past + n :].isnan().all() for c in cache)
    expected = torch.stack([naive.attention(q[s], k[s], v[s], 0.5) for s in range(2)])
    assert_within("op", torch.cat(pieces, dim=1), expected)
    for kept, given in zip(cache, (k, v), strict=True):
        assert torch.equal(kept[:, :, :130], given.transpose(1, 2))


@pytest.mark.parametrize("new", [(1, 1, 1, 1), (1, 4, 4, 1), (3, 3, 3, 3), (1, 66, 2, 5)])
def test_ages_that_differ(new):
    """Sequences of different ages, in neighbours of one length and of different ones, in a few slots of a larger cache."""
    past = (5, 0, 70, 5)
    totals = [p + n for p, n in zip(past, new, strict=True)]
    sequences = [make(total) for total in totals]
    whole = [torch.full((6, 2, 80, 8), torch.nan) for _ in range(2)]
    cache = [w[1:5] for w in whole]
    for s, (_, k, v) in enumerate(sequences):
        for kept, given in zip(cache, (k, v), strict=True):
            kept[s, :, : past[s]] = given[: past[s]].transpose(0, 1)
    tensors = [torch.cat([sequence[i][p:] for sequence, p in zip(sequences, past, strict=True)]) for i in range(3)]
    y = attention(*tensors, 0.5, Packing(new), cache, past)
    expected = [naive.attention(q[p:], k, v, 0.5) for (q, k, v), p in zip(sequences, past, strict=True)]
    assert_within("op", y, torch.cat(expected))
    for s, (_, k, v) in enumerate(sequences):
        for kept, given in zip(cache, (k, v), strict=True):
            assert torch.equal(kept[s, :, : totals[s]], given.transpose(0, 1))
            assert kept[s, :, totals[s] :].isnan().all()
    assert all(w[[0, 5]].isnan().all() for w in whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores(dtype):
    """Scores of thousands: the largest wins, nothing overflows."""
    q, k, v = make(65, dtype=dtype)
    y = attention(100 * q, 100 * k, v, 0.5, Packing([65]))
    assert y.isfinite().all()
    assert_within("op", y, naive.attention(100 * q, 100 * k, v, 0.5), dtype=torch.bfloat16)


@pytest.mark.parametrize("lengths", [(2,), (3, 3, 5), (65,)])
def test_gradients(lengths):
    inputs = dict(zip("qkv", make(sum(lengths), width=4), strict=True))
    packing = Packing(lengths)
    assert_gradients(lambda q, k, v: [attention(q, k, v, 0.5, packing)], lambda q, k, v: [alone(q, k, v, 0.5, lengths)], inputs)


def test_what_does_not_fit_is_named():
    q, k, v = make(7)
    with pytest.raises(ValueError, match=r"q \(7, 2, 8\), k \(7, 2, 8\) and v \(7, 2, 8\) do not fit Packing\(\(8,\)\)"):
        attention(q, k, v, 1.0, Packing([8]))
    with pytest.raises(ValueError, match=r"k \(6, 2, 8\)"):
        attention(q, k[:6], v, 1.0, Packing([7]))
    with pytest.raises(ValueError, match=r"v \(7, 2, 4\)"):
        attention(q, k, v[..., :4], 1.0, Packing([7]))
    with pytest.raises(ValueError, match=r"past \(2, 6\) plus new \(3, 4\) exceed the cache of 9 tokens"):
        attention(q, k, v, 1.0, Packing([3, 4]), empty(2, 9), [2, 6])
    with pytest.raises(ValueError, match=r"the cache holds 3 sequences, expected 2 for Packing\(\(3, 4\)\)"):
        attention(q, k, v, 1.0, Packing([3, 4]), empty(3, 9), [0, 0])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        attention(q, k, v, 1.0, Packing([3, 4]), empty(2, 9), [0])


def test_a_full_cache_is_not_too_full():
    q, k, v = make(7)
    y = attention(q, k, v, 0.5, Packing([3, 4]), empty(2, 4), [0, 0])
    assert_within("op", y, alone(q, k, v, 0.5, (3, 4)))
