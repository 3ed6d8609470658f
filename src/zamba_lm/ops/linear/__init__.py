"""A projection without bias, from a plain weight or from one packed for this machine's processor."""

import torch

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.linear.cpu import linear_cpu, no_packing, pack
from zamba_lm.ops.linear.reference import linear_reference, row_scales, unpack

LINEAR = Op("linear", (Implementation("onednn", linear_cpu, no_packing), Implementation("reference", linear_reference)))

__all__ = ["LINEAR", "can_pack", "linear", "pack", "row_scales", "unpack"]


def linear(x_TI, weight_OI, row_scale_O=None):
    """x W^T: (T, I) with (O, I) gives (T, O), all of one dtype; products are added in float32.

    ``weight_OI`` is a plain tensor, or with ``row_scale_O`` what ``pack`` made of one: the same numbers, in the order in which
    oneDNN reads them or, where they are whole multiples of a power of two a row, in eight bits each. A single row gets through
    packed weights in about half the time (a quarter in eight bits), since that time is spent reading them.
    """
    return LINEAR(x_TI.device)(x_TI, weight_OI, row_scale_O)


def can_pack(weight_OI: torch.Tensor) -> bool:
    """Whether ``pack`` takes this weight: a plain bfloat16 one, on a CPU whose oneDNN multiplies it natively."""
    return weight_OI.dtype == torch.bfloat16 and no_packing(weight_OI.device) is None and not weight_OI.is_mkldnn
