"""gelu(gate) * up of many rows in one pass over memory, forward and backward."""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from zamba_lm.ops.gpu import cdiv, launch

BLOCK = 1024


@triton.jit
def gate_kernel(h, y, F, h_stride, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """y (T, F) = gelu(gate) * up of rows h = [gate | up], ``h_stride`` apart."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(h + row * h_stride + at, mask=at < F, other=0.0).to(tl.float32)
    up = tl.load(h + row * h_stride + F + at, mask=at < F, other=0.0).to(tl.float32)
    value = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    tl.store(y + row * F + at, value.to(y.dtype.element_ty), mask=at < F)


@triton.jit
def gate_backward_kernel(h, dy, dh, F, h_stride, dy_stride, dh_stride, BLOCK: tl.constexpr):
    """dh = [dgate | dup] of dy (T, F)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(h + row * h_stride + at, mask=at < F, other=0.0).to(tl.float32)
    up = tl.load(h + row * h_stride + F + at, mask=at < F, other=0.0).to(tl.float32)
    grad = tl.load(dy + row * dy_stride + at, mask=at < F, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))  # the normal distribution up to gate
    slope = below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(dh + row * dh_stride + at, (grad * up * slope).to(dh.dtype.element_ty), mask=at < F)
    tl.store(dh + row * dh_stride + F + at, (grad * gate * below).to(dh.dtype.element_ty), mask=at < F)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return gate_forward(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return gate_backward(*ctx.saved_tensors, dy.contiguous())


def gate_forward(h):
    """gelu(gate) * up of rows [gate | up] with unit column stride."""
    T, F = len(h), h.shape[1] // 2
    y = torch.empty(T, F, dtype=h.dtype, device=h.device)
    if T:
        launch(gate_kernel, (T, cdiv(F, BLOCK)), h, y, F, h.stride(0), BLOCK=BLOCK, device=h.device, pdl=True)
    return y


def gate_backward(h, dy):
    """The gradient of ``gate_forward``, rows as far apart as those of h."""
    (T, F), dh = dy.shape, torch.empty_strided(h.shape, h.stride(), dtype=h.dtype, device=h.device)
    strides = h.stride(0), dy.stride(0), dh.stride(0)
    if T:
        launch(gate_backward_kernel, (T, cdiv(F, BLOCK)), h, dy, dh, F, *strides, BLOCK=BLOCK, device=h.device)
    return dh


def gated(h_T2F: torch.Tensor) -> torch.Tensor:
    """gelu(gate) * up of rows [gate | up]: (T, 2 F) gives (T, F)."""
    h_T2F = h_T2F.contiguous()
    if not len(h_T2F):
        return h_T2F[:, : h_T2F.shape[1] // 2]
    return _Gate.apply(h_T2F) if torch.is_grad_enabled() and h_T2F.requires_grad else gate_forward(h_T2F)
