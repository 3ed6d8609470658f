"""attention's kernels through Triton's interpreter: decoding and prefill, from pages and from packed rows."""

import pytest
import torch

from tests.numerics.tolerances import assert_within
from tests.ops.attention_cases import CHUNKS, DECODES, WIDTHS, check, make
from tests.ops.caches import empty, paged, rows
from zamba_lm.ops.attention import attention
from zamba_lm.ops.attention.reference import attention_reference
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.packing import Packing

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def kernels():
    with interpreted():
        yield


@pytest.mark.parametrize("past", DECODES.values(), ids=DECODES)
def test_decode(past):
    check((1,) * len(past), past, 20)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_of_any_head(width, dtype):
    check((1, 1), (5, 33), width, dtype=dtype, turn=True, host=False)


@pytest.mark.parametrize(("splits", "peel"), [(1, False), (1, True), (2, True), (8, False)])
@pytest.mark.parametrize("past", [0, 31, 200])
def test_any_split(splits, peel, past):
    """However many programs share a past, down to shares that are empty, and counters ready for the next call."""
    from zamba_lm.ops.attention.triton.decode import decode

    q, k, v = make(1, 24)
    before = [make(past + 1, 24)[1:]]
    before = [(keys[:-1], values[:-1]) for keys, values in before]
    caches = [paged(before, [past + 1], page=16, heads=2, width=24) for _ in range(3)]
    config = {"tokens": 16, "channels": 16, "warps": 4, "stages": 2, "residents": 1, "ahead": 1, "splits": splits, "peel": peel}
    expected = attention_by("reference", q, k, v, Packing([1]), caches[0])
    for cache in caches[1:]:
        torch.testing.assert_close(decode(q, k, v, 0.5, cache, None, config), expected, rtol=1e-5, atol=1e-5)


def attention_by(name, q, k, v, packing, cache=None):
    with force(attention=name):
        return attention(q, k, v, 0.5, packing, cache)


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_prefill_in_pages(chunk):
    check(*chunk, 20, page=32, turn=True)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prefill_of_any_head(width, dtype):
    check((3, 17), (20, 0), width, dtype=dtype)
    check((3, 37), (0, 0), width, dtype=dtype, page=None, turn=True)


@pytest.mark.parametrize("page", [None, 128])
def test_prefill_in_two_steps(page):
    """Weights in memory between two products, all at once and in pieces of queries and heads."""
    from zamba_lm.ops.attention.triton.append import append
    from zamba_lm.ops.attention.triton.wide import wide_prefill

    new, past = (3, 150), (130, 0) if page else (0, 0)
    q, k, v = make(sum(new), 20)
    cache = None
    if page:
        before = [make(p + 1, 20)[1:] for p in past]
        cache = paged([(keys[:-1], values[:-1]) for keys, values in before], [133, 150], page=page, heads=2, width=20)
        append(q, k, v, Packing(new), cache, None, False)
    expected = attention_reference(q, k, v, 0.5, Packing(new), cache)
    for room in (1 << 29, 1 << 16):
        assert_within("op", wide_prefill(q, k, v, 0.5, Packing(new), cache, past, room=room), expected)


def test_a_row_of_one_page():
    """A cache with one row a sequence, of a length that no tile divides."""
    q, k, v = make(6, 8)
    outputs, caches = [], [rows(*empty(2, 23), (0, 0)), rows(*empty(2, 23), (0, 0))]
    for name, cache in zip(("reference", "triton"), caches, strict=True):
        first = attention_by(name, q[:5], k[:5], v[:5], Packing([2, 3]), cache)
        cache = rows(cache.keys, cache.values, (2, 3))
        outputs.append(torch.cat([first, attention_by(name, q[4:], k[4:], v[4:], Packing([1, 1]), cache)]))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    assert torch.equal(*(cache.keys.nan_to_num() for cache in caches))


def test_nan_stays_in_its_sequence():
    lengths = (1, 2, 33, 3)
    q, k, v = make(sum(lengths), 8)
    clean = attention_by("triton", q, k, v, Packing(lengths))
    for x in (q, k, v):
        x[3:36] = torch.nan
    y = attention_by("triton", q, k, v, Packing(lengths))
    assert y[3:36].isnan().all()
    assert torch.equal(y[:3], clean[:3]) and torch.equal(y[36:], clean[36:])


@pytest.mark.parametrize("width", [20, 464])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_wide_heads(width, dtype):
    """Own kernels serve heads wider than torch's, and any other when called by name; sequences are kept apart."""
    from zamba_lm.ops.attention.triton.backward import WideAttention

    lengths = (1, 40)
    inputs, scale, gradients = make(sum(lengths), width, dtype=dtype), (width / 2) ** -0.5, []
    dy = torch.randn(sum(lengths), 2, width, generator=torch.Generator().manual_seed(0))
    for wide, run in (
        (dtype, lambda q, k, v: WideAttention.apply(q, k, v, scale, lengths)),
        (torch.float64, lambda q, k, v: attention_reference(q, k, v, scale, Packing(lengths))),
    ):
        leaves = [x.detach().to(wide).requires_grad_() for x in inputs]
        gradients.append(torch.autograd.grad(run(*leaves), leaves, dy.to(wide)))
    for got, expected in zip(*gradients, strict=True):
        assert_within("gradient", got, expected, dtype=dtype)


def test_what_kernels_cannot_do_is_named():
    q, k, v = make(4, 8)
    with pytest.raises(TypeError, match="attention kernels take q, k, v of one of"):
        attention_by("triton", q.double(), k.double(), v.double(), Packing([4]))
    with pytest.raises(ValueError, match="up to 512 channels, not 520"):
        attention_by("triton", *make(4, 520), Packing([4]))
    with pytest.raises(ValueError, match="pages hold 24 tokens; kernels need a multiple of 16"):
        attention_by("triton", q, k, v, Packing([4]), paged([make(30, 8)[1:]], [34], page=24, heads=2, width=8))
    with pytest.raises(TypeError, match="the cache holds torch.bfloat16"):
        attention_by("triton", q, k, v, Packing([4]), rows(*empty(1, 8, dtype=torch.bfloat16), (0,)))
