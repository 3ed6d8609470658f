"""The Mamba-2 mixer of Zamba2."""

from typing import Any

import torch
from torch import nn

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.parts import Linear, Norm, is_plain, project, project_onto
from zamba_lm.model.state import Memory, carried
from zamba_lm.ops.conv import conv
from zamba_lm.ops.linear import Normed, Unmade
from zamba_lm.ops.mamba2 import mamba2, mamba2_mixer
from zamba_lm.ops.norm import gated_norm
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd import ssd
from zamba_lm.ops.step import mamba2_step

GATED_NORM_EPS = 1e-5  # fixed in the released code, whatever the config says of the other norms


class Mamba2(nn.Module):
    """x -> [z | x | B | C | dt] -> conv over [x B C] -> SSD -> norm of y * SiLU(z) -> out."""

    def __init__(self, c: ZambaConfig, *, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.c = c
        self.sizes = (c.d_inner, c.conv_dim, c.n_ssm_heads)  # z, what the convolution reads, dt
        self.parts = (c.d_inner, c.n_groups * c.d_state, c.n_groups * c.d_state)  # x, B, C
        self.in_proj = Linear(c.d_model, sum(self.sizes), **factory)
        self.conv_weight = nn.Parameter(torch.empty(c.conv_dim, c.d_conv, **factory))
        self.conv_bias = nn.Parameter(torch.empty(c.conv_dim, **factory))
        self.dt_bias = nn.Parameter(torch.empty(c.n_ssm_heads, **factory))
        self.A_log = nn.Parameter(torch.empty(c.n_ssm_heads, **factory))
        self.D = nn.Parameter(torch.empty(c.n_ssm_heads, **factory))
        self.norm_weight = nn.Parameter(torch.empty(c.d_inner, **factory))
        self.out_proj = Linear(c.d_inner, c.d_model, **factory)
        self.frozen: tuple[torch.Tensor, ...] | None = None  # ``constants`` kept for passes with a memory (model/pack.py)

    def constants(self) -> tuple[torch.Tensor, ...]:
        """What convolution and recurrence read, in float32: conv weight (C, K), conv bias (C), dt bias (H), A (H), D (H)."""
        A_H = -self.A_log.float().exp()
        return self.conv_weight.float(), self.conv_bias.float(), self.dt_bias.float(), A_H, self.D.float()

    def forward(self, x_TD, norm: Norm, packing: Packing, memory: Memory | None = None, residual_TD=None):
        """The mixer of the normed input, plus the residual. memory: what to continue from and update in place, or None."""
        if memory is None:
            return self._afresh(x_TD, norm, packing, residual_TD)
        constants = self.constants() if self.frozen is None else self.frozen
        if packing.total == len(packing):
            return self._token(x_TD, norm, constants, memory, residual_TD)
        return self._by_parts(project(self.in_proj, x_TD, norm=norm), constants, packing, memory, residual_TD)

    def _token(self, x_TD, norm: Norm, constants, memory: Memory, residual_TD):
        """One token of each sequence. Where both projections are our own, the step may do part of their work."""
        c, norm_I = self.c, Normed(self.norm_weight, GATED_NORM_EPS, self.c.n_groups)
        where = memory.window, memory.ssm, constants, c.n_groups, c.dt_limit, memory.slots, memory.early
        if type(self.out_proj) is not Linear or not is_plain(self.in_proj, self.out_proj):
            y_TI = mamba2_step(project(self.in_proj, x_TD, norm=norm), *where)
            return project_onto(self.out_proj, y_TI, residual_TD, norm=norm_I)
        h_TE = Unmade(x_TD, self.in_proj.weight, self.in_proj.row_scale, Normed(norm.weight, norm.eps))
        y_TI, left = mamba2_step(h_TE, *where, norm_I)
        return project_onto(self.out_proj, y_TI, residual_TD, norm=left)

    def _by_parts(self, h_TE, constants, packing, memory, residual_TD):
        """From the input projection's rows on: convolution, SSD, and what follows them."""
        c, (conv_weight, conv_bias, dt_bias, A_H, D_H) = self.c, constants
        window, state, where = carried(memory)
        z_TI, xBC_TC, dt_TH = h_TE.split(self.sizes, dim=-1)
        xBC_TC, _ = conv(xBC_TC, conv_weight, conv_bias, packing, window, **where)
        x_TI, B_TM, C_TM = xBC_TC.split(self.parts, dim=-1)
        x_THP = x_TI.unflatten(-1, (c.n_ssm_heads, c.ssm_head_dim))
        B_TGN, C_TGN = (maps_TM.unflatten(-1, (c.n_groups, c.d_state)) for maps_TM in (B_TM, C_TM))
        raw = {"dt_bias_H": dt_bias, "dt_limit": c.dt_limit}
        y_THP, _ = ssd(x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, packing, state, **raw, **where)
        return self._out(y_THP.flatten(-2), z_TI, residual_TD)

    def _afresh(self, x_TD, norm: Norm, packing, residual_TD):
        """Every sequence from its beginning, with gradients."""
        parameters = self.conv_weight, self.conv_bias, self.dt_bias, self.A_log, self.D, self.norm_weight
        how: dict[str, Any] = {"groups": self.c.n_groups, "eps": GATED_NORM_EPS, "dt_limit": self.c.dt_limit}
        if residual_TD is not None and is_plain(self.in_proj, self.out_proj) and self.in_proj.row_scale is None:
            weights = self.in_proj.weight, self.out_proj.weight
            return mamba2_mixer(x_TD, Normed(norm.weight, norm.eps), *weights, residual_TD, *parameters, packing, **how)
        y_TI = mamba2(project(self.in_proj, x_TD, norm=norm), *parameters, packing, **how)
        return project(self.out_proj, y_TI, residual=residual_TD)

    def _out(self, y_TI, z_TI, residual_TD):
        """Gate, norm, output projection. With a memory the sum takes the residual's place."""
        y_TI = gated_norm(y_TI, z_TI, self.norm_weight, GATED_NORM_EPS, self.c.n_groups)
        return project_onto(self.out_proj, y_TI, residual_TD)
