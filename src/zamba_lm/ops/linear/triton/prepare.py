"""What a projection of many rows multiplies, in one pass over memory: two inputs side by side, normed, rounded once."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import cdiv, launch, power_of_two
from zamba_lm.ops.norm.triton import normed

SEVERAL = 4  # rows of a program, where there are MANY, and NARROW: starting a program takes longer than such a row
MANY, NARROW = 8192, 1024


@triton.jit
def prepare_kernel(
    x,
    x2,
    g,
    y,
    x_stride,
    x2_stride,
    I1,
    I,  # noqa: E741
    eps,
    T,
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """y (T, I) = norm([x | x2]); a program for a group of ROWS rows."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    width = I // GROUPS
    at = tl.arange(0, BLOCK)
    k = tl.program_id(1) * width + at
    inside = at < width
    gain = tl.load(g + k, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for r in tl.static_range(ROWS):
        row = tl.minimum(tl.program_id(0) * ROWS + r, T - 1).to(tl.int64)
        left = tl.load(x + row * x_stride + k, mask=inside & (k < I1), other=0.0).to(tl.float32)
        right = tl.load(x2 + row * x2_stride + (k - I1), mask=inside & (k >= I1), other=0.0).to(tl.float32)
        value = left + right
        scale = tl.rsqrt(tl.sum(value * value, 0) / width + eps)
        tl.store(y + row * I + k, (value * scale * gain).to(y.dtype.element_ty), mask=inside)


def prepare(x, norm, dtype: torch.dtype) -> torch.Tensor:
    """The (T, I) matrix of ``dtype`` that the projection multiplies; x: a matrix or a tuple of two, with unit column stride."""
    x, x2 = x if type(x) is tuple else (x, None)
    if norm is None:
        return (x if x2 is None else torch.cat((x, x2), dim=-1)).to(dtype)
    T, I1 = x.shape
    width = I1 + (0 if x2 is None else x2.shape[1])
    y = torch.empty(T, width, dtype=dtype, device=x.device)
    if x2 is None and x.dtype == dtype:
        return normed(x, None, norm.weight_I, norm.eps, norm.groups)
    x2 = x if x2 is None else x2
    block = power_of_two(width // norm.groups)
    rows = SEVERAL if T >= MANY and block <= NARROW else 1
    launch(
        prepare_kernel,
        (cdiv(T, rows), norm.groups),
        x,
        x2,
        norm.weight_I,
        y,
        x.stride(0),
        x2.stride(0),
        I1,
        width,
        norm.eps,
        T,
        GROUPS=norm.groups,
        ROWS=rows,
        BLOCK=block,
        num_warps=max(1, min(8, block // 512)),
        device=x.device,
        pdl=True,
    )
    return y
