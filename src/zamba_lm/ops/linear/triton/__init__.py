"""The projections on a GPU: which kernel reads the weight, by the number of rows."""

from math import prod

import torch
import torch.nn.functional as F

from zamba_lm.ops.linear.later import Squares, Unmade, Unsummed, read
from zamba_lm.ops.linear.normed import Normed, prepared
from zamba_lm.ops.linear.reference import linear_reference, unpack
from zamba_lm.ops.linear.triton.few import (
    are_shared_out,
    convolved_rows,
    few_rows,
    ring_row,
    shares,
    skinny_gated,
    some_rows,
    streams_through,
)
from zamba_lm.ops.linear.triton.gelu import gated
from zamba_lm.ops.linear.triton.place import fits, gated_in_place
from zamba_lm.ops.linear.triton.prepare import prepare
from zamba_lm.ops.linear.triton.train import gated_product, product, product_dtype

STREAMED = 64  # rows up to which ``streams_kernel`` beats cuBLAS, where it runs
FEW = 1  # rows up to which multiplying them one after the other hides behind reading the weight
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GATED = 32  # rows up to which our tensor-core kernel, gate included, is faster than cuBLAS and a kernel for the gate


def linear_triton(x, weight, row_scale=None, norm=None, residual=None, overwrite=False, later=False):
    if type(norm) is Squares and later:
        return _later(x, _dense(weight, row_scale), residual, norm)
    if type(norm) is Squares:
        x, norm = norm(x), None
    lead, x = _matrices(x, weight if row_scale is None else row_scale, norm)
    residual = None if residual is None else _matrix(residual)
    if not (rows := len(_parts(x)[0])) or (norm is not None and norm.groups > 1 and _trains(weight, x, norm, residual)):
        return linear_reference(x, weight, row_scale, norm, residual).view(*lead, len(weight))
    if _trains(weight, x, norm, residual):
        return product(x, unpack(weight, row_scale), norm, residual).view(*lead, len(weight))
    weight = _dense(weight, row_scale)
    if rows == 1 and streams_through(weight):
        y = ring_row(x, weight, norm, residual)
    elif rows <= FEW:
        y = few_rows(x, weight, norm, residual)
    elif rows <= STREAMED and streams_through(weight):
        x = prepare(x, norm, weight.dtype)
        if later and len(lead) == 1 and are_shared_out(rows, weight):
            return Unsummed(shares(x, weight), residual, None, weight.dtype)
        y = some_rows(x, weight, residual)
    elif residual is None:
        y = F.linear(prepare(x, norm, weight.dtype), weight)
    elif overwrite:  # otherwise cuBLAS works on a copy
        y = residual.addmm_(prepare(x, norm, weight.dtype), weight.T)
    else:
        y = torch.addmm(residual, prepare(x, norm, weight.dtype), weight.T)
    return y.view(*lead, -1)


def _later(x, weight, residual, squares: Squares) -> Unsummed:
    """The product of a matrix that is still to be divided by its rms."""
    if len(x) <= STREAMED and streams_through(weight):
        parts = shares(x, weight) if are_shared_out(len(x), weight) else some_rows(x, weight)[None]
    else:
        parts = F.linear(x, weight)[None]
    return Unsummed(parts, None if residual is None else _matrix(residual), squares, weight.dtype)


def convolved(h: Unmade, inner, window, slots, conv_weight, conv_bias, old):
    """The projection h, and what a convolution makes of the outputs from ``inner`` on, which h then lacks: by one kernel, or None
    where none does both. See ``convolved_rows``."""
    weight, rows = h.weight_OI, len(h)
    if h.row_scale_O is not None or not FEW < rows <= STREAMED or not streams_through(weight) or window.dtype != weight.dtype:
        return None
    if are_shared_out(rows, weight) or _trains(weight, torch.empty(0, dtype=weight.dtype), h.norm):
        return None
    x, norm = read(h.x_TI, h.norm)
    x = prepare(_matrices(x, weight, norm)[1], norm, weight.dtype)
    return convolved_rows(x, weight, inner, window, slots, conv_weight, conv_bias, old)


def gated_linear_triton(x, weight, row_scale=None, norm: Normed | None = None, adapter=None):
    lead, x = _matrices(x, weight if row_scale is None else row_scale, norm)
    A, B, A_scale, B_scale = adapter or (None,) * 4
    rows = len(_parts(x)[0])
    if not rows or (norm is not None and norm.groups > 1 and _trains(weight, x, norm, A, B)):
        return _differentiable(x, weight, row_scale, norm, A, B, A_scale, B_scale).view(*lead, len(weight) // 2)
    if _trains(weight, x, norm, A, B):
        A, B = (None, None) if adapter is None else (unpack(A, A_scale), unpack(B, B_scale))
        return gated_product(x, unpack(weight, row_scale), norm, A, B).view(*lead, -1)
    weight = _dense(weight, row_scale)
    if adapter is not None:
        A, B = _dense(A, A_scale), _dense(B, B_scale)
    if rows == 1 and adapter is None and streams_through(weight):
        return ring_row(x, weight, norm, gated=True).view(*lead, -1)
    if rows <= FEW:
        low = None if adapter is None else (few_rows(x, A, norm), B)
        return few_rows(x, weight, norm, gated=True, adapter=low).view(*lead, -1)
    x = prepare(x, norm, weight.dtype)
    if rows <= STREAMED and adapter is None and streams_through(weight):
        return some_rows(x, weight, gated=True).view(*lead, -1)
    if rows <= GATED and adapter is None:
        return skinny_gated(x, weight).view(*lead, -1)
    y = F.linear(x, weight)
    if adapter is None:
        return gated_in_place(y).view(*lead, -1)
    low = F.linear(x, A)
    if fits(low.dtype, low.shape[1]):
        return gated_in_place(y, low, B).view(*lead, -1)
    return gated_in_place(y.addmm_(low, B.T)).view(*lead, -1)


def _differentiable(x, weight, row_scale, norm, A, B, A_scale, B_scale):
    """torch's products with a fused gate, which saves its input instead of gelu's output too."""
    x = prepared(x, norm)
    y = F.linear(x, unpack(weight, row_scale))
    if A is not None:
        y = y + F.linear(F.linear(x, unpack(A, A_scale)), unpack(B, B_scale))
    return gated(y)


def _dense(weight, row_scale):
    return (weight if row_scale is None else unpack(weight, row_scale)).contiguous()


def _parts(x):
    return x if type(x) is tuple else (x,)


def _matrices(x, weight, norm):
    """The axes before the last, and x as matrices whose rows are contiguous, when kernels can multiply it with the weight."""
    first = _parts(x)[0]
    dtype = product_dtype(first, weight)
    fits = first.dtype == dtype or (norm is not None and first.dtype == torch.float32) or dtype != weight.dtype
    if weight.dtype not in DTYPES or not fits or first.dtype not in DTYPES or _parts(x)[-1].dtype != first.dtype:
        types = " and ".join(str(part.dtype) for part in (*_parts(x), weight))
        raise ValueError(
            f"kernels multiply x with a weight of its dtype (float32, bfloat16, float16; normed: or float32 x), not {types}"
        )
    return first.shape[:-1], tuple(map(_matrix, x)) if type(x) is tuple else _matrix(x)


def _matrix(x):
    x = x.reshape(prod(x.shape[:-1]), x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def _trains(weight, x, norm, *others) -> bool:
    """Whether there are gradients to make, or products to multiply in another dtype than the weight's (autocast)."""
    if product_dtype(_parts(x)[0], weight) != weight.dtype:
        return True
    tensors = (weight, *_parts(x), norm and norm.weight_I, *others)
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
