"""Products with a weight packed once instead of reordered at every call (torch ships oneDNN; nothing is compiled)."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.linear.normed import prepared
from zamba_lm.ops.linear.reference import row_scales, unpack

FEW_ROWS = 8  # up to here the eight-bit kernel reads weights faster than it multiplies; beyond, unpacking them first is faster
SMALLEST = 1 << 16  # numbers in a weight from which eight bits pay

_product = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
_native = _product is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # asked once: torch.compile cannot ask


def no_packing(device: torch.device) -> str | None:
    """Why weights cannot be packed for ``device``, or None when they can."""
    if device.type != "cpu":
        return "packs weights for CPUs"
    if not _native:
        return "this processor has no bfloat16 products (AVX-512 or AMX)"
    return None


def pack(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A weight and its row scale: int8 codes (O, I) with (O,) where that loses nothing, else oneDNN's layout with None.

    ``unpack`` gives the same numbers back.
    """
    weight_OI = weight_OI.detach().contiguous()
    if weight_OI.numel() >= SMALLEST and (eight := _eight_bits(weight_OI)):
        return eight
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI, 1), None


def _eight_bits(weight_OI):
    """Codes and scales when every row is whole multiples, at most 127, of a power of two, as int8 rows expand to; else None."""
    sample = weight_OI[:: max(1, len(weight_OI) // 64)]  # most weights are told apart by a few rows
    for rows in (sample, weight_OI):
        scale = row_scales(rows)
        codes = rows.float() / scale[:, None]
        if not torch.equal(codes, codes.round()):
            return None
    return codes.to(torch.int8), scale.to(weight_OI.dtype)


def linear_cpu(x_TI, weight_OI, row_scale_O=None, norm=None, residual_TO=None, overwrite=False):
    if norm is not None or type(x_TI) is tuple:
        x_TI = prepared(x_TI, norm)
    y_TO = _multiply(x_TI, weight_OI, row_scale_O)
    return y_TO if residual_TO is None else residual_TO + y_TO


def _multiply(x_TI, weight_OI, row_scale_O):
    if row_scale_O is not None:
        if x_TI.numel() > FEW_ROWS * x_TI.shape[-1]:
            return F.linear(x_TI, unpack(weight_OI, row_scale_O))
        y = torch._weight_int8pack_mm(x_TI.reshape(-1, x_TI.shape[-1]), weight_OI, row_scale_O)
        return y.view(*x_TI.shape[:-1], -1)
    if weight_OI.is_mkldnn:
        return _product(x_TI, weight_OI, None, "none", [], "")
    return F.linear(x_TI, weight_OI)
