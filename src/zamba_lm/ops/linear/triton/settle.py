"""The sum that a projection has left to the norm that reads it, and that norm."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch, power_of_two
from zamba_lm.ops.linear.later import Unsummed
from zamba_lm.ops.linear.normed import Normed
from zamba_lm.ops.norm.triton.kernels import part, put

TILE, WARPS = 512, 4  # channels at a time: four float32 numbers a thread


@triton.jit
def row(x, at, SIZE: tl.constexpr, TILE: tl.constexpr):
    """A row of SIZE numbers that begins at ``x + at``, in tiles, float32; zeros beyond."""
    tiles = ()
    for start in tl.static_range(0, SIZE, TILE):
        tiles = tiles + (part(x + at, start, SIZE, TILE).to(tl.float32),)
    return tiles


@triton.jit
def written(to, at, tiles, SIZE: tl.constexpr, TILE: tl.constexpr):
    for i in tl.static_range(len(tiles)):
        put(to + at, i * TILE, tiles[i].to(to.dtype.element_ty), SIZE, TILE)


@triton.jit
def squared(tiles):
    """The sum of squares of a row."""
    squares = tiles[0] * tiles[0]
    for i in tl.static_range(1, len(tiles)):
        squares += tiles[i] * tiles[i]
    return tl.sum(squares, 0)


@triton.jit
def scaled(tiles, scale, gains):
    found = ()
    for i in tl.static_range(len(tiles)):
        found = found + (tiles[i] * scale * gains[i],)
    return found


@triton.jit
def settle_kernel(
    y,
    z,
    parts,
    r,
    beside,
    sums,
    g,
    T,
    r_stride,
    beside_stride,
    eps,
    sums_eps,
    O: tl.constexpr,  # noqa: E741
    J: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    SUMS: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TILE: tl.constexpr,
    PDL: tl.constexpr,
):
    """y (T, O) = the sum of PARTS parts, over the rms of WIDTH numbers whose SUMS sums of squares are given, + r;
    z (T, O + J) = norm([y | beside]). A program for each row."""
    t = tl.program_id(0).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    gains = row(g, 0, O, TILE)
    if PDL:
        tl.extra.cuda.gdc_wait()
    shares = ()
    for n in tl.static_range(PARTS):
        shares = shares + (row(parts, (n * T + t) * O, O, TILE),)
    if RESIDUAL:
        residual = row(r, t * r_stride, O, TILE)
    if J > 0:
        others = row(beside, t * beside_stride, J, TILE)
    divisor = 1.0
    if SUMS > 0:
        divisor = tl.rsqrt(tl.sum(part(sums + t * SUMS, 0, SUMS, BLOCK), 0) / WIDTH + sums_eps)
    found = ()
    for i in tl.static_range(len(gains)):
        total = shares[0][i]
        for n in tl.static_range(1, PARTS):
            total += shares[n][i]
        if SUMS > 0:
            total *= divisor
        if RESIDUAL:
            total += residual[i]
        found = found + (total.to(y.dtype.element_ty).to(tl.float32),)
    written(y, t * O, found, O, TILE)
    squares = squared(found)
    if J > 0:
        squares += squared(others)
    scale = tl.rsqrt(squares / (O + J) + eps)
    written(z, t * (O + J), scaled(found, scale, gains), O, TILE)
    if J > 0:
        written(z, t * (O + J) + O, scaled(others, scale, row(g, O, J, TILE)), J, TILE)


def settled(x: Unsummed, norm: Normed, beside: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum (T, O), and norm([sum | beside]) (T, O + J), in the sum's dtype; ``beside`` (T, J) with unit column stride."""
    N, T, O = x.parts_NTO.shape  # noqa: E741
    J = 0 if beside is None else beside.shape[1]
    y = torch.empty(T, O, dtype=x.dtype, device=x.device)
    z = torch.empty(T, O + J, dtype=x.dtype, device=x.device)
    sums = 0 if x.squares is None else x.squares.sums_TM.shape[1]
    launch(
        settle_kernel,
        (T,),
        *(y, z, x.parts_NTO, x.residual_TO, beside, x.squares and x.squares.sums_TM, norm.weight_I, T),
        *(0 if x.residual_TO is None else x.residual_TO.stride(0), 0 if beside is None else beside.stride(0)),
        *(norm.eps, x.squares.eps if x.squares else 0.0),
        O=O,
        J=J,
        WIDTH=x.squares.width if x.squares else 0,
        PARTS=N,
        SUMS=sums,
        BLOCK=power_of_two(max(sums, 1)),
        RESIDUAL=x.residual_TO is not None,
        TILE=TILE,
        num_warps=WARPS,
        device=x.device,
        pdl=True,
    )
    return y, z
