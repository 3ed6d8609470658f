"""The mixer on a GPU as one step of autograd: with its projections, or the inside alone where somebody replaced those."""

import torch
from torch.autograd.function import once_differentiable

from zamba_lm.ops.linear.triton.prepare import prepare
from zamba_lm.ops.linear.triton.train import down, product_dtype, rows_of, times
from zamba_lm.ops.linear.triton.unprepare import unprepare
from zamba_lm.ops.linear.weights import operand
from zamba_lm.ops.mamba2.reference import mamba2_mixer_reference
from zamba_lm.ops.mamba2.triton.inside import ALIGNED, KEPT, How, Parameters, back, there, width_of
from zamba_lm.ops.ssd.triton import DTYPES, check_sizes


def mamba2_triton(h, *given):
    p, how = Parameters(*given[:6]), How(*given[6:])
    gradient = _wanted(h, *p)
    _check(h.dtype, h, p, how, gradient)
    h = h if h.stride(-1) == 1 else h.contiguous()
    return _Inside.apply(h, how, *p) if gradient else there(h, p, how, keep=False)[0]


def mamba2_mixer_triton(x, norm, in_weight, out_weight, residual, *given):
    p, how = Parameters(*given[:6]), How(*given[6:])
    dtype = product_dtype(x, in_weight)
    gradient = _wanted(x, norm.weight_I, in_weight, out_weight, residual, *p)
    if not gradient and dtype == in_weight.dtype:
        return mamba2_mixer_reference(x, norm, in_weight, out_weight, residual, *given)
    _check(dtype, x, p, how, gradient)
    w_in, sum_in = operand(in_weight, dtype, ALIGNED)
    w_out, sum_out = operand(out_weight, dtype)
    shared = residual is x
    x = x if x.stride(-1) == 1 else x.contiguous()
    sums = sum_in, sum_out, norm.eps, gradient
    return _Mixer.apply(x, norm.weight_I, w_in, w_out, None if shared else residual, how, sums, *p)


def _wanted(*tensors) -> bool:
    return torch.is_grad_enabled() and any(v.requires_grad for v in tensors)


def _check(dtype, x, p: Parameters, how: How, gradient: bool) -> None:
    if any(v.dtype not in DTYPES for v in (x, *p)):
        raise ValueError(f"mamba2 takes float32, bfloat16 or float16, not {[str(v.dtype) for v in (x, *p)]}")
    H, I, C = p.D.shape[0], p.norm_weight.shape[0], p.conv_weight.shape[0]  # noqa: E741
    check_sizes(I // H, (C - I) // (2 * how.groups), dtype, gradient)


class _Inside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, how, *parameters):
        p = Parameters(*parameters)
        g, kept = there(h, p, how, keep=True)
        ctx.save_for_backward(h, *kept, *p)
        ctx.how = how
        return g

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        h, *rest = ctx.saved_tensors
        kept, p = rest[:KEPT], Parameters(*rest[KEPT:])
        d_h, d_p = back(rows_of(d, h.dtype), h, kept, p, ctx.how)
        return d_h[:, : h.shape[1]], None, *d_p


class _Mixer(torch.autograd.Function):
    """out(inside(in(norm(x)))) + residual, which is x itself where None."""

    @staticmethod
    def forward(ctx, x, gain, w_in, w_out, residual, how, sums, *parameters):
        p, eps = Parameters(*parameters), sums[2]
        xn = prepare(x, _Gain(gain, eps), w_in.dtype)
        h = torch.mm(xn, w_in.T, out=torch.empty(x.shape[0], w_in.shape[0], dtype=xn.dtype, device=x.device))
        g, kept = there(h[:, : width_of(p)], p, how, keep=sums[3])
        if sums[3]:
            ctx.save_for_backward(x, gain, xn if ctx.needs_input_grad[2] else None, w_in, w_out, h, *kept, *p)
        ctx.how, ctx.sums, ctx.shared = how, sums, residual is None
        return times(g, w_out, x if residual is None else residual)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, gain, xn, w_in, w_out, h, *rest = ctx.saved_tensors
        kept, p, want = rest[:KEPT], Parameters(*rest[KEPT:]), ctx.needs_input_grad
        sum_in, sum_out, eps, _ = ctx.sums
        d = rows_of(dy, w_out.dtype)
        again = torch.empty_like(kept[1]) if want[3] else None
        d_h, d_p = back(down(d, w_out), h[:, : width_of(p)], kept, p, ctx.how, again)
        if want[3]:
            sum_out.add(d, again)
        if want[2]:
            sum_in.add(d_h, xn)
        d_x = d_gain = None
        if want[0] or want[1]:
            dy = dy if dy.stride(-1) == 1 else dy.contiguous()
            d_x, _, d_gain = unprepare(down(d_h, w_in), x, None, gain, eps, dy if ctx.shared else None)
        return d_x, d_gain, None, None, None if ctx.shared else dy, None, None, *d_p


class _Gain:
    """What ``prepare`` reads of a norm."""

    groups = 1

    def __init__(self, weight_I, eps):
        self.weight_I, self.eps = weight_I, eps
