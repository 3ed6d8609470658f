"""Inputs of the scan as a Mamba-1 mixer has them, and its definition with what stands before and after it."""

import torch
import torch.nn.functional as F

from tests.ops import naive
from tests.ops.inputs import scan as make


def mixer(total, *, width=5, n=4, heads=2, sequences=1, dtype=torch.float32, limited=True):
    """Keyword arguments of ``scan`` with raw time steps and a gate; all with a token axis are strided views, as in the model."""
    (x, _, A, B, C, D), state = make(total, heads=heads, width=width, n=n, sequences=sequences, dtype=dtype)
    g = torch.Generator().manual_seed(total)
    wide = torch.randn(total, 2 * heads * width, generator=g).to(dtype)
    wide[:, : heads * width] = x.flatten(1)
    low = torch.randn(heads, total, 3 + 2 * n, generator=g).to(dtype)
    low[..., 3 : 3 + n], low[..., 3 + n :] = B.transpose(0, 1), C.transpose(0, 1)
    x, z = (v.unflatten(-1, (heads, width)) for v in wide.chunk(2, dim=-1))
    raw = torch.randn(heads, total, width, generator=g).to(dtype).transpose(0, 1)
    return {
        "x_THP": x,
        "dt_THP": raw,
        "A_HPN": A,
        "B_THN": low[..., 3 : 3 + n].transpose(0, 1),
        "C_THN": low[..., 3 + n :].transpose(0, 1),
        "D_HP": D,
        "state_SHPN": state,
        "z_THP": z,
        "dt_bias_HP": torch.randn(heads, width, generator=g) - 3.0,
        "dt_limit": (0.02, 0.2) if limited else (0.0, float("inf")),
    }


def defined(lengths, *, x_THP, dt_THP, A_HPN, B_THN, C_THN, D_HP, state_SHPN, z_THP, dt_bias_HP, dt_limit):
    """The same in float64, every sequence by itself."""
    dt_THP = F.softplus(dt_THP.double() + dt_bias_HP.double()).clamp(*dt_limit)
    rows = (x_THP, dt_THP, B_THN, C_THN)
    y, after = naive.each(lambda x, dt, B, C, h: naive.scan(x, dt, A_HPN, B, C, D_HP, h), lengths, rows, state_SHPN)
    return y * F.silu(z_THP.double()), after
