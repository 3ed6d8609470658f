"""Long prompts of wide heads, as two matrix products with the weights between them in memory.

One program that kept the output of 128 queries of a 464-channel head would need every register there is, and fewer queries read
keys and values so often that the second-level cache is too slow. So `scores_kernel` writes exp(score - largest of its tile) of as
many heads and queries as fit into ROOM, with each tile's largest and sum, and `mix_kernel` multiplies by the values, each tile
brought to the row's largest on the way.
"""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.attention.triton.configs import in_page
from zamba_lm.ops.attention.triton.products import LOG2_E, dot
from zamba_lm.ops.gpu import launch

ROOM = 512 << 20  # bytes of weights
WIDE = {"queries": 128, "keys": 128, "scores": (64, 3, 8), "mix": (64, 4, 8)}  # channels or keys a step, stages, warps
WIDE_F32 = {"queries": 64, "keys": 64, "scores": (32, 2, 8), "mix": (32, 2, 8)}
LOW = tl.constexpr(-1e38)


@triton.jit
def scores_kernel(
    q, keys, P, tops, totals, pages, row0, count, position, key0, KC, first_head, scale,
    q_t, q_h, k_t, k_h, pool_p, PAGE,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PAGED: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tile (i, j) of the weights of one head. Query r of ``count`` is packed row ``row0 + r`` and sits at ``position + r``."""
    j, i, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = position + tl.minimum(i * BM + BM, count)
    if j * BN < last:
        h = first_head + group
        rows, n = i * BM + tl.arange(0, BM), tl.arange(0, BN)
        cols = j * BN + n
        row_ok, col_ok = rows[:, None] < count, cols[None, :] < last
        q_at = q + (row0 + rows[:, None]).to(tl.int64) * q_t + h * q_h
        if PAGED:
            page = tl.load(pages + (j * BN) // PAGE).to(tl.int64)
            k_at = keys + page * pool_p + h.to(tl.int64) * k_h + ((j * BN) % PAGE + n[None, :]) * D
        else:
            k_at = keys + (key0 + cols[None, :]).to(tl.int64) * k_t + h * k_h
        s = tl.zeros([BM, BN], tl.float32)
        for c in tl.range(0, D, BK, num_stages=STAGES):
            d = c + tl.arange(0, BK)
            q_tile = tl.load(q_at + d[None, :], mask=row_ok & (d[None, :] < D), other=0.0)
            k_tile = tl.load(k_at + d[:, None], mask=col_ok & (d[:, None] < D), other=0.0)
            s = dot(q_tile, k_tile, s)
        s = tl.where(cols[None, :] <= position + rows[:, None], s * scale, float("-inf"))
        top = tl.maximum(tl.max(s, axis=1), LOW)
        p = tl.exp2(s - top[:, None])
        at = (group * tl.num_programs(0) + j) * count + rows
        tl.store(tops + at, top, mask=rows < count)
        tl.store(totals + at, tl.sum(p, axis=1), mask=rows < count)
        out = (group.to(tl.int64) * count + rows[:, None]) * KC + cols[None, :]
        tl.store(P + out, p.to(P.dtype.element_ty), mask=row_ok)


@triton.jit
def mix_kernel(
    P, tops, totals, values, y, lse, pages, row0, count, position, key0, KC, blocks, first_head, T,
    v_t, v_h, pool_p, PAGE,
    HEADS: tl.constexpr, D: tl.constexpr, OUT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, TILE: tl.constexpr,
    BN: tl.constexpr, PAGED: tl.constexpr, LSE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Channels [part OUT, (part + 1) OUT) of the output of a tile of queries of one head, the latest queries first."""
    part, i, group = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1), tl.program_id(2)
    h = first_head + group
    rows, n = i * BM + tl.arange(0, BM), tl.arange(0, BN)
    d = part * OUT + tl.arange(0, WIDE)
    last = position + tl.minimum(i * BM + BM, count)
    ok = rows < count
    stat = group * blocks * count + rows
    best = tl.full([BM], LOW, tl.float32)
    for j in range(0, tl.cdiv(last, TILE)):
        best = tl.maximum(best, tl.load(tops + stat + j * count, mask=ok, other=LOW))
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, WIDE], tl.float32)
    p_at = P + (group.to(tl.int64) * count + rows[:, None]) * KC + n[None, :]
    for block in tl.range(0, tl.cdiv(last, BN), num_stages=STAGES):
        at = block * BN
        tile = stat + (at // TILE) * count
        share = tl.exp2(tl.load(tops + tile, mask=ok, other=LOW) - best)
        p = tl.load(p_at + at, mask=ok[:, None], other=0.0)
        if PAGED:
            page = tl.load(pages + at // PAGE).to(tl.int64)
            v_at = values + page * pool_p + h.to(tl.int64) * v_h + (at % PAGE + n[:, None]) * D
        else:
            v_at = values + (key0 + at + n[:, None]).to(tl.int64) * v_t + h * v_h
        v = tl.load(v_at + d[None, :], mask=(at + n[:, None] < last) & (d[None, :] < D), other=0.0)
        if at % TILE == 0:
            total += tl.load(totals + tile, mask=ok, other=0.0) * share
        acc = dot((p.to(tl.float32) * share[:, None]).to(v.dtype), v, acc)
    y_at = y + ((row0 + rows[:, None]).to(tl.int64) * HEADS + h) * D + d[None, :]
    mine = (d[None, :] < D) & (d[None, :] < (part + 1) * OUT)
    tl.store(y_at, (acc / total[:, None]).to(y.dtype.element_ty), mask=ok[:, None] & mine)
    if LSE:
        tl.store(lse + h * T + row0 + rows, best + tl.log2(total), mask=ok & (part == 0))


def suits_two_steps(q_THd, packing) -> bool:
    """Whether this beats one pass: heads that no single program holds, and long sequences, or float32, which has no fast pass."""
    T, _, D = q_THd.shape
    return D > 256 and (q_THd.dtype == torch.float32 or T >= 512 * len(packing))


def wide_prefill(q_THd, k_THd, v_THd, scale, packing, cache=None, past=None, *, with_lse=False, room=ROOM, config=None):
    """As `prefill`: y (T, H, d), and with ``with_lse`` log2 of each row's sum (H, T)."""
    T, H, D = q_THd.shape
    config = dict(config or (WIDE_F32 if q_THd.dtype == torch.float32 else WIDE))
    if cache is not None:
        config["keys"] = in_page(config["keys"], cache)
    y = torch.empty(T, H, D, dtype=q_THd.dtype, device=q_THd.device)
    lse = torch.empty(H, T, dtype=torch.float32, device=q_THd.device) if with_lse else y
    start = 0
    for s, length in enumerate(packing.lengths):
        before = 0 if past is None else past[s]
        size = triton.cdiv(before + length, config["keys"]) * config["keys"] * q_THd.element_size()
        rows = length if length * size <= room else max(128, room // size // 128 * 128)
        heads = max(1, min(H, room // (rows * size)))
        heads = triton.cdiv(H, triton.cdiv(H, heads))
        for first in range(0, length, rows):
            for head in range(0, H, heads):
                part = (s, start, first, min(rows, length - first), before, head, min(heads, H - head))
                _part(q_THd, k_THd, v_THd, y, lse, scale, cache, config, *part)
        start += length
    return (y, lse) if with_lse else y


def _part(q, k, v, y, lse, scale, cache, config, s, start, first, count, before, head, heads):
    """Queries [first, first + count) of sequence s and some heads."""
    D, device, cols = q.shape[2], q.device, config["keys"]
    blocks = triton.cdiv(before + first + count, cols)
    P = torch.empty(heads, count, blocks * cols, dtype=q.dtype, device=device)
    tops, totals = torch.empty(2, heads, blocks, count, dtype=torch.float32, device=device)
    keys, values, pages, page = (k, v, y, 1) if cache is None else (cache.keys, cache.values, cache.pages_SM[s], cache.page)
    strides = [x.stride()[:2] if cache is None else (D, x.stride(1)) for x in (keys, values)]
    pool = 0 if cache is None else cache.keys.stride(0)
    place = (pages, start + first, count, before + first, start, blocks * cols)
    tiles = triton.cdiv(count, config["queries"])
    common = {"D": D, "BM": config["queries"], "PAGED": cache is not None, "device": device}
    step, stages, warps = config["scores"]
    launch(
        scores_kernel,
        (blocks, tiles, heads),
        *(q, keys, P, tops, totals, *place, head, scale * LOG2_E, *q.stride()[:2], *strides[0], pool, page),
        BN=cols,
        BK=step,
        STAGES=stages,
        num_warps=warps,
        **common,
    )
    step, stages, warps = config["mix"]
    out = triton.cdiv(triton.cdiv(D, 2), 8) * 8  # of each of two programs
    step, wide = min(step, cols), max(64, triton.next_power_of_2(out))
    launch(
        mix_kernel,
        (2, tiles, heads),
        *(P, tops, totals, values, y, lse, *place, blocks, head, len(q), *strides[1], pool, page),
        HEADS=q.shape[1],
        OUT=out,
        WIDE=wide,
        TILE=cols,
        BN=step,
        LSE=lse is not y,
        STAGES=stages,
        num_warps=warps,
        **common,
    )
