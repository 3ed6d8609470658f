"""Causal depthwise convolution of small width followed by SiLU, over packed sequences with a carried window."""

from zamba_lm.ops.conv.reference import conv_reference
from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.packing import Packing, check_entries

CONV = Op(
    "conv",
    (
        kernels("conv", "conv_triton"),
        Implementation("reference", conv_reference),
    ),
)


def conv(x_TC, weight_CK, bias_C, packing: Packing, window_SKC=None, *, slots_S=None, in_place: bool = False):
    """SiLU(bias + sum_k weight[:, k] x[t - K + 1 + k]) in each sequence, channel by channel.

    x_TC: packed inputs, any float dtype. weight_CK, bias_C: float, K >= 2. window_SKC: the K - 1 inputs before each sequence (S,
    K - 1, C), oldest first, or None for zeros. Returns (y_TC in x's dtype, the windows after the sequences (S, K - 1, C)).
    Arithmetic in float32. Source: Mamba (arXiv 2312.00752), figure 3.

    in_place: for inference, the windows after the sequences overwrite those before. Then window_SKC may be memory of more
    sequences than these: sequence s has entry slots_S[s] (int32, on the device), or entry s where there are no slots.
    """
    C, K = weight_CK.shape
    if x_TC.shape != (packing.total, C):
        raise ValueError(f"x is {tuple(x_TC.shape)}, expected {(packing.total, C)} for {packing}")
    check_entries("window", window_SKC, (K - 1, C), packing, slots_S, in_place)
    if in_place:
        return CONV(x_TC.device)(x_TC, weight_CK, bias_C, packing, window_SKC, slots_S, True)
    return CONV(x_TC.device)(x_TC, weight_CK, bias_C, packing, window_SKC)
