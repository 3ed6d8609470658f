"""gelu(gate) * up of many rows in the gate's own place, the correction of an adapter added on the way.

An adapter's second product is a few operations for each number of [gate | up], which has to be read anyhow: added here, it takes
two thirds of the time of a product of its own. Writing into the gate's half keeps the largest tensor of a pass from being held
one and a half times.
"""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch

CORRECTED = (64, 64, 4)  # rows, columns and warps of a program that multiplies, and of one that does not
PLAIN = (2, 1024, 4)
WIDEST = 512  # bytes of a row of the adapter's first product: what fits beside all else into shared memory


@triton.jit(do_not_specialize=["T"])
def place_kernel(
    h,
    low,
    b,
    T,
    F,
    h_stride,
    RANK: tl.constexpr,
    RP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UPCAST: tl.constexpr,
    PDL: tl.constexpr,
):
    """h (T, 2 F) = [gate | up] (+ low b^T, with low (T, RANK), b (2 F, RANK)): gelu(gate) * up in the gate's place.

    UPCAST: multiply in float32, for Triton's interpreter, which takes bfloat16 operands for whole numbers.
    """
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    f = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if RANK > 0:
        r = tl.arange(0, RP)
        right = b + f[None, :] * RANK + r[:, None]
        wanted = (f < F)[None, :] & (r < RANK)[:, None]
        of_gate = tl.load(right, mask=wanted, other=0.0)
        of_up = tl.load(right + F * RANK, mask=wanted, other=0.0)
        if UPCAST:
            of_gate, of_up = of_gate.to(tl.float32), of_up.to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    inside = (t < T)[:, None] & (f < F)[None, :]
    at = h + t.to(tl.int64)[:, None] * h_stride + f[None, :]
    gate = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(at + F, mask=inside, other=0.0).to(tl.float32)
    if RANK > 0:
        known = (t < T)[:, None] & (r < RANK)[None, :]
        left = tl.load(low + t.to(tl.int64)[:, None] * RANK + r[None, :], mask=known, other=0.0)
        if UPCAST:
            left = left.to(tl.float32)
        gate = tl.dot(left, of_gate, gate, input_precision="ieee")
        up = tl.dot(left, of_up, up, input_precision="ieee")
    value = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    tl.store(at, value.to(h.dtype.element_ty), mask=inside)


def gated_in_place(h: torch.Tensor, low: torch.Tensor | None = None, b: torch.Tensor | None = None) -> torch.Tensor:
    """The gated product (T, F), a view of h (T, 2 F), which is overwritten. low (T, R) and b (2 F, R): see the kernel."""
    T, F = len(h), h.shape[1] // 2
    rank = 0 if low is None else low.shape[1]
    rows, columns, warps = CORRECTED if rank else PLAIN
    launch(
        place_kernel,
        (triton.cdiv(T, rows), triton.cdiv(F, columns)),
        *(h, h if low is None else low, h if b is None else b, T, F, h.stride(0)),
        RANK=rank,
        RP=max(16, triton.next_power_of_2(rank)),
        ROWS=rows,
        COLUMNS=columns,
        UPCAST=h.device.type == "cpu",
        num_warps=warps,
        device=h.device,
        pdl=True,
    )
    return h[:, :F]


def fits(low_dtype: torch.dtype, rank: int) -> bool:
    """Whether an adapter of this rank can be added on the way."""
    return max(16, triton.next_power_of_2(rank)) * low_dtype.itemsize <= WIDEST
