"""The Mamba-1 mixer's single step between its two projections, in as few torch calls as it takes."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.step.reference import conv_token, on_slots, time_step


def mamba1_step_reference(h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit, slots_S=None, early=False):
    return on_slots(_token, h_S2I, window_SKC, state_SHPN, slots_S, constants, x_proj_HRP, dt_proj_HPR, dt_limit)


def _token(h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit):
    conv_weight_CK, conv_bias_C, dt_bias_HP, A_HPN, D_HP = constants
    S, H, P, N = state_SHPN.shape
    x_SI, z_SI = h_S2I.float().chunk(2, 1)
    x_SHP = conv_token(x_SI, window_SKC, conv_weight_CK, conv_bias_C).view(S, H, P)
    # The two products take their operands in the weights' dtype: wider copies of the weights would cost more than they are worth.
    low_HSR = torch.bmm(x_SHP.transpose(0, 1).to(x_proj_HRP.dtype), x_proj_HRP.transpose(1, 2))
    dt_HSR, B_HSN, C_HSN = low_HSR.split_with_sizes((dt_proj_HPR.shape[2], N, N), 2)
    dt_SHP = time_step(torch.bmm(dt_HSR, dt_proj_HPR.transpose(1, 2)).transpose(0, 1), dt_bias_HP, dt_limit)
    B_SHN, C_SHN = B_HSN.transpose(0, 1).float(), C_HSN.transpose(0, 1).float()
    state_SHPN.mul_((dt_SHP[..., None] * A_HPN).exp_()).addcmul_((dt_SHP * x_SHP)[..., None], B_SHN[:, :, None])
    y_SHP = torch.matmul(state_SHPN, C_SHN[..., None])[..., 0]
    return y_SHP.addcmul_(x_SHP, D_HP).view(S, -1).mul_(F.silu(z_SI)).to(h_S2I.dtype)
