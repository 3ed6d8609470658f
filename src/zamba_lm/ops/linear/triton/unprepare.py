"""The gradient of what ``prepare`` does: back through the norm of rows, or of two tensors' rows side by side, in one pass."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.norm.triton import spread, tile_of
from zamba_lm.ops.norm.triton.kernels import part
from zamba_lm.ops.norm.triton.sums import column_sums

HELD = 20 * 32  # channels a warp at most: there are fewer registers to fill than going back through a gate


@triton.jit
def _tile(x, x2, at: tl.constexpr, I1: tl.constexpr, I: tl.constexpr, TILE: tl.constexpr):  # noqa: E741
    """Channels [at, at + TILE) of a row [x | x2], of which x has I1."""
    i = at + tl.arange(0, TILE)
    if I1 == I or at + TILE <= I1:
        return part(x, at, I1, TILE)
    elif at >= I1:
        return part(x2, at - I1, I - I1, TILE)
    else:
        left = tl.load(x + i, mask=i < I1, other=0.0).to(tl.float32)
        return left + tl.load(x2 + (i - I1), mask=(i >= I1) & (i < I), other=0.0).to(tl.float32)


@triton.jit
def _row(
    x, x2, d_out, more, row, x_stride, x2_stride, d_stride, more_stride,
    I1: tl.constexpr, I: tl.constexpr, MORE: tl.constexpr, TILE: tl.constexpr,  # noqa: E741
):  # fmt: skip
    """A row of [x | x2], of its gradient and, where MORE, of the other gradient of x, in tiles as they lie there."""
    xs, ds, more_s = (), (), ()
    for at in tl.static_range(0, I, TILE):
        xs = xs + (_tile(x + row * x_stride, x2 + row * x2_stride, at, I1, I, TILE),)
        ds = ds + (part(d_out + row * d_stride, at, I, TILE),)
    if MORE:
        for at in tl.static_range(0, I1, TILE):
            more_s = more_s + (part(more + row * more_stride, at, I1, TILE),)
    return xs, ds, more_s


@triton.jit
def _store(d_x, d_x2, d, row, at: tl.constexpr, I1: tl.constexpr, I: tl.constexpr, TILE: tl.constexpr):  # noqa: E741
    i = at + tl.arange(0, TILE)
    if at < I1:
        tl.store(d_x + row * I1 + i, d.to(d_x.dtype.element_ty), mask=i < I1)
    if at + TILE > I1:
        tl.store(d_x2 + row * (I - I1) + (i - I1), d.to(d_x2.dtype.element_ty), mask=(i >= I1) & (i < I))


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
    eps,
    T,
    I1: tl.constexpr,
    I: tl.constexpr,  # noqa: E741
    MORE: tl.constexpr,
    TILE: tl.constexpr,
):
    """d_x (T, I1) and d_x2 (T, I - I1) of out = norm([x | x2]); shares (programs, I): parts of the gain's gradient, float32.
    MORE: plus another gradient of x. A row lies in tiles of TILE channels, asked for while the one before is worked on."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    sums = ()
    for _ in tl.static_range(0, I, TILE):
        sums = sums + (tl.zeros((TILE,), tl.float32),)
    first = program.to(tl.int64)
    xs, ds, more_s = _row(x, x2, d_out, more, first, x_stride, x2_stride, d_stride, more_stride, I1, I, MORE, TILE)
    for turn in range(tl.cdiv(T - program, programs)):
        row = program.to(tl.int64) + turn * programs
        next = tl.minimum(row + programs, T - 1)
        next_xs, next_ds, next_more = _row(
            x, x2, d_out, more, next, x_stride, x2_stride, d_stride, more_stride, I1, I, MORE, TILE
        )
        squares, along = tl.zeros((TILE,), tl.float32), tl.zeros((TILE,), tl.float32)
        for n in tl.static_range(len(xs)):
            v = xs[n].to(tl.float32)
            squares += v * v
            along += ds[n].to(tl.float32) * part(gain, n * TILE, I, TILE).to(tl.float32) * v
        squares, along = tl.reduce((squares, along), 0, _both)
        scale = tl.rsqrt(squares / I + eps)
        along *= scale / I
        new = ()
        for n in tl.static_range(len(xs)):
            v, d = xs[n].to(tl.float32) * scale, ds[n].to(tl.float32)
            new = new + (sums[n] + d * v,)
            d = scale * (d * part(gain, n * TILE, I, TILE).to(tl.float32) - v * along)
            if n < len(more_s):
                d += more_s[n].to(tl.float32)
            _store(d_x, d_x2, d, row, n * TILE, I1, I, TILE)
        sums, xs, ds, more_s = new, next_xs, next_ds, next_more
    for n in tl.static_range(len(sums)):
        i = n * TILE + tl.arange(0, TILE)
        tl.store(shares + program.to(tl.int64) * I + i, sums[n], mask=i < I)


def unprepare(d_out, x, x2, gain, eps: float, more=None):
    """Gradients of x, x2 (None where that is None) and the gain, for rows d_out of norm([x | x2]) with unit column stride.
    ``more``: another gradient of x, to be added."""
    (T, I1), width = x.shape, d_out.shape[1]
    d_x = torch.empty(T, I1, dtype=x.dtype, device=x.device)
    d_x2 = None if x2 is None else torch.empty(T, width - I1, dtype=x2.dtype, device=x.device)
    warps, most = spread(width, x.device, HELD)
    shares = torch.empty(max(1, min(T, most)), width, dtype=torch.float32, device=x.device)
    launch(
        unprepare_kernel,
        (len(shares),),
        *(d_x, d_x if x2 is None else d_x2, shares, d_out, d_x if more is None else more),
        *(x, x if x2 is None else x2, gain.contiguous()),
        *(x.stride(0), 0 if x2 is None else x2.stride(0), d_out.stride(0), 0 if more is None else more.stride(0)),
        *(eps, T),
        I1=I1,
        I=width,
        MORE=more is not None,
        TILE=tile_of(width),
        num_warps=warps,
        device=x.device,
    )
    return d_x, d_x2, column_sums(shares, gain.dtype)
