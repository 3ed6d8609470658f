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
def one_tile(q, k, v, seen, m, total, acc):
    """Add one tile of keys and values (BN, DP) to the running softmax of each of its rows."""
    s = tl.where(seen, tl.sum(k.to(tl.float32) * q[None, :], axis=1), LOW)
    top = tl.maximum(m, s)
    p = tl.where(seen, tl.exp2(s - top), 0.0)
    old = tl.exp2(m - top)
    return top, total * old + p, acc * old[:, None] + p[:, None] * v.to(tl.float32)


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
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
    AHEAD: tl.constexpr, TURN: tl.constexpr, EARLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Program (pair, split): every SPLITS-th tile of the past of one head of one sequence; the last split also has the new token,
    straight from its row, and writes it to the page. EARLY: ages, pages and past entries were there before the
    chain of kernels began, and are read before waiting for the kernel in front."""
    pair, split = tl.program_id(0), tl.program_id(1)
    sequence, head = pair // HEADS, pair % HEADS
    if PDL:
        gdc_launch_dependents()
        if not EARLY:
            gdc_wait()
    d, n = tl.arange(0, DP), tl.arange(0, BN)
    inside = d < D
    newest = split == SPLITS - 1
    table = pages + sequence * pages_s
    lane = n[:, None] * D + d[None, :]
    slab = head.to(tl.int64) * pool_h
    # The first tile is loaded without waiting for the age: its page may be wild and its rows stale, and count only if seen.
    at = split * BN
    past = tl.load(past_S + sequence)
    where = perhaps(table, at, slab, pool_p, n_pages, M, PAGE, D)
    there = ((at + n) < M * PAGE)[:, None] & inside[None, :]
    k_tile = tl.load(keys + where + lane, mask=there, other=0.0)
    v_tile = tl.load(values + where + lane, mask=there, other=0.0)
    seen = at + n < past
    page_new = tl.load(table + past // PAGE, mask=newest, other=0).to(tl.int64)
    if PDL and EARLY:
        for i in tl.static_range(1, AHEAD + 1):
            prefetch_tile(keys, values, table, at + i * SPLITS * BN, slab, pool_p, n_pages, M, PAGE, D, BN)
        gdc_wait()

    dtype = q.dtype.element_ty
    q_at, k_at = q + sequence.to(tl.int64) * q_t + head * q_h, k + sequence.to(tl.int64) * k_t + head * k_h
    v_new = tl.load(v + sequence.to(tl.int64) * v_t + head * v_h + d, mask=inside & newest, other=0.0)
    if TURN:
        angle = sequence * (D // 2)
        q_row = turned(q_at, cos + angle, sin + angle, d, inside, D).to(dtype)
        k_new = turned(k_at, cos + angle, sin + angle, d, inside & newest, D).to(dtype)
    else:
        q_row = tl.load(q_at + d, mask=inside, other=0.0)
        k_new = tl.load(k_at + d, mask=inside & newest, other=0.0)
    q_row = q_row.to(tl.float32) * scale

    m = tl.full([BN], LOW, tl.float32)
    total = tl.zeros([BN], tl.float32)
    acc = tl.zeros([BN, DP], tl.float32)
    v_tile = tl.where(seen[:, None], v_tile, 0.0)
    m, total, acc = one_tile(q_row, k_tile, v_tile, seen, m, total, acc)
    for block in tl.range(split + SPLITS, tl.cdiv(past, BN), SPLITS, num_stages=STAGES):
        at = block * BN
        seen = at + n < past
        page = tl.load(table + at // PAGE).to(tl.int64)
        where = page * pool_p + slab + (at % PAGE) * D
        k_tile = tl.load(keys + where + lane, mask=seen[:, None] & inside[None, :], other=0.0)
        v_tile = tl.load(values + where + lane, mask=seen[:, None] & inside[None, :], other=0.0)
        m, total, acc = one_tile(q_row, k_tile, v_tile, seen, m, total, acc)

    top = tl.max(m, axis=0)
    s_new = tl.where(newest, tl.sum(q_row * k_new.to(tl.float32), axis=0), LOW)
    top = tl.maximum(top, s_new)
    share_new = tl.where(newest, tl.exp2(s_new - top), 0.0)
    old = tl.exp2(m - top)
    whole = tl.sum(total * old, axis=0) + share_new
    row = tl.sum(acc * old[:, None], axis=0) + share_new * v_new.to(tl.float32)
    if newest:
        where = page_new * pool_p + slab + (past % PAGE) * D
        tl.store(keys + where + d, k_new, mask=inside)
        tl.store(values + where + d, v_new, mask=inside)
    if SPLITS == 1:
        tl.store(y + pair * D + d, (row / whole).to(dtype), mask=inside)
    else:
        part = pair * SPLITS + split
        tl.store(partial + part * DP + d, row, mask=inside)
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
        BN=config["tokens"],
        SPLITS=splits,
        STAGES=config["stages"],
        AHEAD=config["ahead"],
        TURN=angles is not None,
        EARLY=cache.early,
        num_warps=config["warps"],
    )
    return y
