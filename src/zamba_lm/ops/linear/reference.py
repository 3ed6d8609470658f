"""The projection as its definition."""

import torch
import torch.nn.functional as F


def linear_reference(x_TI, weight_OI, row_scale_O=None):
    return F.linear(x_TI, unpack(weight_OI, row_scale_O))


def unpack(weight_OI, row_scale_O=None):
    """The plain tensor that a packed weight was made of, number for number."""
    if row_scale_O is not None:
        return weight_OI.to(row_scale_O.dtype) * row_scale_O[:, None]
    return weight_OI.to_dense() if weight_OI.is_mkldnn else weight_OI


def row_scales(weight_OI):
    """The smallest power of two a row (O,), float32, of which its numbers are at most 127 times as large."""
    largest_O = weight_OI.abs().amax(dim=1).float().clamp(min=2.0**-100)
    return torch.exp2(torch.ceil(torch.log2(largest_O / 127)))
