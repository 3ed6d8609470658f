"""The gated norm of Mamba-2 where the heads that are normed together lie on several ranks, with gradients.

A row's mean square is everybody's: ranks add up their sums of squares on the way there, and what each made of the gradient along
the row on the way back, a float32 number a token each time.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from zamba_lm.ops.gpu import lazy, no_triton
from zamba_lm.parallel.group import Ranks

TRITON = "zamba_lm.train.scale.triton"
sums_triton, scaled_triton, back_triton = (lazy(TRITON, f"{name}_triton") for name in ("sums", "scaled", "back"))


def span_norm(y_TI: Tensor, z_TI: Tensor, weight_I: Tensor, eps: float, span: Ranks) -> Tensor:
    """My channels of RMSNorm(y * SiLU(z)) over the channels of all ranks of ``span``; float32 inside, z's dtype outside."""
    return _SpanNorm.apply(y_TI, z_TI, weight_I, eps, span)


class _SpanNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, z, weight, eps, span):
        sums, scaled, _ = _parts(y.device)
        squares_T = sums(y, z)
        dist.all_reduce(squares_T, group=span.group)
        ctx.span, ctx.width = span, span.size * y.shape[-1]
        scale_T = torch.rsqrt(squares_T / ctx.width + eps)
        ctx.save_for_backward(y, z, weight, scale_T)
        return scaled(y, z, weight, scale_T)

    @staticmethod
    def backward(ctx, d_out):
        y, z, weight, scale_T = ctx.saved_tensors
        sums, _, back = _parts(y.device)
        along_T = sums(y, z, d_out, weight)
        dist.all_reduce(along_T, group=ctx.span.group)
        return *back(d_out, y, z, weight, scale_T, along_T * scale_T / ctx.width), None, None


def _parts(device: torch.device):
    """Three passes over rows, as kernels where there are some."""
    return (sums, scaled, back) if no_triton(device) else (sums_triton, scaled_triton, back_triton)


def sums(y_TI, z_TI, d_TI=None, weight_I=None):
    """Of each row of g = y SiLU(z) the sum of squares, or with ``d`` that of d weight g; (T,) float32."""
    gated = y_TI.float() * F.silu(z_TI.float())
    return (gated * (gated if d_TI is None else d_TI.float() * weight_I.float())).sum(-1)


def scaled(y_TI, z_TI, weight_I, scale_T):
    """y SiLU(z) scale weight, in z's dtype."""
    return (y_TI.float() * F.silu(z_TI.float()) * scale_T[:, None] * weight_I.float()).to(z_TI.dtype)


def back(d_TI, y_TI, z_TI, weight_I, scale_T, along_T):
    """Gradients of y, z and the weight. ``along``: the mean over a whole row of gradient times what was normed."""
    y, z, d, scale = y_TI.float(), z_TI.float(), d_TI.float(), scale_T[:, None]
    sigmoid = z.sigmoid()
    silu = z * sigmoid
    normed = y * silu * scale
    d_gated = scale * (d * weight_I.float() - normed * along_T[:, None])
    d_z = d_gated * y * (sigmoid + silu * (1 - sigmoid))
    return (d_gated * silu).to(y_TI.dtype), d_z.to(z_TI.dtype), (d * normed).sum(0).to(weight_I.dtype)
