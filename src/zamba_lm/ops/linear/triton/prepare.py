"""What a projection of many rows multiplies, in one pass over memory: two inputs side by side, normed, rounded once."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch


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
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """y (T, I) = norm([x | x2]); a program for a group of a row."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    width = I // GROUPS
    at = tl.arange(0, BLOCK)
    k = tl.program_id(1) * width + at
    inside = at < width
    gain = tl.load(g + k, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
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
    x2 = x if x2 is None else x2
    block = triton.next_power_of_2(width // norm.groups)
    launch(
        prepare_kernel,
        (T, norm.groups),
        x,
        x2,
        norm.weight_I,
        y,
        x.stride(0),
        x2.stride(0),
        I1,
        width,
        norm.eps,
        GROUPS=norm.groups,
        BLOCK=block,
        num_warps=max(1, min(8, block // 512)),
        device=x.device,
        pdl=True,
    )
    return y
