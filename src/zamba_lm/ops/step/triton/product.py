"""Each head's own product with some rows, for Mamba-1: few columns over a long sum, or many over a short one, all of it in one
wave of programs and part of a chain of dependent launches."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import cdiv, launch, power_of_two
from zamba_lm.ops.step.triton.configs import ProductConfig


@triton.jit
def product_kernel(
    x,
    w,
    y,
    partial,
    arrivals,
    S,
    x_row,
    x_head,
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
    BS: tl.constexpr,
    BO: tl.constexpr,
    BK: tl.constexpr,
    TILES: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """y[head] (S, O) = x[head] (S, I) w[head]^T. Programs: (blocks of BO columns, splits of the sum, head); S is at most BS.

    A program's share of w is TILES tiles of BK, loaded before it waits for the kernel in front. Of a block's splits the last to
    arrive adds all up, in their order, so that the result does not depend on who that is.
    """
    split, head = tl.program_id(1), tl.program_id(2)
    o, s = tl.program_id(0) * BO + tl.arange(0, BO), tl.arange(0, BS)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    w += head.to(tl.int64) * O * I
    tiles = ()
    for j in tl.static_range(TILES):
        k = (split * TILES + j) * BK + tl.arange(0, BK)
        tiles += (tl.load(w + o[:, None] * I + k[None, :], mask=(o < O)[:, None] & (k < I)[None, :], other=0.0),)
    if PDL:
        tl.extra.cuda.gdc_wait()
    x += head * x_head + s[:, None] * x_row
    acc = tl.zeros([BS, BO], tl.float32)
    for j in tl.static_range(TILES):
        k = (split * TILES + j) * BK + tl.arange(0, BK)
        part = tl.load(x + k[None, :], mask=(s < S)[:, None] & (k < I)[None, :], other=0.0)
        acc = tl.dot(part, tl.trans(tiles[j]), acc, input_precision="ieee")
    inside = (s < S)[:, None] & (o < O)[None, :]
    place = (head * S + s[:, None]) * O + o[None, :]
    if SPLITS == 1:
        tl.store(y + place, acc.to(y.dtype.element_ty), mask=inside)
    else:
        size = tl.num_programs(2) * S * O
        tl.store(partial + split * size + place, acc, mask=inside)
        tl.debug_barrier()  # the whole program has written before one thread says so
        arrived = arrivals + head * tl.num_programs(0) + tl.program_id(0)
        if tl.atomic_add(arrived, 1, sem="acq_rel") == SPLITS - 1:
            total = tl.zeros([BS, BO], tl.float32)
            for i in tl.static_range(SPLITS):
                total += tl.load(partial + i * size + place, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(y + place, total.to(y.dtype.element_ty), mask=inside)
            tl.store(arrived, 0)  # ready for the next call


def product(x_HSI, w_HOI, config: ProductConfig, arrivals) -> torch.Tensor:
    """x w^T (H, S, O) of each head, in x's dtype. x: any strides but between neighbours; w: contiguous; arrivals: zeros, one for
    each head's block of columns, which are zeros again afterwards."""
    (H, S, I), O = x_HSI.shape, w_HOI.shape[1]  # noqa: E741
    blocks, splits = cdiv(O, config.columns), cdiv(cdiv(I, config.tile), config.tiles)
    y_HSO = torch.empty(H, S, O, dtype=x_HSI.dtype, device=x_HSI.device)
    partial = y_HSO if splits == 1 else torch.empty(splits, H, S, O, dtype=torch.float32, device=x_HSI.device)
    launch(
        product_kernel,
        (blocks, splits, H),
        *(x_HSI, w_HOI, y_HSO, partial, arrivals, S, x_HSI.stride(1), x_HSI.stride(0)),
        O=O,
        I=I,
        BS=max(16, power_of_two(S)),
        BO=config.columns,
        BK=config.tile,
        TILES=config.tiles,
        SPLITS=splits,
        num_warps=config.warps,
        device=x_HSI.device,
        pdl=True,
    )
    return y_HSO
