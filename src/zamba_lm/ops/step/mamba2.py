"""The Mamba-2 mixer's single step in as few torch calls as it takes: at this size a call costs more than its arithmetic."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.step.reference import time_step


def mamba2_step_reference(h_SE, window_SKC, state_SHPN, constants, norm_weight_I, groups, eps, dt_limit):
    conv_weight_CK, conv_bias_C, dt_bias_H, A_H, D_H = constants
    S, H, P, N = state_SHPN.shape
    z_SI, xBC_SC, dt_SH = h_SE.float().split_with_sizes((H * P, conv_bias_C.shape[0], H), 1)
    xBC_SC = _conv(xBC_SC, window_SKC, conv_weight_CK, conv_bias_C)
    x_SI, B_SM, C_SM = xBC_SC.split_with_sizes((H * P, groups * N, groups * N), 1)
    dt_SH = time_step(dt_SH, dt_bias_H, dt_limit)
    x_SHP, decay_SH = x_SI.view(S, H, P), (dt_SH * A_H).exp_()
    state = state_SHPN.view(S, groups, -1, N)  # a group's heads and their channels together: they share B and C
    state_SHPN.mul_(decay_SH[:, :, None, None])
    state.addcmul_((x_SHP * dt_SH[:, :, None]).view(S, groups, -1, 1), B_SM.view(S, groups, 1, N))
    y_SHP = torch.bmm(state.view(S * groups, -1, N), C_SM.reshape(S * groups, N, 1)).view(S, H, P)
    gated_SI = y_SHP.addcmul_(x_SHP, D_H[:, None]).view(S, -1).mul_(F.silu(z_SI))
    return _norm(gated_SI, norm_weight_I, groups, eps).to(h_SE.dtype)


def _conv(x_SC, window_SKC, weight_CK, bias_C):
    longer_SKC = torch.cat((window_SKC, x_SC[:, None]), 1)
    window_SKC.copy_(longer_SKC[:, 1:])
    return F.silu((longer_SKC * weight_CK.T).sum(1).add_(bias_C))


def _norm(x_SI, weight_I, groups, eps):
    parts = x_SI.view(len(x_SI), groups, -1)
    size = torch.linalg.vector_norm(parts, dim=-1, keepdim=True)
    return parts.mul_((size * size).div_(parts.shape[-1]).add_(eps).rsqrt_()).view(x_SI.shape) * weight_I
