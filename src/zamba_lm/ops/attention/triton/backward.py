"""Gradients of attention for heads of any width: a kernel makes the weights and their gradients, cuBLAS multiplies them.

    P = exp(s - lse)    dP = dy v^T    dS = P (dP - delta) scale    delta = sum_d y dy
    dv = P^T dy         dk = dS^T q    dq = dS k

A program that held dk and dv of a tile of keys 464 channels wide would need more registers than there are. So P and dS of as many
heads as fit into ROOM are written out, and the three products are plain matrix products; BLOCKS blocks of queries and keys keep
them from multiplying most of the zeros above the diagonal.
"""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.attention.triton.hopper import suits_tall, tall_prefill
from zamba_lm.ops.attention.triton.prefill import prefill
from zamba_lm.ops.attention.triton.products import dot
from zamba_lm.ops.attention.triton.wide import suits_two_steps, wide_prefill
from zamba_lm.ops.gpu import launch
from zamba_lm.ops.packing import Packing

ROOM = 512 << 20  # bytes for P and dS together
BLOCKS = 4


@triton.jit
def delta_kernel(y, dy, delta, T, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """delta (H, T) float32 of contiguous y and dy (T, H, D). A program: BT tokens of one head."""
    h = tl.program_id(1)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    d = tl.arange(0, DP)[None, :]
    at = (t.to(tl.int64)[:, None] * H + h) * D + d
    ok = (t[:, None] < T) & (d < D)
    product = tl.load(y + at, mask=ok, other=0.0).to(tl.float32) * tl.load(dy + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(delta + h * T + t, tl.sum(product, axis=1), mask=t < T)


@triton.jit
def weights_kernel(
    q, k, v, dy, lse, delta, P, dS, start, length, T, scale, block,
    q_t, q_h, k_t, k_h, v_t, v_h, dy_t, dy_h, first_head,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Tile (i, j) of P and dS (heads, length, length) of the sequence of ``length`` tokens from packed row ``start``. Tiles in
    blocks above the diagonal are read by nobody and left alone; within diagonal blocks they become 0."""
    i, j, group = tl.program_id(1), tl.program_id(0), tl.program_id(2)
    if (j * BN) // block <= (i * BM) // block:
        h = first_head + group
        rows, cols = i * BM + tl.arange(0, BM), j * BN + tl.arange(0, BN)
        s = tl.zeros([BM, BN], tl.float32)
        dp = tl.zeros([BM, BN], tl.float32)
        row_t, col_t = (start + rows[:, None]).to(tl.int64), (start + cols[None, :]).to(tl.int64)
        row_ok, col_ok = rows[:, None] < length, cols[None, :] < length
        if j * BN <= i * BM + BM - 1:
            for c in tl.range(0, D, BK, num_stages=STAGES):
                d = c + tl.arange(0, BK)
                across, down = d[None, :], d[:, None]
                q_tile = tl.load(q + row_t * q_t + h * q_h + across, mask=row_ok & (across < D), other=0.0)
                k_tile = tl.load(k + col_t * k_t + h * k_h + down, mask=col_ok & (down < D), other=0.0)
                s = dot(q_tile, k_tile, s)
                dy_tile = tl.load(dy + row_t * dy_t + h * dy_h + across, mask=row_ok & (across < D), other=0.0)
                v_tile = tl.load(v + col_t * v_t + h * v_h + down, mask=col_ok & (down < D), other=0.0)
                dp = dot(dy_tile, v_tile, dp)
        at = h * T + start + rows
        total = tl.load(lse + at, mask=rows < length, other=0.0)
        dot_y = tl.load(delta + at, mask=rows < length, other=0.0)
        seen = cols[None, :] <= rows[:, None]
        p = tl.where(seen, tl.exp2(s * (scale * 1.4426950408889634) - total[:, None]), 0.0)
        ds = p * (dp - dot_y[:, None]) * scale
        out = (group.to(tl.int64) * length + rows[:, None]) * length + cols[None, :]
        tl.store(P + out, p.to(P.dtype.element_ty), mask=row_ok & col_ok)
        tl.store(dS + out, ds.to(dS.dtype.element_ty), mask=row_ok & col_ok)


class WideAttention(torch.autograd.Function):
    """Attention of packed sequences without a cache, by a forward pass that keeps each row's sum and the kernels above."""

    @staticmethod
    def forward(ctx, q_THd, k_THd, v_THd, scale, lengths):
        packing = Packing(lengths)
        run = wide_prefill if suits_two_steps(q_THd, packing) else prefill
        run = tall_prefill if suits_tall(q_THd, k_THd, v_THd, packing) else run
        y, lse = run(q_THd, k_THd, v_THd, scale, packing, with_lse=True)
        ctx.save_for_backward(q_THd, k_THd, v_THd, y, lse)
        ctx.scale, ctx.lengths = scale, lengths
        return y

    @staticmethod
    def backward(ctx, dy_THd):
        q, k, v, y, lse = ctx.saved_tensors
        return *gradients(q, k, v, y, lse, dy_THd.contiguous(), ctx.scale, ctx.lengths), None, None


def gradients(q, k, v, y, lse, dy, scale, lengths):
    """dq, dk and dv (T, H, d), contiguous."""
    T, H, D = q.shape
    delta = torch.empty(H, T, dtype=torch.float32, device=q.device)
    width = triton.next_power_of_2(D)
    shape = {"H": H, "D": D, "DP": width, "BT": max(1, 4096 // width)}
    launch(delta_kernel, (triton.cdiv(T, shape["BT"]), H), y, dy, delta, T, device=q.device, num_warps=4, **shape)
    dq, dk, dv = (torch.empty(T, H, D, dtype=q.dtype, device=q.device) for _ in range(3))
    start = 0
    for length in lengths:
        together = max(1, min(H, ROOM // (2 * length * length * q.element_size())))
        for head in range(0, H, together):
            heads = slice(head, min(head + together, H))
            _some_heads(q, k, v, dy, lse, delta, dq, dk, dv, scale, start, length, heads)
        start += length
    return dq, dk, dv


def _some_heads(q, k, v, dy, lse, delta, dq, dk, dv, scale, start, length, heads):
    """One sequence, the given heads."""
    n, T, D = heads.stop - heads.start, q.shape[0], q.shape[2]
    exact = q.dtype == torch.float32
    tile = 32 if exact else 128
    block = triton.cdiv(triton.cdiv(length, BLOCKS), 128) * 128
    P, dS = torch.empty(2, n, length, length, dtype=q.dtype, device=q.device)
    launch(
        weights_kernel,
        (triton.cdiv(length, tile), triton.cdiv(length, tile), n),
        *(q, k, v, dy, lse, delta, P, dS, start, length, T, scale, block),
        *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *dy.stride()[:2], heads.start),
        device=q.device,
        D=D,
        BM=tile,
        BN=tile,
        BK=32 if exact else 64,
        STAGES=2 if exact else 3,
        num_warps=4 if exact else 8,
    )
    rows = slice(start, start + length)
    q, k, dy, dq, dk, dv = (x[rows, heads].transpose(0, 1) for x in (q, k, dy, dq, dk, dv))
    for first in range(0, length, block):
        these, behind, before = slice(first, first + block), slice(first, length), slice(0, min(first + block, length))
        torch.bmm(P[:, behind, these].transpose(1, 2), dy[:, behind], out=dv[:, these])
        torch.bmm(dS[:, behind, these].transpose(1, 2), q[:, behind], out=dk[:, these])
        torch.bmm(dS[:, these, before], k[:, before], out=dq[:, these])
