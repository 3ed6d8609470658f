"""One new token a sequence: split-K over the pages, with RoPE, the append and the combining in one kernel.

The grid is (sequences x heads, splits) and never depends on a length: each split works out on the device which tokens are its
share, so one CUDA graph serves every length. Each row of a tile keeps an online softmax of its own, so warps meet only once, at
the end; the last split of a head to arrive combines them all.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from zamba_lm.ops.attention.triton.configs import decode_config
from zamba_lm.ops.attention.triton.products import LOG2_E
from zamba_lm.ops.gpu import launch, multiprocessors
from zamba_lm.ops.rope.triton import turned

LOW = tl.constexpr(-1e38)  # below every score, and finite: the difference of two is no nan


@triton.jit
def tile(pool, n, keep, D: tl.constexpr, CH: tl.constexpr):
    """Tokens n of a page, in pieces of CH channels: powers of two that together are hardly wider than a head, where one would be
    up to twice as wide, and the same layout for all."""
    pieces = ()
    for c in tl.static_range((D + CH - 1) // CH):
        d = c * CH + tl.arange(0, CH)
        if (c + 1) * CH <= D:
            pieces += (tl.load(pool + n[:, None] * D + d[None, :], mask=keep[:, None], other=0.0),)
        else:
            pieces += (tl.load(pool + n[:, None] * D + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0),)
    return pieces


@triton.jit
def one_tile(q, k, v, seen, m, total, acc):
    """Add one tile of keys and values, pieces (BN, CH), to the running softmax of each of its rows."""
    products = k[0].to(tl.float32) * q[0][None, :]
    for c in tl.static_range(1, len(k)):
        products += k[c].to(tl.float32) * q[c][None, :]
    s = tl.where(seen, tl.sum(products, axis=1), LOW)
    top = tl.maximum(m, s)
    p = tl.where(seen, tl.exp2(s - top), 0.0)
    old = tl.exp2(m - top)
    more = ()
    for c in tl.static_range(len(v)):
        more += (acc[c] * old[:, None] + p[:, None] * v[c].to(tl.float32),)
    return top, total * old + p, more


@triton.jit
def row_of(x, cos, sin, d, keep, D: tl.constexpr, TURN: tl.constexpr):
    """Channels d of the new token's query or key, rotated where TURN."""
    if TURN:
        return turned(x, cos, sin, d, keep, D).to(x.dtype.element_ty)
    else:
        return tl.load(x + d, mask=keep, other=0.0)


@triton.jit
def combine(partial, stats, y, pair, D: tl.constexpr, DP: tl.constexpr, SPLITS: tl.constexpr):
    """Put the splits of one head together. Other programs wrote them: read past the first-level cache."""
    i, d = tl.arange(0, SPLITS), tl.arange(0, DP)
    row = pair * SPLITS + i
    m = tl.load(stats + row * 2, cache_modifier=".cg")
    total = tl.load(stats + row * 2 + 1, cache_modifier=".cg")
    share = tl.exp2(m - tl.max(m, axis=0))
    whole = tl.sum(total * share, axis=0)
    acc = tl.load(partial + row[:, None] * DP + d[None, :], mask=d[None, :] < D, other=0.0, cache_modifier=".cg")
    acc = tl.sum(acc * share[:, None], axis=0) / whole
    tl.store(y + pair * D + d, acc.to(y.dtype.element_ty), mask=d < D)


@triton.jit
def perhaps(table, at, slab, pool_p, n_pages, M, PAGE, D: tl.constexpr):
    """Offset of token ``at`` in the pool, or of some token where the table has no such page."""
    page = tl.load(table + at // PAGE, mask=at < M * PAGE, other=0)
    page = tl.where((page >= 0) & (page < n_pages), page, 0).to(tl.int64)
    return page * pool_p + slab + (at % PAGE) * D


@triton.jit
def prefetch_tile(keys, values, table, at, slab, pool_p, n_pages, M, PAGE, D: tl.constexpr, BN: tl.constexpr):
    """Bring a tile (contiguous, BN D entries) into the second-level cache. Pages hold a multiple of BN, or there is but one."""
    LINE: tl.constexpr = 64
    LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(BN * D, LINE))
    offset = tl.minimum(tl.arange(0, LINES) * LINE, (tl.minimum(BN, M * PAGE - at) - 1) * D)
    offset = perhaps(table, at, slab, pool_p, n_pages, M, PAGE, D) + tl.maximum(offset, 0)
    for pool in tl.static_range(2):
        address = ((keys if pool == 0 else values) + offset).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def decode_kernel(
    q, k, v, cos, sin, keys, values, pages, past_S, y, partial, stats, counters,
    q_t, q_h, k_t, k_h, v_t, v_h, pool_p, pool_h, pages_s, n_pages, M, PAGE, scale,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, CH: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, PEEL: tl.constexpr, TURN: tl.constexpr, EARLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (pair, split): every SPLITS-th tile of the past of one head of one sequence; the last split also has the new token,
    straight from its row, and writes it to the page. EARLY: ages, pages and past entries were there before the chain of kernels
    began, and are read before waiting for the kernel in front. PEEL: the first tile is loaded without waiting for the age: that
    helps a few programs; where many follow one another on a multiprocessor, the loop had better begin at once."""
    pair, split = tl.program_id(0), tl.program_id(1)
    sequence, head = pair // HEADS, pair % HEADS
    if PDL:
        gdc_launch_dependents()
        if not EARLY:
            gdc_wait()
    n = tl.arange(0, BN)
    newest = split == SPLITS - 1
    table = pages + sequence * pages_s
    slab = head.to(tl.int64) * pool_h
    at = split * BN
    past = tl.load(past_S + sequence)
    seen = at + n < past
    if PEEL:  # the first tile's page may be wild and its rows stale: they count only if seen
        where = perhaps(table, at, slab, pool_p, n_pages, M, PAGE, D)
        there = at + n < M * PAGE
        k_first, v_first = tile(keys + where, n, there, D, CH), tile(values + where, n, there, D, CH)
    page_new = tl.load(table + past // PAGE, mask=newest, other=0).to(tl.int64)
    if PDL and EARLY:
        for i in tl.static_range(1 if PEEL else 0, AHEAD + 1):
            prefetch_tile(keys, values, table, at + i * SPLITS * BN, slab, pool_p, n_pages, M, PAGE, D, BN)
        gdc_wait()

    dtype = q.dtype.element_ty
    q += sequence.to(tl.int64) * q_t + head * q_h
    k += sequence.to(tl.int64) * k_t + head * k_h
    v += sequence.to(tl.int64) * v_t + head * v_h
    cos += sequence * (D // 2)
    sin += sequence * (D // 2)
    q_row, k_new, v_new, v_seen, acc = (), (), (), (), ()
    for c in tl.static_range((D + CH - 1) // CH):
        d = c * CH + tl.arange(0, CH)
        q_row += (row_of(q, cos, sin, d, d < D, D, TURN).to(tl.float32) * scale,)
        k_new += (row_of(k, cos, sin, d, (d < D) & newest, D, TURN),)
        v_new += (tl.load(v + d, mask=(d < D) & newest, other=0.0),)
        if PEEL:
            v_seen += (tl.where(seen[:, None], v_first[c], 0.0),)
        acc += (tl.zeros([BN, CH], tl.float32),)

    m = tl.full([BN], LOW, tl.float32)
    total = tl.zeros([BN], tl.float32)
    if PEEL:
        m, total, acc = one_tile(q_row, k_first, v_seen, seen, m, total, acc)
    for block in tl.range(split + (SPLITS if PEEL else 0), tl.cdiv(past, BN), SPLITS, num_stages=STAGES):
        at = block * BN
        seen = at + n < past
        page = tl.load(table + at // PAGE).to(tl.int64)
        where = page * pool_p + slab + (at % PAGE) * D
        k_tile, v_tile = tile(keys + where, n, seen, D, CH), tile(values + where, n, seen, D, CH)
        m, total, acc = one_tile(q_row, k_tile, v_tile, seen, m, total, acc)

    products = q_row[0] * k_new[0].to(tl.float32)
    for c in tl.static_range(1, len(q_row)):
        products += q_row[c] * k_new[c].to(tl.float32)
    s_new = tl.where(newest, tl.sum(products, axis=0), LOW)
    top = tl.maximum(tl.max(m, axis=0), s_new)
    share_new = tl.where(newest, tl.exp2(s_new - top), 0.0)
    old = tl.exp2(m - top)
    whole = tl.sum(total * old, axis=0) + share_new
    where = page_new * pool_p + slab + (past % PAGE) * D
    part = pair * SPLITS + split
    for c in tl.static_range(len(acc)):
        d = c * CH + tl.arange(0, CH)
        row = tl.sum(acc[c] * old[:, None], axis=0) + share_new * v_new[c].to(tl.float32)
        tl.store(keys + where + d, k_new[c], mask=(d < D) & newest)
        tl.store(values + where + d, v_new[c], mask=(d < D) & newest)
        if SPLITS == 1:
            tl.store(y + pair * D + d, (row / whole).to(dtype), mask=d < D)
        else:
            tl.store(partial + part * DP + d, row, mask=d < D)
    if SPLITS > 1:
        tl.store(stats + part * 2, top)
        tl.store(stats + part * 2 + 1, whole)
        tl.debug_barrier()  # the whole program has written before one thread says so
        if tl.atomic_add(counters + pair, 1, sem="acq_rel") == SPLITS - 1:
            combine(partial, stats, y, pair, D, DP, SPLITS)
            tl.store(counters + pair, 0)  # ready for the next call


_counters: dict[torch.device, torch.Tensor] = {}


def _zeros(device: torch.device, n: int) -> torch.Tensor:
    """Counters that every launch leaves at zero. There are splits only where pairs are few, so they need never grow."""
    if device not in _counters:
        _counters[device] = torch.zeros(1 << 14, dtype=torch.int32, device=device)
    assert n <= len(_counters[device])
    return _counters[device]


def decode(q_SHd, k_SHd, v_SHd, scale, cache, angles, config=None):
    """y (S, H, d) for one new token of each sequence, written to its page on the way. Can be captured in a CUDA graph."""
    S, H, D = q_SHd.shape
    device, width = q_SHd.device, max(16, triton.next_power_of_2(D))
    config = config or decode_config(D, width, q_SHd.element_size(), cache, S * H, multiprocessors(device))
    splits = config["splits"]
    y = torch.empty(S, H, D, dtype=q_SHd.dtype, device=device)
    partial = stats = counters = y
    if splits > 1:
        partial = torch.empty(S * H * splits, width, dtype=torch.float32, device=device)
        stats = torch.empty(S * H * splits, 2, dtype=torch.float32, device=device)
        counters = _zeros(device, S * H)
    cos, sin = angles if angles is not None else (q_SHd, q_SHd)
    launch(
        decode_kernel,
        (S * H, splits),
        *(q_SHd, k_SHd, v_SHd, cos, sin, cache.keys, cache.values, cache.pages_SM, cache.past_S, y, partial, stats, counters),
        *(*q_SHd.stride()[:2], *k_SHd.stride()[:2], *v_SHd.stride()[:2], *cache.keys.stride()[:2]),
        *(cache.pages_SM.stride(0), len(cache.keys), cache.pages_SM.shape[1], cache.page, scale * LOG2_E),
        device=device,
        pdl=True,
        HEADS=H,
        D=D,
        DP=width,
        CH=min(config["channels"], width),
        BN=config["tokens"],
        SPLITS=splits,
        STAGES=config["stages"],
        AHEAD=config["ahead"],
        PEEL=config["peel"],
        TURN=angles is not None,
        EARLY=cache.early,
        num_warps=config["warps"],
    )
    return y
