"""Attention of packed sequences with gradients by torch's own flash kernels, all sequences in one launch."""

import torch
from torch.autograd.function import once_differentiable

from zamba_lm.ops.gpu import capability

OLDEST = (8, 0)  # compute capability that these kernels want
WIDEST = 256  # channels of a head


def suits_flash(q_THd) -> bool:
    """Whether torch's flash kernels take such heads."""
    narrow = q_THd.dtype in (torch.bfloat16, torch.float16)
    return (
        narrow and q_THd.is_cuda and q_THd.shape[2] <= WIDEST and q_THd.shape[2] % 8 == 0 and capability(q_THd.device) >= OLDEST
    )


def flash(q_THd, k_THd, v_THd, scale: float, packing):
    """y (T, H, d) of sequences that start afresh."""
    return _Flash.apply(q_THd, k_THd, v_THd, scale, packing)


def forward(q, k, v, scale, packing):
    """y, and what ``backward`` wants besides."""
    starts, most = packing.cu_seqlens(q.device), max(packing.lengths)
    y, *rest, _ = torch.ops.aten._flash_attention_forward(q, k, v, starts, starts, most, most, 0.0, True, False, scale=scale)
    return y, rest


def backward(dy, q, k, v, y, lse, random, unused, scale, packing):
    """dq, dk, dv (T, H, d)."""
    starts, most = packing.cu_seqlens(q.device), max(packing.lengths)
    run = torch.ops.aten._flash_attention_backward
    return run(dy.contiguous(), q, k, v, y, lse, starts, starts, most, most, 0.0, True, random, unused, scale=scale)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, packing):
        y, rest = forward(q, k, v, scale, packing)
        ctx.save_for_backward(q, k, v, y, *rest)
        ctx.scale, ctx.packing = scale, packing
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return *backward(dy, *ctx.saved_tensors, ctx.scale, ctx.packing), None, None
