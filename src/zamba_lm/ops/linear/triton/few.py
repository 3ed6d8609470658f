"""Launching the kernels: strides, empty arguments, the configuration of a shape."""

from functools import cache
from importlib import import_module

import torch
import triton

from zamba_lm.ops.gpu import capability, launch, multiprocessors
from zamba_lm.ops.linear.triton.configs import (
    Config,
    RingConfig,
    SkinnyConfig,
    StreamsConfig,
    config,
    ring_config,
    skinny_config,
    streams_config,
)
from zamba_lm.ops.linear.triton.rows import rows_kernel
from zamba_lm.ops.linear.triton.skinny import skinny_kernel


def few_rows(x, weight, norm=None, residual=None, *, gated=False, adapter=None, chosen: Config | None = None):
    """norm(x) W^T + residual, or the gated product, of matrices (S, I); any S, made for few.

    adapter: None or (t, B): t (S, R) is what A made of the normed x. ``chosen``: a configuration other than the shipped one.
    """
    x, x2 = x if type(x) is tuple else (x, x)
    if x.dtype != weight.dtype and x2 is not x:
        x = x2 = torch.cat((x, x2), dim=-1)
    rows, width = weight.shape
    d_out = rows // 2 if gated else rows
    chosen = chosen or config(rows, width, weight.dtype, gated)
    y = torch.empty(len(x), d_out, dtype=weight.dtype, device=x.device)
    t, b = adapter or (None, None)
    launch(
        rows_kernel,
        (-(-d_out // chosen.rows),),
        x,
        x2,
        weight,
        norm.weight_I if norm else None,
        residual,
        t,
        b,
        y,
        len(x),
        d_out,
        x.stride(0),
        x2.stride(0),
        residual.stride(0) if residual is not None else 0,
        norm.eps if norm else 0.0,
        I=width,
        I1=x.shape[1],
        RANK=t.shape[1] if t is not None else 0,
        ROWS=chosen.rows,
        BK=chosen.columns,
        GROUPS=norm.groups if norm else 0,
        RESIDUAL=residual is not None,
        GATED=gated,
        WIDE=x.dtype.itemsize > weight.dtype.itemsize,
        num_warps=chosen.warps,
        device=x.device,
        pdl=True,
    )
    return y


HOPPER = (9, 0)
GLUON = ("3.6.",)  # versions of Triton whose Gluon, still called experimental, these kernels are written in
SMALLEST = 1 << 20  # numbers in a weight from which streaming it through shared memory pays
WIDEST = 1 << 14  # beyond, x would not fit the registers


def streams_through(weight) -> bool:
    """Whether ``ring_row`` and ``some_rows`` take a weight: 16 bits, rows of a multiple of 16 bytes, not small, on Hopper."""
    width = weight.shape[1]
    fits = weight.dtype.itemsize == 2 and width % 8 == 0 and width <= WIDEST and weight.data_ptr() % 16 == 0
    return fits and weight.numel() >= SMALLEST and capability(weight.device) == HOPPER and triton.__version__.startswith(GLUON)


@cache
def _gluon(name: str):
    """A module of kernels in Gluon, imported when one runs: another Triton may not have what it imports."""
    return import_module(f"zamba_lm.ops.linear.triton.{name}")


def ring_row(x, weight, norm=None, residual=None, *, gated=False, chosen: RingConfig | None = None):
    """``few_rows`` of one row, for a weight that ``streams_through`` lets pass."""
    x, x2 = x if type(x) is tuple else (x, x)
    rows, width = weight.shape
    d_out = rows // 2 if gated else rows
    chosen = chosen or ring_config(width, gated)
    y = torch.empty(1, d_out, dtype=weight.dtype, device=x.device)
    launch(
        _gluon("ring").ring_kernel,
        (min(multiprocessors(x.device), -(-d_out // (chosen.lines // 2 if gated else chosen.lines))),),
        *(x, x2, weight, norm.weight_I if norm else None, residual, y, d_out, norm.eps if norm else 0.0),
        I=width,
        I1=x.shape[1],
        LINES=chosen.lines,
        WARPS=chosen.warps,
        DOWN=chosen.down,
        STAGES=chosen.stages,
        GROUPS=norm.groups if norm else 0,
        RESIDUAL=residual is not None,
        GATED=gated,
        num_warps=chosen.warps,
        device=x.device,
        pdl=True,
    )
    return y


def some_rows(x, weight, residual=None, *, gated=False, chosen: StreamsConfig | None = None):
    """x W^T + residual, or the gated product, of a matrix (S, I) of the weight's 16-bit dtype, S up to 64."""
    return _streamed(x, weight, chosen or _config(len(x), weight, gated), residual, gated=gated)


def are_shared_out(rows: int, weight) -> bool:
    """Whether ``some_rows`` of so many rows shares columns out among programs, so that sums are to be made."""
    return _config(rows, weight).splits > 1


def shares(x, weight):
    """Float32 shares (N, S, O) that add up to the product of ``some_rows``, where columns are shared out."""
    return _streamed(x, weight, _config(len(x), weight), added=False)


def convolved_rows(x, weight, inner, window, slots, conv_weight, conv_bias, old):
    """The product, and float32 (S, C) SiLU of a convolution that reads C outputs from ``inner`` on, which are missing in the
    product; windows (n, K - 1, C) of ``slots`` or the first S move on (``old``: they may be read at once)."""
    S, K, C = len(x), window.shape[1] + 1, window.shape[2]
    out = torch.empty(S, C, dtype=torch.float32, device=x.device)
    tensors = out, window, slots, conv_weight, conv_bias, *window.stride()[:2]
    flags = {"INNER": inner, "C": C, "K": K, "SLOTS": slots is not None, "OLD": old}
    return _streamed(x, weight, _config(S, weight), convolution=(tensors, flags)), out


NO_CONVOLUTION = (None,) * 5 + (0, 0), {"INNER": 0, "C": 0, "K": 0, "SLOTS": False, "OLD": False}


def _config(batch: int, weight, gated=False) -> StreamsConfig:
    rows, width = weight.shape
    return streams_config(rows // 2 if gated else rows, width, batch, gated, multiprocessors(weight.device))


def _streamed(x, weight, chosen, residual=None, *, gated=False, added=True, convolution=NO_CONVOLUTION):
    S, (rows, width), device = len(x), weight.shape, x.device
    if x.data_ptr() % 16 or x.stride(0) % 8:  # asynchronous copies take 16 bytes at a time
        x = x.clone(memory_format=torch.contiguous_format)
    d_out = rows // 2 if gated else rows
    blocks = -(-d_out // chosen.lines)
    y = partial = counters = torch.empty(S, d_out, dtype=weight.dtype, device=device) if added else None
    if chosen.splits > 1:
        partial = torch.empty(chosen.splits, S, d_out, dtype=torch.float32, device=device)
        counters = _zeros(device) if added else None
        assert counters is None or blocks <= len(counters)
    launch(
        _gluon("streams").streams_kernel,
        (blocks, chosen.splits),
        *(x, weight, residual, y, partial, counters, *convolution[0], S, d_out),
        *(x.stride(0) // 8, 0 if residual is None else residual.stride(0)),
        I=width,
        LINES=chosen.lines,
        M=chosen.tile,
        BS=chosen.batch,
        BK=chosen.columns,
        STAGES=chosen.stages,
        SPLITS=chosen.splits,
        ADDED=added,
        RESIDUAL=residual is not None,
        GATED=gated,
        **convolution[1],
        WARPS=chosen.warps,
        num_warps=chosen.warps,
        device=device,
        pdl=True,
    )
    return y if added else partial


_counters: dict[torch.device, torch.Tensor] = {}


def _zeros(device: torch.device) -> torch.Tensor:
    """Counters that every launch leaves at zero."""
    if device not in _counters:
        made = torch.zeros(1024, dtype=torch.int32, device=device)
        if torch.cuda.is_current_stream_capturing():
            return made  # filled when the graph runs, and its own
        _counters[device] = made
    return _counters[device]


def skinny_gated(x, weight, chosen: SkinnyConfig | None = None):
    """The gated product of a matrix (S, I) of the weight's dtype on tensor cores."""
    rows, width = weight.shape
    chosen = chosen or skinny_config(len(x), weight.dtype)
    y = torch.empty(len(x), rows // 2, dtype=weight.dtype, device=x.device)
    launch(
        skinny_kernel,
        (-(-rows // 2 // chosen.half), -(-len(x) // chosen.batch)),
        x,
        weight,
        y,
        len(x),
        rows // 2,
        x.stride(0),
        I=width,
        HALF=chosen.half,
        BS=chosen.batch,
        BK=chosen.columns,
        UPCAST=x.device.type == "cpu",
        num_warps=4,
        num_stages=chosen.stages,
        device=x.device,
        pdl=True,
    )
    return y
