"""One row, or one group of one, at a time: read once, kept in registers, written once. Gated or not is a flag."""

import triton
import triton.language as tl


def _named(what):
    return lambda call: f"gated_{what}" if call.constants.get("GATED") else what  # what a profile calls it


@triton.jit(repr=_named("norm_forward"))
def norm_forward(
    out,
    x,
    z,
    weight,
    x_stride,
    z_stride,
    eps,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs: (row, group of WIDTH channels). x is y where GATED."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    keep, i = i < WIDTH, i + group * WIDTH
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    w = tl.load(weight + i, mask=keep, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    v = tl.load(x + row * x_stride + i, mask=keep, other=0.0).to(tl.float32)
    if GATED:
        gate = tl.load(z + row * z_stride + i, mask=keep, other=0.0).to(tl.float32)
        v *= gate / (1 + tl.exp(-gate))
    v *= tl.rsqrt(tl.sum(v * v) / WIDTH + eps)
    tl.store(out + row * (WIDTH * GROUPS) + i, (v * w.to(tl.float32)).to(out.dtype.element_ty), mask=keep)


@triton.jit(repr=_named("norm_backward"))
def norm_backward(
    d_x,
    d_z,
    d_weight,
    d_out,
    x,
    z,
    weight,
    x_stride,
    z_stride,
    d_stride,
    eps,
    T,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Programs: (every ``programs``-th row, group). d_weight (programs, D) float32: each program's share of the sum over rows."""
    program, programs, group = tl.program_id(0).to(tl.int64), tl.num_programs(0), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    keep, i = i < WIDTH, i + group * WIDTH
    w = tl.load(weight + i, mask=keep, other=0.0).to(tl.float32)
    share = tl.zeros((BLOCK,), tl.float32)
    for turn in range(tl.cdiv(T - tl.program_id(0), programs)):
        row = program + turn * programs
        v = tl.load(x + row * x_stride + i, mask=keep, other=0.0).to(tl.float32)
        d = tl.load(d_out + row * d_stride + i, mask=keep, other=0.0).to(tl.float32)
        if GATED:
            y = v
            gate = tl.load(z + row * z_stride + i, mask=keep, other=0.0).to(tl.float32)
            sigmoid = 1 / (1 + tl.exp(-gate))
            v = y * gate * sigmoid
        scale = tl.rsqrt(tl.sum(v * v) / WIDTH + eps)
        v *= scale
        share += d * v
        d *= w
        d = scale * (d - v * (tl.sum(d * v) / WIDTH))
        to = row * (WIDTH * GROUPS) + i
        if GATED:
            silu = gate * sigmoid
            tl.store(d_z + to, (d * y * (sigmoid + silu * (1 - sigmoid))).to(d_z.dtype.element_ty), mask=keep)
            d *= silu
        tl.store(d_x + to, d.to(d_x.dtype.element_ty), mask=keep)
    tl.store(d_weight + program * (WIDTH * GROUPS) + i, share, mask=keep)
