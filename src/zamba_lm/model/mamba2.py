"""The Mamba-2 mixer of Zamba2."""

import torch
from torch import nn

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.parts import Linear
from zamba_lm.ops.conv import conv
from zamba_lm.ops.norm import gated_norm
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd import ssd
from zamba_lm.ops.step import mamba2_step, time_step

GATED_NORM_EPS = 1e-5  # fixed in the released code, whatever the config says of the other norms


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
        self.frozen: tuple[torch.Tensor, ...] | None = None  # ``constants`` kept by ``pack_weights``

    def constants(self) -> tuple[torch.Tensor, ...]:
        """What convolution and recurrence read, in float32: conv weight (C, K), conv bias (C), dt bias (H), A (H), D (H)."""
        A_H = -self.A_log.float().exp()
        return self.conv_weight.float(), self.conv_bias.float(), self.dt_bias.float(), A_H, self.D.float()

    def forward(self, x_TD, packing: Packing, memory=None):
        """memory: (window (S, K - 1, C), SSM state (S, H, P, N)) to continue from and update in place, or None."""
        c, h_TE, constants = self.c, self.in_proj(x_TD), self.frozen or self.constants()
        window, state = memory or (None, None)
        if memory is not None and packing.total == len(packing):
            how = (c.n_groups, GATED_NORM_EPS, c.dt_limit)
            return self.out_proj(mamba2_step(h_TE, window, state, constants, self.norm_weight, *how))
        conv_weight, conv_bias, dt_bias, A_H, D_H = constants
        z_TI, xBC_TC, dt_TH = h_TE.split(self.sizes, dim=-1)
        xBC_TC, window_after = conv(xBC_TC, conv_weight, conv_bias, packing, window)
        x_THP = xBC_TC[:, : c.d_inner].unflatten(-1, (c.n_ssm_heads, c.ssm_head_dim))
        B_TGN, C_TGN = xBC_TC[:, c.d_inner :].unflatten(-1, (2, c.n_groups, c.d_state)).unbind(1)
        dt_TH = time_step(dt_TH, dt_bias, c.dt_limit)
        y_THP, state_after = ssd(x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, packing, state)
        if memory is not None:
            window.copy_(window_after)
            state.copy_(state_after)
        return self.out_proj(gated_norm(y_THP.flatten(-2), z_TI, self.norm_weight, GATED_NORM_EPS, c.n_groups))
