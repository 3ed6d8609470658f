"""Rotary position embedding, half-split form."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.rope.reference import angles_reference, rope_reference

ROPE = Op(
    "rope",
    (
        kernels("rope", "rope_triton"),
        Implementation("reference", rope_reference),
    ),
)


def angles(positions_T, head_dim: int, base: float):
    """Cosines and sines (T, head_dim / 2) in float32 of position * base^(-2i / head_dim). Source: arXiv 2104.09864."""
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}, RoPE needs an even size")
    return angles_reference(positions_T, head_dim, base)


def rope(x_THd, angles_T):
    """Rotate channel i with channel i + head_dim / 2 by the angles of ``angles``; result in x's dtype."""
    return ROPE(x_THd.device)(x_THd, *angles_T)
