"""The Mamba-1 mixer of Zamba: a few wide heads, each with its own B, C and time step."""

from typing import Any

import torch
from torch import nn

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.parts import Linear, Norm, project, project_onto
from zamba_lm.model.state import Memory, carried
from zamba_lm.ops.conv import conv
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan import scan
from zamba_lm.ops.step import mamba1_step


class Mamba1(nn.Module):
    """x -> [x | z] -> conv over x -> per head [dt | B | C] -> selective scan -> y * SiLU(z) -> out."""

    def __init__(self, c: ZambaConfig, *, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        H, P, N, R = c.n_ssm_heads, c.ssm_head_dim, c.d_state, c.dt_rank
        self.c = c
        self.in_proj = Linear(c.d_model, 2 * c.d_inner, **factory)
        self.conv_weight = nn.Parameter(torch.empty(c.d_inner, c.d_conv, **factory))
        self.conv_bias = nn.Parameter(torch.empty(c.d_inner, **factory))
        self.x_proj = nn.Parameter(torch.empty(H, R + 2 * N, P, **factory))
        self.dt_proj = nn.Parameter(torch.empty(H, P, R, **factory))
        self.dt_bias = nn.Parameter(torch.empty(H, P, **factory))
        self.A_log = nn.Parameter(torch.empty(H, P, N, **factory))
        self.D = nn.Parameter(torch.empty(H, P, **factory))
        self.out_proj = Linear(c.d_inner, c.d_model, **factory)
        self.frozen: tuple[torch.Tensor, ...] | None = None  # ``constants`` kept for passes with a memory (model/pack.py)

    def constants(self) -> tuple[torch.Tensor, ...]:
        """What conv and recurrence read, in float32: conv weight (C, K), conv bias (C), dt bias (H, P), A (H, P, N), D (H, P)."""
        A_HPN = -self.A_log.float().exp()
        return self.conv_weight.float(), self.conv_bias.float(), self.dt_bias.float(), A_HPN, self.D.float()

    def forward(self, x_TD, norm: Norm, packing: Packing, memory: Memory | None = None, residual_TD=None):
        """The mixer of the normed input, plus the residual. memory: what to continue from and update in place, or None."""
        c, h_TE = self.c, project(self.in_proj, x_TD, norm=norm)
        constants = self.constants() if memory is None or self.frozen is None else self.frozen
        if memory is not None and packing.total == len(packing):
            maps = (self.x_proj, self.dt_proj)
            y_TI = mamba1_step(h_TE, memory.window, memory.ssm, constants, *maps, c.dt_limit, memory.slots, memory.early)
            return project_onto(self.out_proj, y_TI, residual_TD)
        conv_weight, conv_bias, dt_bias, A_HPN, D_HP = constants
        window, state, where = carried(memory)
        x_TI, z_TI = h_TE.chunk(2, dim=-1)
        x_TI, _ = conv(x_TI, conv_weight, conv_bias, packing, window, **where)
        x_THP, z_THP = (v.unflatten(-1, (c.n_ssm_heads, -1)) for v in (x_TI, z_TI))
        dt_THP, B_THN, C_THN = self._dt_B_C(x_THP)
        raw: dict[str, Any] = {"z_THP": z_THP, "dt_bias_HP": dt_bias, "dt_limit": c.dt_limit}
        y_THP, _ = scan(x_THP, dt_THP, A_HPN, B_THN, C_THN, D_HP, packing, state, **raw, **where)
        if memory is None:
            return project(self.out_proj, y_THP.flatten(-2), residual=residual_TD)
        return project_onto(self.out_proj, y_THP.flatten(-2), residual_TD)

    def _dt_B_C(self, x_THP):
        """Raw time steps (T, H, P) and the maps B, C (T, H, N), from each head's own projections."""
        c = self.c
        x_HTP = x_THP.transpose(0, 1)
        low_HTR = x_HTP @ self.x_proj.transpose(1, 2)
        dt_HTR, B_HTN, C_HTN = low_HTR.split((c.dt_rank, c.d_state, c.d_state), dim=-1)
        dt_THP = (dt_HTR @ self.dt_proj.transpose(1, 2)).transpose(0, 1)
        return dt_THP, B_HTN.transpose(0, 1), C_HTN.transpose(0, 1)
