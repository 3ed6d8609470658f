"""The Mamba-2 mixer's single step in as few torch calls as it takes: at this size a call costs more than its arithmetic."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.linear import made
from zamba_lm.ops.step.reference import conv_token, on_slots, time_step


def mamba2_step_reference(h_SE, window_SKC, state_SHPN, constants, groups, dt_limit, slots_S=None, early=False, norm=None):
    y_SI = on_slots(_token, made(h_SE), window_SKC, state_SHPN, slots_S, constants, groups, dt_limit)
    return y_SI if norm is None else (y_SI, norm)


def _token(h_SE, window_SKC, state_SHPN, constants, groups, dt_limit):
    conv_weight_CK, conv_bias_C, dt_bias_H, A_H, D_H = constants
    S, H, P, N = state_SHPN.shape
    z_SI, xBC_SC, dt_SH = h_SE.float().split_with_sizes((H * P, conv_bias_C.shape[0], H), 1)
    xBC_SC = conv_token(xBC_SC, window_SKC, conv_weight_CK, conv_bias_C)
    x_SI, B_SM, C_SM = xBC_SC.split_with_sizes((H * P, groups * N, groups * N), 1)
    dt_SH = time_step(dt_SH, dt_bias_H, dt_limit)
    x_SHP, decay_SH = x_SI.view(S, H, P), (dt_SH * A_H).exp_()
    state = state_SHPN.view(S, groups, -1, N)  # a group's heads and their channels together: they share B and C
    state_SHPN.mul_(decay_SH[:, :, None, None])
    state.addcmul_((x_SHP * dt_SH[:, :, None]).view(S, groups, -1, 1), B_SM.view(S, groups, 1, N))
    y_SHP = torch.bmm(state.view(S * groups, -1, N), C_SM.reshape(S * groups, N, 1)).view(S, H, P)
    return y_SHP.addcmul_(x_SHP, D_H[:, None]).view(S, -1).mul_(F.silu(z_SI))
