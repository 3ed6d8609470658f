"""gelu(gate) * up of many rows in one pass over memory, forward and backward."""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from zamba_lm.ops.gpu import launch

BLOCK = 1024


@triton.jit
def gate_kernel(h, y, F, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """y (T, F) = gelu(gate) * up of rows h = [gate | up]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(h + row * 2 * F + at, mask=at < F, other=0.0).to(tl.float32)
    up = tl.load(h + row * 2 * F + F + at, mask=at < F, other=0.0).to(tl.float32)
    value = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    tl.store(y + row * F + at, value.to(y.dtype.element_ty), mask=at < F)


@triton.jit
def gate_backward_kernel(h, dy, dh, F, BLOCK: tl.constexpr):
    """dh = [dgate | dup] of dy (T, F)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(h + row * 2 * F + at, mask=at < F, other=0.0).to(tl.float32)
    up = tl.load(h + row * 2 * F + F + at, mask=at < F, other=0.0).to(tl.float32)
    grad = tl.load(dy + row * F + at, mask=at < F, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))  # the normal distribution up to gate
    slope = below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(dh + row * 2 * F + at, (grad * up * slope).to(dh.dtype.element_ty), mask=at < F)
    tl.store(dh + row * 2 * F + F + at, (grad * gate * below).to(dh.dtype.element_ty), mask=at < F)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return _forward(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (h,) = ctx.saved_tensors
        dy, dh = dy.contiguous(), torch.empty_like(h)
        T, F = dy.shape
        launch(gate_backward_kernel, (T, triton.cdiv(F, BLOCK)), h, dy, dh, F, BLOCK=BLOCK, device=h.device)
        return dh


def _forward(h):
    T, F = len(h), h.shape[1] // 2
    y = torch.empty(T, F, dtype=h.dtype, device=h.device)
    launch(gate_kernel, (T, triton.cdiv(F, BLOCK)), h, y, F, BLOCK=BLOCK, device=h.device, pdl=True)
    return y


def gated(h_T2F: torch.Tensor) -> torch.Tensor:
    """gelu(gate) * up of rows [gate | up]: (T, 2 F) gives (T, F)."""
    h_T2F = h_T2F.contiguous()
    if not len(h_T2F):
        return h_T2F[:, : h_T2F.shape[1] // 2]
    return _Gate.apply(h_T2F) if torch.is_grad_enabled() and h_T2F.requires_grad else _forward(h_T2F)
