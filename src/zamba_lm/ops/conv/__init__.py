"""Causal depthwise convolution of small width followed by SiLU, over packed sequences with a carried window."""

from zamba_lm.ops.conv.reference import conv_reference
from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.packing import Packing

CONV = Op(
    "conv",
    (
        kernels("conv", "conv_triton"),
        Implementation("reference", conv_reference),
    ),
)


def conv(x_TC, weight_CK, bias_C, packing: Packing, window_SKC=None):
    """SiLU(bias + sum_k weight[:, k] x[t - K + 1 + k]) in each sequence, channel by channel.

    x_TC: packed inputs, any float dtype. weight_CK, bias_C: float, K >= 2. window_SKC: the K - 1 inputs before each sequence (S,
    K - 1, C), oldest first, or None for zeros. Returns (y_TC in x's dtype, the windows after the sequences (S, K - 1, C)).
    Arithmetic in float32. Source: Mamba (arXiv 2312.00752), figure 3.
    """
    C, K = weight_CK.shape
    if x_TC.shape != (packing.total, C):
        raise ValueError(f"x is {tuple(x_TC.shape)}, expected {(packing.total, C)} for {packing}")
    if window_SKC is not None and window_SKC.shape != (expected := (len(packing), K - 1, C)):
        raise ValueError(f"window is {tuple(window_SKC.shape)}, expected {expected} for {packing}")
    return CONV(x_TC.device)(x_TC, weight_CK, bias_C, packing, window_SKC)
