"""The inside of the mixer as its parts, one after the other."""

from zamba_lm.ops.conv import conv
from zamba_lm.ops.linear import linear
from zamba_lm.ops.norm import gated_norm
from zamba_lm.ops.ssd import ssd


def mamba2_reference(h_TE, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight, packing, groups, eps, dt_limit):
    z_TI, x_TC, dt_TH, heads, maps = split(h_TE, conv_weight, D, norm_weight, groups)
    x_TC, _ = conv(x_TC, conv_weight.float(), conv_bias.float(), packing)
    x_THP, B_TGN, C_TGN = apart(x_TC, z_TI.shape[1], heads, maps)
    y_THP, _ = ssd(
        x_THP, dt_TH, -A_log.float().exp(), B_TGN, C_TGN, D.float(), packing, dt_bias_H=dt_bias.float(), dt_limit=dt_limit
    )
    return gated_norm(y_THP.flatten(-2), z_TI, norm_weight, eps, groups)


def split(h_TE, conv_weight, D, norm_weight, groups):
    """z, what the convolution reads, dt, and the shapes of heads (H, P) and maps (G, N)."""
    I, H, C = norm_weight.shape[0], D.shape[0], conv_weight.shape[0]  # noqa: E741
    return *h_TE.split((I, C, H), dim=-1), (H, I // H), (groups, (C - I) // (2 * groups))


def apart(x_TC, width, heads, maps):
    """x (T, H, P), B and C (T, G, N) of what the convolution made."""
    both = maps[0] * maps[1]
    x_TI, B_TM, C_TM = x_TC.split((width, both, both), dim=-1)
    return x_TI.unflatten(-1, heads), B_TM.unflatten(-1, maps), C_TM.unflatten(-1, maps)


def mamba2_mixer_reference(x_TD, norm, in_weight, out_weight, residual_TD, *inside):
    from zamba_lm.ops.mamba2 import mamba2_by  # by the table

    y_TI = mamba2_by(linear(x_TD, in_weight, norm=norm), *inside)
    return linear(y_TI, out_weight, residual_TO=residual_TD)
