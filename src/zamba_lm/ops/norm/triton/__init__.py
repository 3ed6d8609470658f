"""Launchers of the norm kernels, and their place in autograd."""

from functools import cache

import torch

from zamba_lm.ops.gpu import cdiv, launch, multiprocessors, power_of_two
from zamba_lm.ops.norm.triton.kernels import norm_backward, norm_forward
from zamba_lm.ops.norm.triton.sums import column_sums

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# (width up to, warps), forward: a thread holds 16 to 32 channels. Backward as many; its programs fill the chip once, go over many
# rows, and have a share of the weight's gradient each.
WARPS = ((1024, 1), (2048, 2), (4096, 4), (8192, 8), (None, 16))
VECTORS = 8 * 32  # channels that a warp loads at once, forward, of one tensor or of two
TILE, MOST = 1024, 8  # channels of a tile at most, tiles of a row at most, forward
TOGETHER = 1  # rows of a program, forward
MANY, NARROW, SEVERAL = 8192, 1024, 4  # from so many rows on, up to such a width, so many: starting a program takes long
HELD = 16 * 32  # channels a warp at most, backward: with 32 a thread, registers run out
RESIDENT = 16  # warps on a multiprocessor, backward


def norm_triton(x_TD, weight_D, eps):
    return Norm.apply(x_TD, None, weight_D, eps, 1)


def gated_norm_triton(y_TD, z_TD, weight_D, eps, groups):
    return Norm.apply(y_TD, z_TD, weight_D, eps, groups)


class Norm(torch.autograd.Function):
    """Both norms; z is None in the plain one. Only what was given is kept: a row's size costs nothing to find again."""

    @staticmethod
    def forward(ctx, x, z, weight, eps, groups):
        if any(v is not None and v.dtype not in FLOATS for v in (x, z, weight)):
            raise ValueError(f"norm takes float32, bfloat16 or float16, not {[v.dtype for v in (x, z, weight) if v is not None]}")
        rows = [None if v is None else _rows(v) for v in (x, z)]
        ctx.save_for_backward(*rows, weight)
        ctx.eps, ctx.groups, ctx.shape = eps, groups, x.shape
        return normed(*rows, weight, eps, groups).view(x.shape)

    @staticmethod
    def backward(ctx, d_out):
        x, z, weight = ctx.saved_tensors
        want_x, want_z, want_weight = ctx.needs_input_grad[:3]
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        d_z = torch.empty(z.shape, dtype=z.dtype, device=x.device) if z is not None else None
        d_weight = gradients(d_x, d_z, _rows(d_out), x, z, weight, ctx.eps, ctx.groups)
        d_weight = column_sums(d_weight, weight.dtype) if want_weight else None
        return d_x.view(ctx.shape) if want_x else None, d_z.view(ctx.shape) if want_z else None, d_weight, None, None


def normed(x, z, weight, eps, groups):
    """The norm of rows x, gated by rows z where those are given; (T, D), contiguous."""
    out = torch.empty(x.shape, dtype=(x if z is None else z).dtype, device=x.device)
    width = x.shape[1] // groups
    if out.numel():
        tile = tile_of(width)
        together = SEVERAL if len(x) >= MANY and width <= NARROW else TOGETHER
        vectors = VECTORS if z is None else VECTORS // 2
        launch(
            norm_forward,
            (cdiv(len(x), together), groups),
            *(out, x, z, weight.contiguous(), len(x), x.stride(0), 0 if z is None else z.stride(0), eps),
            WIDTH=width,
            GROUPS=groups,
            GATED=z is not None,
            TILE=tile,
            ROWS=together,
            num_warps=_warps(width) if tile > width else min(32, max(1, tile // vectors)),
            device=x.device,
            pdl=True,
        )
    return out


def gradients(d_x, d_z, d_out, x, z, weight, eps, groups, again=None):
    """Fill d_x and, where gated, d_z from rows (channels side by side, any stride between rows); returns the shares (programs,
    D), float32, that add up to the weight's gradient. ``again``, where given, is filled with what the norm returned."""
    T, D = x.shape
    width = D // groups
    warps, most = spread(width, x.device)
    programs = max(1, min(T, most // groups))
    d_weight = torch.empty((programs, D), dtype=torch.float32, device=x.device)
    launch(
        norm_backward,
        (programs, groups),
        *(d_x, d_x if z is None else d_z, d_weight, d_x if again is None else again),
        *(d_out, x, x if z is None else z, weight.contiguous()),
        *(d_x.stride(0), 0 if z is None else d_z.stride(0)),
        *(x.stride(0), 0 if z is None else z.stride(0), d_out.stride(0), eps, T),
        WIDTH=width,
        GROUPS=groups,
        GATED=z is not None,
        AGAIN=again is not None,
        TILE=tile_of(width),
        num_warps=warps,
        device=x.device,
    )
    return d_weight


@cache
def spread(width: int, device, held: int = HELD) -> tuple[int, int]:
    """Warps of a program that takes a row of ``width`` channels going back, ``held`` a warp at most, and how many programs fill
    the chip. Few warps: they wait for each other once a row."""
    warps = min(16, power_of_two(cdiv(width, held)))
    return warps, max(1, RESIDENT // warps) * multiprocessors(device)


def _rows(x):
    """Rows with channels side by side; a stride between rows is fine."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def tile_of(width: int) -> int:
    """Channels that are loaded at once: a power of two that divides the row into few tiles, or one that holds all of it."""
    tile = min(TILE, width & -width)
    return tile if width // tile <= MOST else power_of_two(width)


def _warps(width):
    return next(warps for most, warps in WARPS if most is None or width <= most)
