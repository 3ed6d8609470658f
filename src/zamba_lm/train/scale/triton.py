"""Kernels of ``span_norm.py``: a program for a row, or for some rows where it adds up the weight's gradient."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import launch, multiprocessors, power_of_two
from zamba_lm.ops.norm.triton.sums import column_sums

WARPS = 8
RESIDENT = 2  # programs a multiprocessor that share the rows, on the way back


@triton.jit
def _gated(y, z, at, keep):
    """y SiLU(z), y, SiLU(z) and the sigmoid in it, of a row; float32."""
    y = tl.load(y + at, mask=keep, other=0.0).to(tl.float32)
    gate = tl.load(z + at, mask=keep, other=0.0).to(tl.float32)
    sigmoid = 1 / (1 + tl.exp(-gate))
    return y * gate * sigmoid, y, gate * sigmoid, sigmoid


@triton.jit
def sums_kernel(out, y, z, d, weight, I, y_stride, z_stride, d_stride, SQUARES: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    keep = at < I
    gated, _, _, _ = _gated(y + row * y_stride, z + row * z_stride, at, keep)
    if SQUARES:
        with_TI = gated
    else:
        gain = tl.load(weight + at, mask=keep, other=0.0).to(tl.float32)
        with_TI = tl.load(d + row * d_stride + at, mask=keep, other=0.0).to(tl.float32) * gain
    tl.store(out + row, tl.sum(gated * with_TI, 0))


@triton.jit
def scaled_kernel(out, y, z, weight, scale, I, y_stride, z_stride, BLOCK: tl.constexpr):  # noqa: E741
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    keep = at < I
    gated, _, _, _ = _gated(y + row * y_stride, z + row * z_stride, at, keep)
    gain = tl.load(weight + at, mask=keep, other=0.0).to(tl.float32)
    tl.store(out + row * I + at, (gated * tl.load(scale + row) * gain).to(out.dtype.element_ty), mask=keep)


@triton.jit
def back_kernel(
    d_y, d_z, d_weight, d, y, z, weight, scale, along, T, I, d_stride, y_stride, z_stride, BLOCK: tl.constexpr  # noqa: E741
):  # fmt: skip
    program, programs, at = tl.program_id(0), tl.num_programs(0), tl.arange(0, BLOCK)
    keep = at < I
    gain = tl.load(weight + at, mask=keep, other=0.0).to(tl.float32)
    share = tl.zeros((BLOCK,), tl.float32)
    for turn in range(tl.cdiv(T - program, programs)):
        row = program.to(tl.int64) + turn * programs
        gated, value, silu, sigmoid = _gated(y + row * y_stride, z + row * z_stride, at, keep)
        rate = tl.load(scale + row)
        normed = gated * rate
        given = tl.load(d + row * d_stride + at, mask=keep, other=0.0).to(tl.float32)
        share += given * normed
        d_gated = rate * (given * gain - normed * tl.load(along + row))
        tl.store(d_y + row * I + at, (d_gated * silu).to(d_y.dtype.element_ty), mask=keep)
        slope = value * (sigmoid + silu * (1 - sigmoid))
        tl.store(d_z + row * I + at, (d_gated * slope).to(d_z.dtype.element_ty), mask=keep)
    tl.store(d_weight + program.to(tl.int64) * I + at, share, mask=keep)


def sums_triton(y, z, d=None, weight=None):
    y, z, d = _rows(y), _rows(z), None if d is None else _rows(d)
    out = torch.empty(len(y), dtype=torch.float32, device=y.device)
    d_stride = 0 if d is None else d.stride(0)
    given = (out, y, z, d, weight, y.shape[1], y.stride(0), z.stride(0), d_stride)
    launch(sums_kernel, (len(y),), *given, SQUARES=d is None, **_how(y))
    return out


def scaled_triton(y, z, weight, scale):
    y, z = _rows(y), _rows(z)
    out = torch.empty(y.shape, dtype=z.dtype, device=y.device)
    launch(scaled_kernel, (len(y),), out, y, z, weight, scale, y.shape[1], y.stride(0), z.stride(0), **_how(y))
    return out


def back_triton(d, y, z, weight, scale, along):
    d, y, z = _rows(d), _rows(y), _rows(z)
    T, I = y.shape  # noqa: E741
    d_y, d_z = torch.empty(y.shape, dtype=y.dtype, device=y.device), torch.empty(y.shape, dtype=z.dtype, device=y.device)
    programs = min(T, RESIDENT * multiprocessors(y.device))
    shares = torch.empty(programs, I, dtype=torch.float32, device=y.device)
    given = (d_y, d_z, shares, d, y, z, weight, scale, along, T, I, d.stride(0), y.stride(0), z.stride(0))
    launch(back_kernel, (programs,), *given, **_how(y))
    return d_y, d_z, column_sums(shares, weight.dtype)


def _how(y) -> dict:
    return {"BLOCK": power_of_two(y.shape[1]), "num_warps": WARPS, "device": y.device}


def _rows(x):
    """Channels side by side; a stride between rows is fine."""
    return x if x.stride(-1) == 1 else x.contiguous()
