"""The projections with gradients: norm, product and residual as one step of autograd, products by cuBLAS.

Weights are read as ``operand`` gives them, cast once a pass, and their gradients are added up in their own dtype by the products
themselves. What a frozen weight alone would need is neither kept nor computed.
"""

import torch
from torch.autograd.function import once_differentiable

from zamba_lm.ops.linear.triton.gelu import gate_backward, gate_forward
from zamba_lm.ops.linear.triton.prepare import prepare
from zamba_lm.ops.linear.triton.unprepare import unprepare
from zamba_lm.ops.linear.weights import Sum, operand, outer

ALIGNED = 16  # columns that rows of a product are padded to in memory: copy engines and wide loads want them
MERGED = 8  # times as many tokens as the input has channels, from where on an adapter is added to its weight first


def product(x, weight, norm, residual):
    """norm(x) W^T + residual; x a matrix or two, in any dtype; the result has the residual's, or the products' dtype."""
    x, x2 = x if type(x) is tuple else (x, None)
    dtype = product_dtype(x, weight)
    w, total = operand(weight, dtype)
    if norm is None and x2 is None and residual is not None:
        x = x.to(dtype)
        return _Made.apply(_Kept.apply(x, w, total), x.detach(), w.detach(), residual)
    gain, eps = (None, 0.0) if norm is None else (norm.weight_I, norm.eps)
    return _Product.apply(x, x2, gain, w, residual, eps, total)


def gated_product(x, weight, norm, A, B):
    """gelu(gate) * up of [gate | up] = norm(x) W^T (+ B A norm(x))."""
    x, x2 = x if type(x) is tuple else (x, None)
    dtype = product_dtype(x, weight)
    w, total = operand(weight, dtype)
    gain, eps = (None, 0.0) if norm is None else (norm.weight_I, norm.eps)
    if A is None:
        return _Gated.apply(x, x2, gain, w, None, None, eps, total, None, None)
    if len(x) >= MERGED * weight.shape[1]:
        part = Sum(torch.promote_types(weight.dtype, torch.float32))
        merged = _Merged.apply(w, weight.detach(), A, B, total, part)
        return _Gated.apply(x, x2, gain, merged, None, None, eps, part, None, None)
    (a, total_A), (b, total_B) = operand(A, dtype), operand(B, dtype)
    return _Gated.apply(x, x2, gain, w, a, b, eps, total, total_A, total_B)


def product_dtype(x, weight) -> torch.dtype:
    """What products are multiplied in: autocast's dtype, else the weight's."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, x2, gain, w, residual, eps, total):
        xn = _prepared(x, x2, gain, eps, w.dtype)
        want = ctx.needs_input_grad
        ctx.eps, ctx.total, ctx.dtype = eps, total, w.dtype
        normed = gain is not None and any(want[:3])
        ctx.dtypes = x.dtype, None if x2 is None else x2.dtype, x.shape[1]
        kept = (x, x2, gain) if normed else (None,) * 3
        ctx.save_for_backward(*kept, xn if want[3] else None, w if any(want[:3]) else None)
        return times(xn, w, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, x2, gain, xn, w = ctx.saved_tensors
        d = rows_of(dy, ctx.dtype)
        if xn is not None:
            ctx.total.add(d, xn)
        d_x = d_x2 = d_gain = None
        if w is not None:
            d_x, d_x2, d_gain = _back(down(d, w), x, x2, gain, ctx)
        return d_x, d_x2, d_gain, None, dy if ctx.needs_input_grad[4] else None, None, None


class _Kept(torch.autograd.Function):
    """What a product wants on the way back, kept before the product is made: at the end of what is recomputed there, torch stops
    when it has everything that was kept, and such a product is not made twice. Returns a stand-in for it, without memory."""

    @staticmethod
    def forward(ctx, x, w, total):
        want = ctx.needs_input_grad
        ctx.total, ctx.dtype = total, w.dtype
        ctx.save_for_backward(x if want[1] else None, w if want[0] else None)
        return x.new_empty(()).expand(len(x), len(w))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        d = rows_of(dy, ctx.dtype)
        if x is not None:
            ctx.total.add(d, x)
        return None if w is None else down(d, w), None, None


class _Made(torch.autograd.Function):
    """x W^T + residual in the place of its stand-in."""

    @staticmethod
    def forward(ctx, stand_in, x, w, residual):
        return times(x, w, residual)

    @staticmethod
    def backward(ctx, dy):
        want = ctx.needs_input_grad
        return dy if want[0] else None, None, None, dy if want[3] else None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, x2, gain, w, a, b, eps, total, total_A, total_B):
        xn = _prepared(x, x2, gain, eps, w.dtype)
        h = times(xn, w, None)
        low = None
        if a is not None:
            low = times(xn, a, None)
            torch.addmm(h, low, b.T, out=h)
        want = ctx.needs_input_grad
        ctx.eps, ctx.totals = eps, (total, total_A, total_B)
        ctx.dtypes = x.dtype, None if x2 is None else x2.dtype, x.shape[1]
        into = any(want[:3])
        kept = (x, x2, gain) if gain is not None and into else (None,) * 3
        inputs = xn if want[3] or want[4] else None
        ctx.save_for_backward(*kept, inputs, h, low if want[5] else None, w if into else None, a if into else None, b)
        return gate_forward(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, x2, gain, xn, h, low, w, a, b = ctx.saved_tensors
        want, (total, total_A, total_B) = ctx.needs_input_grad, ctx.totals
        d = gate_backward(h, rows_of(dy, h.dtype))
        if want[3]:
            total.add(d, xn)
        if want[5]:
            total_B.add(d, low)
        d_low = None if b is None else down(d, b)
        if want[4]:
            total_A.add(d_low, xn)
        d_x = d_x2 = d_gain = None
        if w is not None:
            d_xn = down(d, w)
            if a is not None:
                torch.addmm(d_xn, d_low, a, out=d_xn)
            d_x, d_x2, d_gain = _back(d_xn, x, x2, gain, ctx)
        return d_x, d_x2, d_gain, *(None,) * 7


class _Merged(torch.autograd.Function):
    """W + B A, made in float32 and rounded once. For many tokens: it costs as much as a few of them, and saves reading and
    writing the projection's output for the correction. ``w``: the operand through which W's gradient goes. ``part``: where the
    gradient of the whole comes from, float32."""

    @staticmethod
    def forward(ctx, w, weight, A, B, total, part):
        ctx.save_for_backward(A, B)
        ctx.set_materialize_grads(False)
        ctx.total, ctx.part = total, part
        merged = torch.empty(weight.shape, dtype=part.dtype, device=weight.device)
        return torch.addmm(weight.to(part.dtype), B.to(part.dtype), A.to(part.dtype), out=merged).to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, _):
        (A, B), want, d = ctx.saved_tensors, ctx.needs_input_grad, ctx.part.take()
        d_A = outer(B.to(d.dtype), d, A.dtype) if want[2] else None
        d_B = outer(d.T, A.to(d.dtype).T, B.dtype) if want[3] else None
        if want[0]:
            ctx.total.add_matrix(d)
        return None, None, d_A, d_B, None, None


def _prepared(x, x2, gain, eps, dtype):
    """What is multiplied: (T, I) of ``dtype``."""
    from zamba_lm.ops.linear.normed import Normed

    return prepare(x if x2 is None else (x, x2), None if gain is None else Normed(gain, eps), dtype)


def times(x_TI, w_OI, residual_TO):
    """x W^T + residual, rows padded in memory; autocast keeps away from products with ``out``."""
    dtype = x_TI.dtype if residual_TO is None else residual_TO.dtype
    rows = w_OI.shape[0]
    y_TO = torch.empty(x_TI.shape[0], -(-rows // ALIGNED) * ALIGNED, dtype=dtype, device=x_TI.device)
    y_TO = y_TO if rows % ALIGNED == 0 else y_TO[:, :rows]
    if residual_TO is None:
        return torch.mm(x_TI, w_OI.T, out=y_TO)
    if dtype == x_TI.dtype:
        return torch.addmm(residual_TO, x_TI, w_OI.T, out=y_TO)
    if x_TI.device.type == "cuda" and dtype == torch.float32:
        return torch.addmm(residual_TO, x_TI, w_OI.T, out_dtype=dtype, out=y_TO)
    return y_TO.copy_(times(x_TI, w_OI, None)).add_(residual_TO)


def down(d_TO, w_OI):
    """d W."""
    return torch.mm(d_TO, w_OI, out=torch.empty(d_TO.shape[0], w_OI.shape[1], dtype=d_TO.dtype, device=d_TO.device))


def _back(d_xn, x, x2, gain, ctx):
    """Gradients of x, x2 and the norm's weight from that of what was multiplied."""
    dtype, dtype2, width = ctx.dtypes
    if gain is not None:
        return unprepare(d_xn, x, x2, gain, ctx.eps)
    d_x2 = None if dtype2 is None else d_xn[:, width:].to(dtype2)
    return d_xn[:, :width].to(dtype), d_x2, None


def rows_of(d, dtype):
    """d in ``dtype``, rows with unit column stride."""
    d = d.to(dtype)
    return d if d.stride(-1) == 1 and d.stride(0) >= d.shape[1] else d.contiguous()
