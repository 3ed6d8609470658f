"""Attention of packed documents with gradients, for heads of 64 or 128 channels: all documents and heads in a launch, RoPE
included.

    P = exp(s - lse)    dP = dy v^T    dS = P (dP - delta)    delta = sum_d y dy
    dv = P^T dy         dk = dS^T q    dq = dS k              each times the scale where due

One kernel owns tiles of keys and one tiles of queries; both make the weights anew. Gradients are turned back and written into
one tensor of q, k and v, as the product behind reads it.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from zamba_lm.ops.attention.triton.backward import delta_kernel
from zamba_lm.ops.attention.triton.prefill import prefill
from zamba_lm.ops.attention.triton.products import LOG2_E, dot
from zamba_lm.ops.attention.triton.tiles import query_tiles
from zamba_lm.ops.gpu import launch
from zamba_lm.ops.packing import Packing, Rows

HEADS_OF = (64, 128)  # channels of a head
KEYS = {64: (64, 32, 4, 3), 128: (64, 64, 4, 2)}  # own tile, tile of the others, warps, stages
QUERIES = {64: (64, 32, 4, 3), 128: (64, 64, 4, 2)}


@triton.jit
def tile_of(x, rows, stride, ok, D: tl.constexpr):
    return tl.load(x + rows.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :], mask=ok[:, None], other=0.0)


@triton.jit
def store_turned(to, value, rows, stride, ok, cos, sin, D: tl.constexpr, TURN: tl.constexpr):
    """Write a tile, turned back by the rows' angles."""
    F: tl.constexpr = D // 2
    f = tl.arange(0, F)[None, :]
    if TURN:
        first, second = tl.split(tl.permute(tl.reshape(value, (value.shape[0], 2, F)), (0, 2, 1)))
        c = tl.load(cos + rows[:, None] * F + f, mask=ok[:, None], other=0.0)
        s = tl.load(sin + rows[:, None] * F + f, mask=ok[:, None], other=0.0)
        at = to + rows.to(tl.int64)[:, None] * stride + f
        tl.store(at, (first * c + second * s).to(to.dtype.element_ty), mask=ok[:, None])
        tl.store(at + F, (second * c - first * s).to(to.dtype.element_ty), mask=ok[:, None])
    else:
        at = to + rows.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
        tl.store(at, value.to(to.dtype.element_ty), mask=ok[:, None])


@triton.jit
def keys_kernel(
    q, k, v, dy, lse, delta, cos, sin, dk, dv, tiles, T, scale, log_scale, q_t, k_t, v_t, dy_t, d_t, q_h, k_h, v_h, dy_h, d_h,
    HEADS: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, TURN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values of one head. A row of ``tiles``: first key, number, token behind the document."""
    h, tile = tl.program_id(0) % HEADS, tiles + tl.program_id(0) // HEADS * 3
    start, count, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    n = tl.arange(0, BN)
    own = n < count
    k_tile = tile_of(k + h * k_h, start + n, k_t, own, D)
    v_tile = tile_of(v + h * v_h, start + n, v_t, own, D)
    dk_acc = tl.zeros((BN, D), tl.float32)
    dv_acc = tl.zeros((BN, D), tl.float32)
    diagonal = tl.minimum(end, start + BN)
    for first in tl.range(start, diagonal, BM, num_stages=1):  # queries that do not see all of these keys
        dk_acc, dv_acc = of_queries(
            dk_acc, dv_acc, k_tile, v_tile, q + h * q_h, dy + h * dy_h, lse + h * T, delta + h * T, first, end, start + n,
            log_scale, q_t, dy_t, D, BM, True,
        )  # fmt: skip
    for first in tl.range(start + BN, end, BM, num_stages=STAGES):
        dk_acc, dv_acc = of_queries(
            dk_acc, dv_acc, k_tile, v_tile, q + h * q_h, dy + h * dy_h, lse + h * T, delta + h * T, first, end, start + n,
            log_scale, q_t, dy_t, D, BM, False,
        )  # fmt: skip
    store_turned(dk + h * d_h, dk_acc * scale, start + n, d_t, own, cos, sin, D, TURN)
    store_turned(dv + h * d_h, dv_acc, start + n, d_t, own, cos, sin, D, False)


@triton.jit
def of_queries(
    dk_acc, dv_acc, k_tile, v_tile, q, dy, lse, delta, first, end, keys, log_scale, q_t, dy_t,
    D: tl.constexpr, BM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    m = first + tl.arange(0, BM)
    ok = m < end
    q_tile = tile_of(q, m, q_t, ok, D)
    dy_tile = tile_of(dy, m, dy_t, ok, D)
    logs = tl.load(lse + m, mask=ok, other=float("inf"))
    s = dot(k_tile, tl.trans(q_tile), tl.zeros((k_tile.shape[0], BM), tl.float32))
    p = tl.exp2(s * log_scale - logs[None, :])
    if MASKED:
        p = tl.where(keys[:, None] <= m[None, :], p, 0.0)
    dv_acc = dot(p.to(dy_tile.dtype), dy_tile, dv_acc)
    dp = dot(v_tile, tl.trans(dy_tile), tl.zeros((k_tile.shape[0], BM), tl.float32))
    ds = p * (dp - tl.load(delta + m, mask=ok, other=0.0)[None, :])
    return dot(ds.to(q_tile.dtype), q_tile, dk_acc), dv_acc


@triton.jit
def queries_kernel(
    q, k, v, dy, lse, delta, cos, sin, dq, tiles, T, scale, log_scale, q_t, k_t, v_t, dy_t, d_t, q_h, k_h, v_h, dy_h, d_h,
    HEADS: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TURN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries of one head; ``tiles`` as of a prefill."""
    h, tile = tl.program_id(0) % HEADS, tiles + tl.program_id(0) // HEADS * 4
    start, count, position = tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    m = start + tl.arange(0, BM)
    own = tl.arange(0, BM) < count
    q_tile = tile_of(q + h * q_h, m, q_t, own, D)
    dy_tile = tile_of(dy + h * dy_h, m, dy_t, own, D)
    logs = tl.load(lse + h * T + m, mask=own, other=float("inf"))
    minus = tl.load(delta + h * T + m, mask=own, other=0.0)
    acc = tl.zeros((BM, D), tl.float32)
    origin, end = start - position, start + count
    whole = origin + (position + 1) // BN * BN
    for first in tl.range(origin, whole, BN, num_stages=STAGES):
        acc = of_keys(
            acc, q_tile, dy_tile, logs, minus, k + h * k_h, v + h * v_h, first, end, m, log_scale, k_t, v_t, D, BN, False
        )
    for first in tl.range(whole, end, BN, num_stages=1):
        acc = of_keys(
            acc, q_tile, dy_tile, logs, minus, k + h * k_h, v + h * v_h, first, end, m, log_scale, k_t, v_t, D, BN, True
        )
    store_turned(dq + h * d_h, acc * scale, m, d_t, own, cos, sin, D, TURN)


@triton.jit
def of_keys(
    acc, q_tile, dy_tile, logs, minus, k, v, first, end, m, log_scale, k_t, v_t,
    D: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    n = first + tl.arange(0, BN)
    ok = n < end
    k_tile = tile_of(k, n, k_t, ok, D)
    v_tile = tile_of(v, n, v_t, ok, D)
    s = dot(q_tile, tl.trans(k_tile), tl.zeros((q_tile.shape[0], BN), tl.float32))
    p = tl.exp2(s * log_scale - logs[:, None])
    if MASKED:
        p = tl.where(n[None, :] <= m[:, None], p, 0.0)
    dp = dot(dy_tile, tl.trans(v_tile), tl.zeros((q_tile.shape[0], BN), tl.float32))
    ds = p * (dp - minus[:, None])
    return dot(ds.to(k_tile.dtype), k_tile, acc)


@lru_cache(maxsize=32)
def key_tiles(lengths: tuple[int, ...], size: int) -> tuple[Rows]:
    """Rows (first key, number, token behind its document), the longest work first."""
    rows, start = [], 0
    for length in lengths:
        rows += [(start + i, min(size, length - i), start + length) for i in range(0, length, size)]
        start += length
    return (sorted(rows, key=lambda row: row[0] - row[2]),)


@triton.jit
def turn_kernel(x, cos, sin, y, T, H2, x_t, D: tl.constexpr, BT: tl.constexpr, HEADS: tl.constexpr):
    """y (T, H2, D) of the first H2 heads in rows x_t apart. Programs: BT tokens, HEADS heads of both queries and keys."""
    F: tl.constexpr = D // 2
    t = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)[:, None]
    f, ok = tl.arange(0, F)[None, :], t < T
    c = tl.load(cos + t * F + f, mask=ok, other=0.0)
    s = tl.load(sin + t * F + f, mask=ok, other=0.0)
    for k in tl.static_range(HEADS):
        h = tl.program_id(1) * HEADS + k
        here = ok & (h < H2)
        first = tl.load(x + t * x_t + h * D + f, mask=here, other=0.0).to(tl.float32)
        second = tl.load(x + t * x_t + h * D + F + f, mask=here, other=0.0).to(tl.float32)
        to = y + (t * H2 + h) * D + f
        tl.store(to, (first * c - second * s).to(y.dtype.element_ty), mask=here)
        tl.store(to + F, (second * c + first * s).to(y.dtype.element_ty), mask=here)


def turned(qkv, cos, sin):
    """Queries and keys (T, H, d), rotated; views of one tensor."""
    T, _, H, D = qkv.shape
    qkv = qkv if qkv.stride()[1:] == (H * D, D, 1) else qkv.contiguous()
    y = torch.empty(T, 2 * H, D, dtype=qkv.dtype, device=qkv.device)
    grid = triton.cdiv(T, 2048 // D), triton.cdiv(2 * H, 4)
    sizes = (T, 2 * H, qkv.stride(0))
    launch(turn_kernel, grid, qkv, cos, sin, y, *sizes, D=D, BT=2048 // D, HEADS=4, num_warps=4, device=y.device)
    return y[:, :H], y[:, H:]


def packed_attention(qkv_T3Hd, scale: float, packing: Packing, angles):
    """y (T, H, d) of documents that start afresh; ``angles`` as of ``attention``."""
    cos, sin = angles if angles is not None else (None, None)
    return _Packed.apply(qkv_T3Hd, cos, sin, scale, packing)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, scale, packing):
        q, k, v = qkv.unbind(1)
        if cos is not None:
            q, k = turned(qkv, cos, sin)
        y, lse = prefill(q, k, v, scale, packing, with_lse=True)
        ctx.save_for_backward(q, k, v, y, lse, cos, sin)
        ctx.scale, ctx.packing = scale, packing
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        q, k, v, y, lse, cos, sin = ctx.saved_tensors
        return gradients(q, k, v, y, lse, dy.contiguous(), cos, sin, ctx.scale, ctx.packing), None, None, None, None


def gradients(q, k, v, y, lse, dy, cos, sin, scale, packing):
    """Those of q, k and v as they were before they were turned, (T, 3, H, d)."""
    T, H, D = q.shape
    device, turn = q.device, cos is not None
    delta, d_qkv = torch.empty(H, T, dtype=torch.float32, device=device), torch.empty(T, 3, H, D, dtype=q.dtype, device=device)
    shape = {"H": H, "D": D, "DP": D, "BT": 4096 // D}
    launch(delta_kernel, (triton.cdiv(T, shape["BT"]), H), y, dy, delta, T, device=device, num_warps=4, **shape)
    dq, dk, dv = d_qkv.unbind(1)
    given = (q, k, v, dy, lse, delta, cos if turn else q, sin if turn else q)
    sizes = (T, scale, scale * LOG2_E, *(x.stride(0) for x in (q, k, v, dy, dq)), *(x.stride(1) for x in (q, k, v, dy, dq)))
    own, others, warps, stages = KEYS[D]
    tiles = packing.tables(key_tiles, own, device=device)[0]
    options = {"HEADS": H, "D": D, "TURN": turn, "device": device}
    how = {"BN": own, "BM": others, "STAGES": stages, "num_warps": warps}
    launch(keys_kernel, (len(tiles) * H,), *given, dk, dv, tiles, *sizes, **how, **options)
    own, others, warps, stages = QUERIES[D]
    tiles = query_tiles(packing, own, device)
    how = {"BM": own, "BN": others, "STAGES": stages, "num_warps": warps}
    launch(queries_kernel, (len(tiles) * H,), *given, dq, tiles, *sizes, **how, **options)
    return d_qkv
