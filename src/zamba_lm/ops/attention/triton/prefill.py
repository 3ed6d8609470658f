"""Many new tokens a sequence: one pass over keys and values with an online softmax, from pages or from packed rows.

A head's channels are cut into two powers of two, A + B (160 in 128 + 64, 464 in 256 + 256), so that products waste little.
Heads too wide for one program's registers share their output among PARTS programs, each of which works out the scores again.
"""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.attention.triton.configs import prefill_config
from zamba_lm.ops.attention.triton.descriptors import describable, descriptor
from zamba_lm.ops.attention.triton.products import LOG2_E, dot
from zamba_lm.ops.attention.triton.tiles import query_tiles
from zamba_lm.ops.gpu import capability, launch


@triton.jit
def rows_of(
    source, row, head, channel, pool_h, stride, left, D: tl.constexpr, BN: tl.constexpr, WIDE: tl.constexpr,
    PAGED: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Channels [channel, channel + WIDE) of BN keys or values (BN, WIDE). With TMA ``source`` is a descriptor and ``row`` its
    row; else ``row`` is the offset of the first row's head. Rows from ``left`` on are 0 where MASKED (not with TMA)."""
    if TMA:
        if PAGED:
            tile = source.load([row, channel])
        else:
            tile = source.load([row, head, channel]).reshape(BN, WIDE)
    else:
        n, d = tl.arange(0, BN)[:, None], channel + tl.arange(0, WIDE)[None, :]
        ok = (d < D) & (n < left) if MASKED else (d < D) & (n >= 0)
        tile = tl.load(source + row + n * stride + d, mask=ok, other=0.0)
    return tile


@triton.jit
def attend(
    q_a, q_b, k_a, k_b, v_a, v_b, m, total, acc_a, acc_b, pages, head, part, first, stop, start, end, rows, scale,
    pool_p, pool_h, k_t, k_h, v_t, v_h, PAGE,
    HEADS: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, OA: tl.constexpr, OB: tl.constexpr,
    OUT: tl.constexpr, BN: tl.constexpr, PAGED: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Blocks [first, stop) of keys. ``rows``: position of each query in its sequence. ``start``: packed row of position 0."""
    for block in tl.range(first, stop, num_stages=STAGES):
        at = block * BN
        if PAGED:
            page = tl.load(pages + at // PAGE)
            if TMA:
                k_row = (page * HEADS + head) * PAGE + at % PAGE
                v_row = k_row
            else:
                k_row = page.to(tl.int64) * pool_p + head.to(tl.int64) * pool_h + (at % PAGE) * D
                v_row = k_row
        elif TMA:
            k_row = start + at
            v_row = k_row
        else:
            k_row = (start + at).to(tl.int64) * k_t + head * k_h
            v_row = (start + at).to(tl.int64) * v_t + head * v_h
        left = end - at
        tile = rows_of(k_a, k_row, head, 0, pool_h, k_t, left, D, BN, A, PAGED, TMA, MASKED)
        s = dot(q_a, tile.T, tl.zeros([q_a.shape[0], BN], tl.float32))
        if B > 0:
            tile = rows_of(k_b, k_row, head, A, pool_h, k_t, left, D, BN, B, PAGED, TMA, MASKED)
            s = dot(q_b, tile.T, s)
        if MASKED:
            key = at + tl.arange(0, BN)
            s = tl.where(key[None, :] <= rows[:, None], s * scale, float("-inf"))
            top = tl.maximum(m, tl.max(s, axis=1))
            p = tl.exp2(s - top[:, None])
        else:
            top = tl.maximum(m, tl.max(s, axis=1) * scale)
            p = tl.exp2(s * scale - top[:, None])
        old = tl.exp2(m - top)
        total = total * old + tl.sum(p, axis=1)
        m = top
        acc_a = acc_a * old[:, None]
        tile = rows_of(v_a, v_row, head, part * OUT, pool_h, v_t, left, D, BN, OA, PAGED, TMA, MASKED)
        if MASKED and TMA:
            tile = tl.where(tl.arange(0, BN)[:, None] < left, tile, 0.0)
        p = p.to(tile.dtype)
        acc_a = dot(p, tile, acc_a)
        if OB > 0:
            acc_b = acc_b * old[:, None]
            tile = rows_of(v_b, v_row, head, part * OUT + OA, pool_h, v_t, left, D, BN, OB, PAGED, TMA, MASKED)
            if MASKED and TMA:
                tile = tl.where(tl.arange(0, BN)[:, None] < left, tile, 0.0)
            acc_b = dot(p, tile, acc_b)
    return m, total, acc_a, acc_b


@triton.jit(do_not_specialize=["n_tiles", "T", "pages_s"])
def prefill_kernel(
    q, k_a, k_b, v_a, v_b, pages, past, tiles, y, lse, n_tiles, T,
    q_t, q_h, k_t, k_h, v_t, v_h, pool_p, pool_h, pages_s, PAGE, scale,
    HEADS: tl.constexpr, D: tl.constexpr, A: tl.constexpr, B: tl.constexpr, OA: tl.constexpr, OB: tl.constexpr,
    OUT: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PAGED: tl.constexpr, TMA: tl.constexpr,
    STAGES: tl.constexpr, LSE: tl.constexpr,
):  # fmt: skip
    """A program: one tile of queries of one head, and channels [part OUT, (part + 1) OUT) of the result. Tiles vary faster than
    heads, so that keys and values of few heads are in the second-level cache at a time."""
    part, program = tl.program_id(0) % PARTS, tl.program_id(0) // PARTS
    head = program // n_tiles
    tile = tiles + (program % n_tiles) * 4
    sequence, start, count, position = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    if PAGED:
        position += tl.where(count > 0, tl.load(past + sequence), 0)  # a row of zeros is no tile
    n = tl.arange(0, BM)
    rows = position + n
    q_at = q + (start + n[:, None]).to(tl.int64) * q_t + head * q_h
    d = tl.arange(0, A)[None, :]
    q_a = tl.load(q_at + d, mask=(n[:, None] < count) & (d < D), other=0.0)
    q_b = q_a
    if B > 0:
        d = A + tl.arange(0, B)[None, :]
        q_b = tl.load(q_at + d, mask=(n[:, None] < count) & (d < D), other=0.0)
    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc_a = tl.zeros([BM, OA], tl.float32)
    acc_b = tl.zeros([BM, OB if OB > 0 else 16], tl.float32)

    end = position + count
    whole = (position + 1) // BN
    table = pages + sequence * pages_s
    origin = start - position
    m, total, acc_a, acc_b = attend(
        q_a, q_b, k_a, k_b, v_a, v_b, m, total, acc_a, acc_b, table, head, part, 0, whole, origin, end, rows,
        scale, pool_p, pool_h, k_t, k_h, v_t, v_h, PAGE, HEADS, D, A, B, OA, OB, OUT, BN, PAGED, TMA, STAGES, False,
    )  # fmt: skip
    m, total, acc_a, acc_b = attend(
        q_a, q_b, k_a, k_b, v_a, v_b, m, total, acc_a, acc_b, table, head, part, whole, tl.cdiv(end, BN), origin, end, rows,
        scale, pool_p, pool_h, k_t, k_h, v_t, v_h, PAGE, HEADS, D, A, B, OA, OB, OUT, BN, PAGED, TMA, STAGES, True,
    )  # fmt: skip

    last = tl.minimum((part + 1) * OUT, D)
    y_at = y + ((start + n[:, None]).to(tl.int64) * HEADS + head) * D
    d = part * OUT + tl.arange(0, OA)[None, :]
    tl.store(y_at + d, (acc_a / total[:, None]).to(y.dtype.element_ty), mask=(n[:, None] < count) & (d < last))
    if OB > 0:
        d = part * OUT + OA + tl.arange(0, OB)[None, :]
        tl.store(y_at + d, (acc_b / total[:, None]).to(y.dtype.element_ty), mask=(n[:, None] < count) & (d < last))
    if LSE:
        tl.store(lse + head * T + start + n, m + tl.log2(total), mask=(n < count) & (part == 0))


def halves(width: int) -> tuple[int, int]:
    """``width`` channels as two powers of two, masked, or one and 0. None is below 64: 32-wide tiles in shared memory gave wrong
    products and illegal accesses on an H200 (Triton 3.6)."""
    a = max(64, 1 << (width.bit_length() - 1))
    return a, 0 if a >= width else max(64, triton.next_power_of_2(width - a))


def prefill(q_THd, k_THd, v_THd, scale, packing, cache=None, *, config=None, with_lse=False):
    """y (T, H, d), and with ``with_lse`` also log2 of each row's sum (H, T) float32. Rotation and append are done already: with a
    cache, keys and values are read from the pages alone."""
    T, H, D = q_THd.shape
    device = q_THd.device
    config = config or prefill_config(sum(halves(D)), q_THd.dtype, cache)
    parts = config.get("parts", 1)
    a, b = (max(16, triton.next_power_of_2(D)), 0) if config.get("whole") else halves(D)
    out = D if parts == 1 else triton.cdiv(triton.cdiv(D, parts), 8) * 8
    oa, ob = (a, b) if parts == 1 else (max(16, triton.next_power_of_2(out)), 0)
    tiles = query_tiles(packing, config["queries"], device)
    y = torch.empty(T, H, D, dtype=q_THd.dtype, device=device)
    lse = torch.empty(H, T, dtype=torch.float32, device=device) if with_lse else y
    keys, values, pages, past = k_THd, v_THd, tiles, tiles
    if cache is not None:
        keys, values, pages, past = cache.keys, cache.values, cache.pages_SM, cache.past_S
    tma = config["tma"] and capability(device) >= (9, 0) and describable(keys, values)
    blocks = (a, b or a, oa, ob or oa)
    pairs = zip((keys, keys, values, values), blocks, strict=True)
    sources = [descriptor(x, config["keys"], wide, cache is not None) if tma else x for x, wide in pairs]
    pool = keys.stride()[:2] if cache is not None else (0, 0)
    rows = (D, D, D, D) if cache is not None else (*k_THd.stride()[:2], *v_THd.stride()[:2])
    launch(
        prefill_kernel,
        (len(tiles) * H * parts,),
        *(q_THd, *sources, pages, past, tiles, y, lse, len(tiles), T, *q_THd.stride()[:2], *rows, *pool, pages.stride(0)),
        *(cache.page if cache is not None else 1, scale * LOG2_E),
        device=device,
        HEADS=H,
        D=D,
        A=a,
        B=b,
        OA=oa,
        OB=ob,
        OUT=out,
        PARTS=parts,
        BM=config["queries"],
        BN=config["keys"],
        PAGED=cache is not None,
        TMA=tma,
        STAGES=config["stages"],
        LSE=with_lse,
        num_warps=config["warps"],
    )
    return (y, lse) if with_lse else y
