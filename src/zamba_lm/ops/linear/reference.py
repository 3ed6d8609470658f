"""The projections as their definition."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.linear.normed import prepared


def linear_reference(x_TI, weight_OI, row_scale_O=None, norm=None, residual_TO=None, overwrite=False, later=False):
    y_TO = F.linear(prepared(x_TI, norm), unpack(weight_OI, row_scale_O))
    return y_TO if residual_TO is None else residual_TO + y_TO


def gated_linear_reference(x_TI, weight_2FI, row_scale_2F=None, norm=None, adapter=None):
    from zamba_lm.ops.linear import linear  # by the table, so that packed weights are read by whom they were packed for

    x_TI = prepared(x_TI, norm)
    y_T2F = linear(x_TI, weight_2FI, row_scale_2F)
    if adapter is not None:
        A_RI, B_2FR, A_scale_R, B_scale_2F = adapter
        y_T2F = y_T2F + linear(linear(x_TI, A_RI, A_scale_R), B_2FR, B_scale_2F)
    return gate_reference(y_T2F)


def gate_reference(y_T2F):
    gate_TF, up_TF = y_T2F.chunk(2, dim=-1)
    return F.gelu(gate_TF) * up_TF


def unpack(weight_OI, row_scale_O=None):
    """The plain tensor that a packed weight was made of, number for number."""
    return weight_OI if row_scale_O is None else weight_OI.to(row_scale_O.dtype) * row_scale_O[:, None]


def row_scales(weight_OI):
    """The smallest power of two a row (O,), float32, of which its numbers are at most 127 times as large."""
    largest_O = weight_OI.abs().amax(dim=1).float().clamp(min=2.0**-100)
    return torch.exp2(torch.ceil(torch.log2(largest_O / 127)))
