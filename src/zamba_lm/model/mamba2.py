"""The Mamba-2 mixer of Zamba2."""

import torch
import torch.nn.functional as F
from torch import nn

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.parts import Linear
from zamba_lm.ops.conv import conv
from zamba_lm.ops.norm import gated_norm
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd import ssd
from zamba_lm.ops.step import step


class Mamba2(nn.Module):
    """x -> [z | x | B | C | dt] -> conv over [x B C] -> SSD -> norm of y * SiLU(z) -> out."""

    def __init__(self, c: ZambaConfig, *, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.c = c
        self.sizes = (c.d_inner, c.conv_dim, c.n_ssm_heads)
        self.in_proj = Linear(c.d_model, sum(self.sizes), **factory)
        self.conv_weight = nn.Parameter(torch.empty(c.conv_dim, c.d_conv, **factory))
        self.conv_bias = nn.Parameter(torch.empty(c.conv_dim, **factory))
        self.dt_bias = nn.Parameter(torch.empty(c.n_ssm_heads, **factory))
        self.A_log = nn.Parameter(torch.empty(c.n_ssm_heads, **factory))
        self.D = nn.Parameter(torch.empty(c.n_ssm_heads, **factory))
        self.norm_weight = nn.Parameter(torch.empty(c.d_inner, **factory))
        self.out_proj = Linear(c.d_inner, c.d_model, **factory)

    def forward(self, x_TD, packing: Packing, memory=None):
        """memory: (window (S, K - 1, C), SSM state (S, H, P, N)) to continue from and update in place, or None."""
        c = self.c
        z_TI, xBC_TC, dt_TH = self.in_proj(x_TD).split(self.sizes, dim=-1)
        window, state = memory or (None, None)
        xBC_TC, window_after = conv(xBC_TC, self.conv_weight, self.conv_bias, packing, window)
        x_THP = xBC_TC[:, : c.d_inner].unflatten(-1, (c.n_ssm_heads, c.ssm_head_dim))
        B_TGN, C_TGN = xBC_TC[:, c.d_inner :].unflatten(-1, (2, c.n_groups, c.d_state)).unbind(1)
        dt_TH = time_step(dt_TH, self.dt_bias, c.dt_limit)
        A_H, D_H = -self.A_log.float().exp(), self.D.float()
        if memory is None:
            y_THP, _ = ssd(x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, packing)
        else:
            window.copy_(window_after)
            if packing.total == len(packing):
                y_THP = step(x_THP, dt_TH[..., None], A_H[:, None, None], B_TGN, C_TGN, D_H[:, None], state)
            else:
                y_THP, after = ssd(x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, packing, state)
                state.copy_(after)
        return self.out_proj(gated_norm(y_THP.flatten(-2), z_TI, self.norm_weight, c.norm_eps, c.n_groups))


def time_step(raw, bias, limit: tuple[float, float]):
    """softplus(raw + bias) in float32, clamped to ``limit``. One function for whole passes and single steps, so they agree."""
    dt = F.softplus(raw.float() + bias.float())
    return dt if limit == (0.0, float("inf")) else dt.clamp(*limit)
