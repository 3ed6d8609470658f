"""The kernel of ``direct.py``."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch
from zamba_lm.parallel.direct import BLOCK, SLOT
from zamba_lm.parallel.triton import mean_square

MOST_POLLS = 1 << 28  # minutes: then a rank is gone for good, and the kernel stops with an error rather than hang


@triton.jit
def arrived(words, at, inside, count, MOST: tl.constexpr):
    """Numbers that lie at ``words + at`` once all of them belong to exchange ``count``."""
    found = tl.load(words + at, mask=inside, other=0, volatile=True)
    missing = tl.sum((inside & ((found >> 32).to(tl.int32) != count)).to(tl.int32), 0)
    polls = 0
    while (missing > 0) & (polls < MOST):
        found = tl.load(words + at, mask=inside, other=0, volatile=True)
        missing = tl.sum((inside & ((found >> 32).to(tl.int32) != count)).to(tl.int32), 0)
        polls += 1
    if missing > 0:
        tl.inline_asm_elementwise("trap; mov.u32 $0, $1;", "=r,r", [missing], dtype=tl.int32, is_pure=False, pack=1)
    return (found & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def direct_kernel(
    out,
    part,
    residual,
    y,
    z,
    addresses,
    counts,
    D,
    I,  # noqa: E741
    n_programs,
    part_stride,
    residual_stride,
    y_stride,
    z_stride,
    eps,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    SPAN: tl.constexpr,
    SQUARE: tl.constexpr,
    GATED: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_I: tl.constexpr,
    SLOT: tl.constexpr,
    MOST: tl.constexpr,
    PDL: tl.constexpr,
):
    """out = residual + the sum over ranks of their part of a row; a program for BLOCK columns of a row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    program = row * tl.num_programs(1) + tl.program_id(1)
    lane = tl.arange(0, BLOCK)
    d = tl.program_id(1) * BLOCK + lane
    inside = d < D
    if PDL:
        tl.extra.cuda.gdc_wait()
    count = tl.load(counts + program) + 1
    turn = (count & 1).to(tl.int64)
    mine = tl.load(part + row * part_stride + d, mask=inside, other=0.0).to(tl.float32)
    stamp = count.to(tl.int64) << 32
    word = stamp | (mine.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    square = 0.0
    if SQUARE:
        square = mean_square(y + row * y_stride, z + row * z_stride if GATED else z, I, GATED, BLOCK_I)
    for step in tl.static_range(1, RANKS):
        there = tl.load(addresses + (RANK + step) % RANKS).to(tl.pointer_type(tl.int64))
        slot = there + ((turn * RANKS + RANK) * n_programs + program) * SLOT
        tl.store(slot + lane, word, mask=inside)
        if SQUARE:
            tl.store(slot + BLOCK, stamp | (square.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF))
    here = tl.load(addresses + RANK).to(tl.pointer_type(tl.int64)) + (turn * RANKS * n_programs + program) * SLOT
    acc = tl.zeros((BLOCK,), tl.float32)
    if RESIDUAL:
        acc += tl.load(residual + row * residual_stride + d, mask=inside, other=0.0).to(tl.float32)
    one = tl.arange(0, 1)
    for first in tl.static_range(0, RANKS, SPAN):
        whole = 0.0
        if SQUARE:
            for r in tl.static_range(SPAN):
                if first + r == RANK:
                    whole += square + eps
                else:
                    words = here + (first + r) * n_programs.to(tl.int64) * SLOT
                    whole += tl.sum(arrived(words, BLOCK + one, one == 0, count, MOST), 0) + eps
            whole /= SPAN
        for r in tl.static_range(SPAN):
            words = here + (first + r) * n_programs.to(tl.int64) * SLOT
            if first + r == RANK:
                theirs = mine
            else:
                theirs = arrived(words, lane, inside, count, MOST)
            if SQUARE:
                if first + r == RANK:
                    theirs *= tl.sqrt((square + eps) / whole)
                else:
                    theirs *= tl.sqrt((tl.sum(arrived(words, BLOCK + one, one == 0, count, MOST), 0) + eps) / whole)
            acc += theirs
    tl.store(out + row * D + d, acc.to(out.dtype.element_ty), mask=inside)
    tl.store(counts + program, count)


def direct_total(direct, part_TD, residual_TD, y_TI, z_TI, span, eps):
    T, D = part_TD.shape
    out = torch.empty(T, D, dtype=part_TD.dtype, device=part_TD.device)
    part, residual, y, z = (v if v is None or v.stride(-1) == 1 else v.contiguous() for v in (part_TD, residual_TD, y_TI, z_TI))
    if span == 1:
        y = z = None
    width = 1 if y is None else y.shape[1]
    strides = (0 if v is None else v.stride(0) for v in (part, residual, y, z))
    launch(
        direct_kernel,
        (T, triton.cdiv(D, BLOCK)),
        *(out, part, residual, y, z, direct.addresses, direct.counts, D, width, len(direct.counts), *strides, eps),
        RANK=direct.rank,
        RANKS=direct.size,
        SPAN=span,
        SQUARE=y is not None,
        GATED=z is not None,
        RESIDUAL=residual is not None,
        BLOCK=BLOCK,
        BLOCK_I=triton.next_power_of_2(width),
        SLOT=SLOT,
        MOST=MOST_POLLS,
        num_warps=4,
        device=out.device,
        pdl=True,
    )
    return out
