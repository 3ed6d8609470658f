"""The gradient of what ``prepare`` does: back through the norm of rows, or of two tensors' rows side by side, in one pass."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.norm.triton import pieces, spread
from zamba_lm.ops.norm.triton.sums import column_sums


@triton.jit
def _half(x, x2, row, x_stride, x2_stride, i, I1, keep, PAIR: tl.constexpr):
    """Channels i of a row of [x | x2], float32."""
    v = tl.load(x + row * x_stride + i, mask=keep & (i < I1), other=0.0).to(tl.float32)
    if PAIR:
        v += tl.load(x2 + row * x2_stride + (i - I1), mask=keep & (i >= I1), other=0.0).to(tl.float32)
    return v


@triton.jit
def _back(d_x, d_x2, d, more, row, more_stride, i, I1, I, keep, PAIR: tl.constexpr, MORE: tl.constexpr):  # noqa: E741
    if MORE:
        d += tl.load(more + row * more_stride + i, mask=keep & (i < I1), other=0.0).to(tl.float32)
    tl.store(d_x + row * I1 + i, d.to(d_x.dtype.element_ty), mask=keep & (i < I1))
    if PAIR:
        tl.store(d_x2 + row * (I - I1) + (i - I1), d.to(d_x2.dtype.element_ty), mask=keep & (i >= I1))


@triton.jit
def _both(a, b, c, d):
    return a + c, b + d


@triton.jit
def unprepare_kernel(
    d_x,
    d_x2,
    shares,
    d_out,
    more,
    x,
    x2,
    gain,
    x_stride,
    x2_stride,
    d_stride,
    more_stride,
    I1,
    I,  # noqa: E741
    eps,
    T,
    PAIR: tl.constexpr,
    MORE: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
):
    """d_x (T, I1) and d_x2 (T, I - I1) of out = norm([x | x2]); shares (programs, I): parts of the gain's gradient, float32.
    MORE: plus another gradient of x. A row lies in two pieces of A and B channels, powers of two."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    ia = tl.arange(0, A)
    ka = ia < I
    wa = tl.load(gain + ia, mask=ka, other=0.0).to(tl.float32)
    share_a = tl.zeros((A,), tl.float32)
    if B > 0:
        ib = A + tl.arange(0, B)
        kb = ib < I
        wb = tl.load(gain + ib, mask=kb, other=0.0).to(tl.float32)
        share_b = tl.zeros((B,), tl.float32)
    for turn in range(tl.cdiv(T - program, programs)):
        row = program.to(tl.int64) + turn * programs
        va = _half(x, x2, row, x_stride, x2_stride, ia, I1, ka, PAIR)
        da = tl.load(d_out + row * d_stride + ia, mask=ka, other=0.0).to(tl.float32)
        if B > 0:
            vb = _half(x, x2, row, x_stride, x2_stride, ib, I1, kb, PAIR)
            db = tl.load(d_out + row * d_stride + ib, mask=kb, other=0.0).to(tl.float32)
        squares, along = tl.reduce((va * va, da * wa * va), 0, _both)
        if B > 0:
            further, beyond = tl.reduce((vb * vb, db * wb * vb), 0, _both)
            squares += further
            along += beyond
        scale = tl.rsqrt(squares / I + eps)
        along *= scale / I
        va *= scale
        share_a += da * va
        _back(d_x, d_x2, scale * (da * wa - va * along), more, row, more_stride, ia, I1, I, ka, PAIR, MORE)
        if B > 0:
            vb *= scale
            share_b += db * vb
            _back(d_x, d_x2, scale * (db * wb - vb * along), more, row, more_stride, ib, I1, I, kb, PAIR, MORE)
    tl.store(shares + program.to(tl.int64) * I + ia, share_a, mask=ka)
    if B > 0:
        tl.store(shares + program.to(tl.int64) * I + ib, share_b, mask=kb)


def unprepare(d_out, x, x2, gain, eps: float, more=None):
    """Gradients of x, x2 (None where that is None) and the gain, for rows d_out of norm([x | x2]) with unit column stride.
    ``more``: another gradient of x, to be added."""
    (T, I1), width = x.shape, d_out.shape[1]
    d_x = torch.empty(T, I1, dtype=x.dtype, device=x.device)
    d_x2 = None if x2 is None else torch.empty(T, width - I1, dtype=x2.dtype, device=x.device)
    a, b = pieces(width)
    warps, most = spread(a + b, x.device)
    shares = torch.empty(max(1, min(T, most)), width, dtype=torch.float32, device=x.device)
    launch(
        unprepare_kernel,
        (len(shares),),
        *(d_x, d_x if x2 is None else d_x2, shares, d_out, d_x if more is None else more),
        *(x, x if x2 is None else x2, gain.contiguous()),
        *(x.stride(0), 0 if x2 is None else x2.stride(0), d_out.stride(0), 0 if more is None else more.stride(0)),
        *(I1, width, eps, T),
        PAIR=x2 is not None,
        MORE=more is not None,
        A=a,
        B=b,
        num_warps=warps,
        device=x.device,
    )
    return d_x, d_x2, column_sums(shares, gain.dtype)
