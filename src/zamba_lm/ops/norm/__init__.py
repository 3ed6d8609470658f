"""Root-mean-square normalisation, plain or gated over groups."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.norm.reference import gated_norm_reference, norm_reference

NORM = Op(
    "norm",
    (
        kernels("norm", "norm_triton"),
        Implementation("reference", norm_reference),
    ),
)
GATED_NORM = Op(
    "gated_norm",
    (
        kernels("norm", "gated_norm_triton"),
        Implementation("reference", gated_norm_reference),
    ),
)


def norm(x_TD, weight_D, eps: float):
    """weight * x / rms(x) over the last dimension; float32 inside, x's dtype outside. Source: arXiv 1910.07467."""
    return NORM(x_TD.device)(x_TD, weight_D, eps)


def gated_norm(y_TD, z_TD, weight_D, eps: float, groups: int):
    """RMSNorm of y * SiLU(z), each of ``groups`` equal parts of D by its own rms (gate first, then norm).

    y_TD may be float32 while z_TD has the model's dtype; the result has z's dtype. Source: Mamba-2 (arXiv 2405.21060), section 7.
    """
    if y_TD.shape[-1] % groups:
        raise ValueError(f"width {y_TD.shape[-1]} does not divide into {groups} groups")
    return GATED_NORM(y_TD.device)(y_TD, z_TD, weight_D, eps, groups)
