"""Kernels of ``total.py``."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch
from zamba_lm.parallel.total import PAD, tail

COLUMNS = 1024  # a program's share of a row


@triton.jit
def total_kernel(
    out,
    parts,
    squares,
    residual,
    T,
    D,
    W,
    SQUARE_W,
    square_at,
    residual_stride,
    eps,
    RANKS: tl.constexpr,
    SPAN: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """out (T, D) = residual + sum of parts (R, T, W), each scaled to the root mean square of its span of ranks."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    if PDL:
        tl.extra.cuda.gdc_wait()
    acc = tl.zeros((BLOCK,), tl.float32)
    if RESIDUAL:
        acc += tl.load(residual + row * residual_stride + d, mask=inside, other=0.0).to(tl.float32)
    for first in tl.static_range(0, RANKS, SPAN):
        whole = 0.0
        if SPAN > 1:
            for r in tl.static_range(SPAN):
                whole += tl.load(squares + ((first + r) * T + row) * SQUARE_W + square_at) + eps
            whole /= SPAN
        for r in tl.static_range(SPAN):
            at = (first + r) * T + row
            part = tl.load(parts + at * W + d, mask=inside, other=0.0).to(tl.float32)
            if SPAN > 1:
                part *= tl.sqrt((tl.load(squares + at * SQUARE_W + square_at) + eps) / whole)
            acc += part
    tl.store(out + row * D + d, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def mean_square(y, z, I, GATED: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    """Of a row of I numbers at y, or of y silu(z)."""
    at = tl.arange(0, BLOCK)
    value = tl.load(y + at, mask=at < I, other=0.0).to(tl.float32)
    if GATED:
        gate = tl.load(z + at, mask=at < I, other=0.0).to(tl.float32)
        value *= gate * tl.sigmoid(gate)
    return tl.sum(value * value, 0) / I


@triton.jit
def with_square_kernel(
    out,
    squares,
    part,
    y,
    z,
    D,
    W,
    I,  # noqa: E741
    SQUARE_W,
    square_at,
    part_stride,
    y_stride,
    z_stride,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    PDL: tl.constexpr,
):
    """out (T, W) = [part | mean square of the gated row]; a program a row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
    square = mean_square(y + row * y_stride, z + row * z_stride if GATED else z, I, GATED, BLOCK_I)
    tl.store(squares + row * SQUARE_W + square_at, square)
    for start in range(0, D, BLOCK):
        d = start + tl.arange(0, BLOCK)
        piece = tl.load(part + row * part_stride + d, mask=d < D, other=0.0)
        tl.store(out + row * W + d, piece, mask=d < D)


def total_triton(parts_RTW, residual_TD, D, span, eps):
    R, T, W = parts_RTW.shape
    out = torch.empty(T, D, dtype=parts_RTW.dtype, device=parts_RTW.device)
    if residual_TD is not None and residual_TD.stride(-1) != 1:
        residual_TD = residual_TD.contiguous()
    squares, square_w, square_at = (parts_RTW, 0, 0) if span == 1 else _squares(parts_RTW, D)
    block = min(COLUMNS, triton.next_power_of_2(D))
    launch(
        total_kernel,
        (T, triton.cdiv(D, block)),
        *(out, parts_RTW, squares, residual_TD, T, D, W, square_w, square_at),
        *(0 if residual_TD is None else residual_TD.stride(0), eps),
        RANKS=R,
        SPAN=span,
        RESIDUAL=residual_TD is not None,
        BLOCK=block,
        num_warps=4,
        device=out.device,
        pdl=True,
    )
    return out


def with_square_triton(part_TD, y_TI, z_TI):
    (T, D), width = part_TD.shape, y_TI.shape[1]
    out = torch.empty(T, tail(D) + PAD, dtype=part_TD.dtype, device=part_TD.device)
    part, y, z = (v if v is None or v.stride(-1) == 1 else v.contiguous() for v in (part_TD, y_TI, z_TI))
    block = triton.next_power_of_2(width)
    launch(
        with_square_kernel,
        (T,),
        *(out, *_squares(out, D)[:1], part, y, z, D, out.shape[1], width, *_squares(out, D)[1:]),
        *(part.stride(0), y.stride(0), 0 if z is None else z.stride(0)),
        GATED=z is not None,
        BLOCK=min(COLUMNS, triton.next_power_of_2(D)),
        BLOCK_I=block,
        num_warps=max(1, min(16, block // 512)),
        device=out.device,
        pdl=True,
    )
    return out


def _squares(rows, D):
    """The same memory as float32, with the width of a row and the column of the mean square in it."""
    squares = rows.view(torch.float32)
    return squares, squares.shape[-1], tail(D) * rows.element_size() // 4
