"""Launchers of the norm kernels, and their place in autograd."""

import torch
import triton

from zamba_lm.ops.gpu import launch, multiprocessors
from zamba_lm.ops.norm.triton.kernels import norm_backward, norm_forward

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# (width up to, warps forward, warps backward): a thread holds 16 to 32 channels; backward keeps more of each, so it takes more
# threads. Backward runs this many programs on a multiprocessor, each over many rows, and a share of the weight's gradient each.
WARPS = ((512, 1, 1), (1024, 1, 2), (2048, 2, 4), (4096, 4, 8), (8192, 8, 16), (None, 16, 16))
PROGRAMS_EACH = 2


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
        out = torch.empty(x.shape, dtype=(x if z is None else z).dtype, device=x.device)
        width = x.shape[-1] // groups
        if not out.numel():
            return out
        launch(
            norm_forward,
            (len(rows[0]), groups),
            *(out, *rows, weight.contiguous(), rows[0].stride(0), 0 if z is None else rows[1].stride(0), eps),
            WIDTH=width,
            GROUPS=groups,
            GATED=z is not None,
            BLOCK=triton.next_power_of_2(width),
            num_warps=_warps(width)[0],
            device=x.device,
            pdl=True,
        )
        return out

    @staticmethod
    def backward(ctx, d_out):
        x, z, weight = ctx.saved_tensors
        d_out, (T, D), groups = _rows(d_out), x.shape, ctx.groups
        d_x = torch.empty((T, D), dtype=x.dtype, device=x.device)
        d_z = None if z is None else torch.empty((T, D), dtype=z.dtype, device=x.device)
        programs = max(1, min(T, PROGRAMS_EACH * multiprocessors(x.device) // groups))
        d_weight = torch.empty((programs, D), dtype=torch.float32, device=x.device)
        launch(
            norm_backward,
            (programs, groups),
            *(d_x, d_z, d_weight, d_out, x, z, weight.contiguous()),
            *(x.stride(0), 0 if z is None else z.stride(0), d_out.stride(0), ctx.eps, T),
            WIDTH=D // groups,
            GROUPS=groups,
            GATED=z is not None,
            BLOCK=triton.next_power_of_2(D // groups),
            num_warps=_warps(D // groups)[1],
            device=x.device,
        )
        d_weight = d_weight.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return d_x.view(ctx.shape), None if z is None else d_z.view(ctx.shape), d_weight, None, None


def _rows(x):
    """Rows with channels side by side; a stride between rows is fine."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _warps(width):
    return next(warps for most, *warps in WARPS if most is None or width <= most)
