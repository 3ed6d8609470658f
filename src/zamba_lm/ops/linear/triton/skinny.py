"""The gated product of up to some dozens of rows, on tensor cores, still bound by reading the weight.

cuBLAS reads as fast, but leaves the gate to a kernel of its own. Without a gate it is as good, and is used.
"""

import triton
import triton.language as tl


@triton.jit
def skinny_kernel(
    x,
    w,
    y,
    S,
    F,
    x_stride,
    I: tl.constexpr,  # noqa: E741
    HALF: tl.constexpr,
    BS: tl.constexpr,
    BK: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """y (S, F) = gelu(gate) * up, [gate ; up] = x w^T with w (2 F, I); a program owns HALF rows of gate and as many of up.

    UPCAST: multiply in float32, for Triton's interpreter, which takes bfloat16 operands for whole numbers.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    line = tl.arange(0, 2 * HALF)  # gate and up in turn, so that their products lie side by side
    out = tl.minimum(tl.program_id(0) * HALF + line // 2, F - 1) + (line % 2) * F
    s = tl.program_id(1) * BS + tl.arange(0, BS)
    w_rows = w + out.to(tl.int64)[:, None] * I
    x_rows = x + tl.minimum(s, S - 1).to(tl.int64)[:, None] * x_stride
    acc = tl.zeros((2 * HALF, BS), tl.float32)
    for at in range(0, I, BK):
        k = at + tl.arange(0, BK)
        if I % BK == 0:
            w_tile = tl.load(w_rows + k[None, :], eviction_policy="evict_first")
            x_tile = tl.load(x_rows + k[None, :])
        else:
            w_tile = tl.load(w_rows + k[None, :], mask=(k < I)[None, :], other=0.0, eviction_policy="evict_first")
            x_tile = tl.load(x_rows + k[None, :], mask=(k < I)[None, :], other=0.0)
        if UPCAST:
            w_tile, x_tile = w_tile.to(tl.float32), x_tile.to(tl.float32)
        acc = tl.dot(w_tile, tl.trans(x_tile), acc, input_precision="ieee")
    gate, up = tl.split(tl.permute(tl.reshape(acc, (HALF, 2, BS)), (0, 2, 1)))
    value = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    at = tl.program_id(0) * HALF + tl.arange(0, HALF)
    inside = (s < S)[None, :] & (at < F)[:, None]
    tl.store(y + s.to(tl.int64)[None, :] * F + at[:, None], value.to(y.dtype.element_ty), mask=inside)
