"""RoPE in Triton: one pass over x, whatever its strides, and the same pass backwards for the gradient."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def turned(x, cos, sin, d, ok, D: tl.constexpr):
    """Channels ``d`` of a head at pointer ``x``, rotated by the angles at ``cos`` and ``sin``, in float32; 0 where not ``ok``.

    Pointers may be tensors that broadcast against ``d`` and ``ok``: a channel and its partner half a head away are both loaded,
    the second time out of the cache.
    """
    F: tl.constexpr = D // 2
    first = d < F
    f = tl.where(first, d, d - F)
    near = tl.load(x + d, mask=ok, other=0.0).to(tl.float32)
    far = tl.load(x + tl.where(first, d + F, d - F), mask=ok, other=0.0).to(tl.float32)
    c = tl.load(cos + f, mask=ok, other=0.0)
    s = tl.load(sin + f, mask=ok, other=0.0)
    return near * c + tl.where(first, -far, far) * s


@triton.jit
def rope_kernel(x, cos, sin, y, T, x_t, x_h, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BT: tl.constexpr):
    """x (T, H, D) with strides (x_t, x_h, 1) -> y, contiguous. A program: BT tokens of one head."""
    h = tl.program_id(1)
    t = (tl.program_id(0) * BT + tl.arange(0, BT))[:, None]
    d = tl.arange(0, DP)[None, :]
    ok = (t < T) & (d < D)
    angles = t * (D // 2)
    value = turned(x + t.to(tl.int64) * x_t + h * x_h, cos + angles, sin + angles, d, ok, D)
    tl.store(y + (t.to(tl.int64) * H + h) * D + d, value.to(y.dtype.element_ty), mask=ok)


def rotate(x_THd, cos_TF, sin_TF):
    """Rotated x, contiguous. The last axis of x must be contiguous; T and H may have any stride."""
    if x_THd.dtype not in FLOATS:
        raise TypeError(f"rope kernels take float32, bfloat16 or float16, not {x_THd.dtype}")
    if x_THd.stride(-1) != 1:
        x_THd = x_THd.contiguous()
    T, H, D = x_THd.shape
    y = torch.empty(T, H, D, dtype=x_THd.dtype, device=x_THd.device)
    width = triton.next_power_of_2(D)
    tokens = max(1, 2048 // width)
    launch(
        rope_kernel,
        (triton.cdiv(T, tokens), H),
        *(x_THd, cos_TF.contiguous(), sin_TF.contiguous(), y, T, *x_THd.stride()[:2]),
        device=x_THd.device,
        H=H,
        D=D,
        DP=width,
        BT=tokens,
        num_warps=4,
    )
    return y


class Rotation(torch.autograd.Function):
    """A rotation's gradient is the rotation back."""

    @staticmethod
    def forward(ctx, x_THd, cos_TF, sin_TF):
        ctx.save_for_backward(cos_TF, sin_TF)
        return rotate(x_THd, cos_TF, sin_TF)

    @staticmethod
    def backward(ctx, dy_THd):
        cos_TF, sin_TF = ctx.saved_tensors
        return rotate(dy_THd, cos_TF, -sin_TF), None, None


def rope_triton(x_THd, cos_TF, sin_TF):
    return Rotation.apply(x_THd, cos_TF, sin_TF)
