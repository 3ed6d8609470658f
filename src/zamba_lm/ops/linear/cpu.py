"""oneDNN's product with a weight reordered once instead of at every call (torch ships oneDNN; nothing is compiled)."""

import torch
import torch.nn.functional as F

_product = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None


def no_packing(device: torch.device) -> str | None:
    """Why weights cannot be packed for ``device``, or None when they can."""
    if device.type != "cpu":
        return "packs weights for CPUs"
    if _product is None or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this processor has no bfloat16 products (AVX-512 or AMX)"
    return None


def pack(weight_OI: torch.Tensor) -> torch.Tensor:
    """The weight in oneDNN's layout; ``to_dense()`` gives the same numbers back."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach().contiguous(), 1)


def linear_cpu(x_TI, weight_OI):
    if weight_OI.is_mkldnn:
        return _product(x_TI, weight_OI, None, "none", [], "")
    return F.linear(x_TI, weight_OI)
