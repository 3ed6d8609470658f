"""attention: the softmax of the definition, packed, with a cache, beside stale memory."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops import naive
from tests.ops.caches import content, empty, ints, paged, rows, written
from tests.ops.gradients import assert_gradients
from tests.ops.inputs import MIXED
from zamba_lm.ops.attention import KVCache, attention
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.rope import angles, rope


def make(total, *, heads=2, width=8, dtype=torch.float32):
    g = torch.Generator().manual_seed(total + width)
    return tuple(torch.randn(3, total, heads, width, generator=g).to(dtype))


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
    pieces = [
        attention(*(x[part] for x in (q, k, v)), scale, Packing([n]), rows(*cache, [past])) for past, n, part in cuts(37, 20)
    ]
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
    caches = [rows(*empty(len(MIXED), max(MIXED)), past) if cached else None for _ in range(2)]
    clean = attention(*tensors, 0.5, packing, caches[0])
    start = sum(MIXED[:bad])
    for x in tensors:
        x[start : start + MIXED[bad]] = torch.nan
    y = attention(*tensors, 0.5, packing, caches[1])
    for s, (now, before) in enumerate(zip(y.split(MIXED), clean.split(MIXED), strict=True)):
        assert now.isnan().all() if s == bad else torch.equal(now, before)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 100])
def test_any_chunking_equals_the_whole(size):
    """Two sequences of one age, read on in pieces: what is behind the cache's end stays untouched and unread."""
    q, k, v = (x.unflatten(0, (2, 130)) for x in make(260))
    cache = empty(2, 133)
    pieces = []
    for past, n, part in cuts(130, size):
        y = attention(*(x[:, part].flatten(0, 1) for x in (q, k, v)), 0.5, Packing([n, n]), rows(*cache, [past, past]))
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
    y = attention(*tensors, 0.5, Packing(new), rows(*cache, past))
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


def test_sequences_of_one_length_are_not_cut_out():
    """Going back, a slice is zeros and a copy as large as all tokens, for each of q, k and v."""
    q, k, v = (x.requires_grad_() for x in make(6, width=4))
    waiting, seen = [attention(q, k, v, 0.5, Packing((3, 3))).grad_fn], set()
    while waiting:
        node = waiting.pop()
        seen.add(node.name())
        waiting += [before for before, _ in node.next_functions if before is not None]
    assert "TransposeBackward0" in seen and "SliceBackward0" not in seen


@pytest.mark.parametrize("page", [16, 64])
@pytest.mark.parametrize("new", [(1, 1, 1, 1), (1, 4, 4, 1), (17, 66, 2, 80)])
def test_pages(page, new):
    """Sequences in pages scattered over a pool: written in their own pages alone, read from nowhere else."""
    past, sequences = (16, 0, 70, 5), []
    for p, n in zip(past, new, strict=True):
        sequences.append(make(p + n))
    before = [(k[:p], v[:p]) for (_, k, v), p in zip(sequences, past, strict=True)]
    cache = paged(before, [p + n for p, n in zip(past, new, strict=True)], page=page, heads=2, width=8)
    tensors = [torch.cat([sequence[i][p:] for sequence, p in zip(sequences, past, strict=True)]) for i in range(3)]
    y = attention(*tensors, 0.5, Packing(new), cache)
    expected = [naive.attention(q[p:], k, v, 0.5) for (q, k, v), p in zip(sequences, past, strict=True)]
    assert_within("op", y, torch.cat(expected))
    for s, (_, k, v) in enumerate(sequences):
        assert all(torch.equal(*pair) for pair in zip(content(cache, s, len(k)), (k, v), strict=True))
    assert written(cache) == sum(past) + sum(new)


@pytest.mark.parametrize("page", [16, 200])
def test_ages_on_the_device_alone(page):
    """As inside a CUDA graph: one new token each, and nobody on the host knows how old a sequence is."""
    past = (16, 0, 70, 70)
    sequences = [make(p + 1) for p in past]
    before = [(k[:-1], v[:-1]) for _, k, v in sequences]
    last = [torch.cat([sequence[i][-1:] for sequence in sequences]) for i in range(3)]
    caches = [paged(before, [p + 1 for p in past], page=page, heads=2, width=8, host=host) for host in (True, False)]
    outputs = [attention(*last, 0.5, Packing([1] * 4), cache) for cache in caches]
    assert torch.equal(*outputs)
    assert torch.equal(*(cache.keys.nan_to_num() for cache in caches))


@pytest.mark.parametrize("cached", [False, True])
def test_angles_turn_queries_and_keys(cached):
    """As ops.rope would before the call, and the cache keeps keys that are turned already."""
    q, k, v = torch.stack(make(12), dim=1).flatten(1, 2).chunk(3, dim=1)  # views, as a model passes them
    turns = angles(torch.tensor([3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6]), 8, 1e4)
    packing, past = Packing([5, 7]), (3, 0)
    caches = [rows(*(torch.ones(2, 2, 2, 10, 8) * torch.arange(8).sin()), past) if cached else None for _ in range(2)]
    y = attention(q, k, v, 0.5, packing, caches[0], turns)
    assert torch.equal(y, attention(rope(q, turns), rope(k, turns), v, 0.5, packing, caches[1]))
    if cached:
        assert torch.equal(caches[0].keys, caches[1].keys)


def test_what_does_not_fit_is_named():
    q, k, v = make(7)
    with pytest.raises(ValueError, match=r"q \(7, 2, 8\), k \(7, 2, 8\) and v \(7, 2, 8\) do not fit Packing\(\(8,\)\)"):
        attention(q, k, v, 1.0, Packing([8]))
    with pytest.raises(ValueError, match=r"k \(6, 2, 8\)"):
        attention(q, k[:6], v, 1.0, Packing([7]))
    with pytest.raises(ValueError, match=r"v \(7, 2, 4\)"):
        attention(q, k, v[..., :4], 1.0, Packing([7]))
    packing = Packing([3, 4])
    with pytest.raises(ValueError, match=r"past \(2, 6\) plus new \(3, 4\) exceed the cache of 9 tokens"):
        attention(q, k, v, 1.0, packing, rows(*empty(2, 9), [2, 6]))
    with pytest.raises(ValueError, match=r"the cache holds 3 sequences with 3 ages, expected 2 for lengths \(3, 4\)"):
        attention(q, k, v, 1.0, packing, rows(*empty(3, 9), [0, 0, 0]))
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        attention(q, k, v, 1.0, packing, KVCache(*empty(2, 9), ints([[0], [1]]), ints([0, 0]), (0,)))
    with pytest.raises(ValueError, match=r"lengths \(3, 4\) need the past on the host"):
        attention(q, k, v, 1.0, packing, rows(*empty(2, 9), [0, 0], host=False))
    with pytest.raises(
        ValueError, match=r"keys \(2, 2, 9, 6\) and values \(2, 2, 9, 6\) of the cache must be \(pages, 2, page, 8\)"
    ):
        attention(q, k, v, 1.0, packing, rows(*empty(2, 9, width=6), [0, 0]))


def test_a_full_cache_is_not_too_full():
    q, k, v = make(7)
    y = attention(q, k, v, 0.5, Packing([3, 4]), rows(*empty(2, 4), [0, 0]))
    assert_within("op", y, alone(q, k, v, 0.5, (3, 4)))
