"""Launching the kernels: strides, empty arguments, the configuration of a shape."""

import torch

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.linear.triton.configs import Config, SkinnyConfig, config, skinny_config
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
