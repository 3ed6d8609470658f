"""Before a prefill: rotate queries and keys, and write the new keys and values into their pages, in one pass."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.attention.triton.tiles import query_tiles
from zamba_lm.ops.gpu import launch
from zamba_lm.ops.rope.triton import turned

TOKENS = 16  # of a program


@triton.jit(do_not_specialize=["pages_s"])
def append_kernel(
    q, k, v, cos, sin, q_out, k_out, keys, values, pages, past, tiles,
    q_t, q_h, k_t, k_h, v_t, v_h, pool_p, pool_h, pages_s, PAGE,
    HEADS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr,
    TURN: tl.constexpr, KEEP: tl.constexpr, CACHED: tl.constexpr,
):  # fmt: skip
    """Program (tile, head). TURN: rotate q into q_out, and k. KEEP: k also to k_out, packed. CACHED: k and v to the pages."""
    tile = tiles + tl.program_id(0) * 4
    sequence, start, count, position = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    if CACHED:
        position += tl.load(past + sequence)
    head = tl.program_id(1)
    n, d = tl.arange(0, BT)[:, None], tl.arange(0, DP)[None, :]
    ok = (n < count) & (d < D)
    t = (start + n).to(tl.int64)
    packed = (t * HEADS + head) * D + d
    dtype = q.dtype.element_ty
    if TURN:
        angle = t * (D // 2)
        tl.store(q_out + packed, turned(q + t * q_t + head * q_h, cos + angle, sin + angle, d, ok, D).to(dtype), mask=ok)
        k_new = turned(k + t * k_t + head * k_h, cos + angle, sin + angle, d, ok, D).to(dtype)
        if KEEP:
            tl.store(k_out + packed, k_new, mask=ok)
    else:
        k_new = tl.load(k + t * k_t + head * k_h + d, mask=ok, other=0.0)
    if CACHED:
        at = position + n
        page = tl.load(pages + sequence * pages_s + at // PAGE, mask=n < count, other=0).to(tl.int64)
        where = page * pool_p + head.to(tl.int64) * pool_h + (at % PAGE) * D + d
        tl.store(keys + where, k_new, mask=ok)
        tl.store(values + where, tl.load(v + t * v_t + head * v_h + d, mask=ok, other=0.0), mask=ok)


def append(q_THd, k_THd, v_THd, packing, cache, angles, keep):
    """Queries and keys as attention shall see them (rotated; k only when ``keep``), the pages written."""
    T, H, D = q_THd.shape
    tiles = query_tiles(packing, TOKENS, q_THd.device)
    q_out = torch.empty(T, H, D, dtype=q_THd.dtype, device=q_THd.device) if angles is not None else q_THd
    k_out = torch.empty_like(q_out) if angles is not None and keep else k_THd
    cos, sin = angles if angles is not None else (q_THd, q_THd)
    keys, values, pages, past = (k_THd, v_THd, tiles, tiles)
    if cache is not None:
        keys, values, pages, past = cache.keys, cache.values, cache.pages_SM, cache.past_S
    launch(
        append_kernel,
        (len(tiles), H),
        *(q_THd, k_THd, v_THd, cos, sin, q_out, k_out, keys, values, pages, past, tiles),
        *(*q_THd.stride()[:2], *k_THd.stride()[:2], *v_THd.stride()[:2], *keys.stride()[:2], pages.stride(0)),
        cache.page if cache is not None else 1,
        device=q_THd.device,
        HEADS=H,
        D=D,
        DP=max(16, triton.next_power_of_2(D)),
        BT=TOKENS,
        TURN=angles is not None,
        KEEP=keep,
        CACHED=cache is not None,
        num_warps=4,
    )
    return q_out, k_out


@triton.jit(do_not_specialize=["T", "S"])
def blank_kernel(k, v, starts, T, S, k_t, k_h, v_t, v_h, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """Zeros for keys and values of the rows behind the last sequence. A program: BT rows of a head."""
    first, total, head = tl.program_id(0) * BT, tl.load(starts + S), tl.program_id(1)
    if first + BT > total:
        t = (first + tl.arange(0, BT))[:, None].to(tl.int64)
        d = tl.arange(0, DP)[None, :]
        behind = (t >= total) & (t < T) & (d < D)
        nothing = tl.zeros((BT, DP), k.dtype.element_ty)
        tl.store(k + t * k_t + head * k_h + d, nothing, mask=behind)
        tl.store(v + t * v_t + head * v_h + d, nothing, mask=behind)


def blank(k_THd, v_THd, packing) -> None:
    """Make numbers of what stands behind the last sequence of a frame, for kernels that know no lengths: their mask leaves it
    out, but nothing times nan is nan."""
    T, H, D = k_THd.shape
    launch(
        blank_kernel,
        (triton.cdiv(T, TOKENS), H),
        *(k_THd, v_THd, packing.cu_seqlens(k_THd.device), T, len(packing), *k_THd.stride()[:2], *v_THd.stride()[:2]),
        D=D,
        DP=max(16, triton.next_power_of_2(D)),
        BT=TOKENS,
        num_warps=4,
        device=k_THd.device,
    )
