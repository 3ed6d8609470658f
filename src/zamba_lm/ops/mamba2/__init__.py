"""What a Mamba-2 mixer does between its two projections: convolution, SSD, gated norm, as one step of a training pass."""

from zamba_lm.ops.dispatch import Implementation, Op, forced
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.linear import Normed
from zamba_lm.ops.mamba2.reference import mamba2_mixer_reference, mamba2_reference
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.step.reference import NO_LIMIT

MAMBA2 = Op(
    "mamba2",
    (
        kernels("mamba2", "mamba2_triton"),
        Implementation("reference", mamba2_reference),
    ),
)
MAMBA2_MIXER = Op(
    "mamba2_mixer",
    (
        kernels("mamba2", "mamba2_mixer_triton"),
        Implementation("reference", mamba2_mixer_reference),
    ),
)
PARTS = ("conv", "ssd", "gated_norm")


def mamba2(
    h_TE,
    conv_weight_CK,
    conv_bias_C,
    dt_bias_H,
    A_log_H,
    D_H,
    norm_weight_I,
    packing: Packing,
    *,
    groups: int,
    eps: float,
    dt_limit: tuple[float, float] = NO_LIMIT,
):
    """(T, I) of rows h = [z | x | B | C | dt]: the gated norm of what SSD makes of SiLU(conv([x | B | C])), each sequence afresh.

    h_TE: float32, bfloat16 or float16, E = I + C + H with C = I + 2 groups N; rows may lie in something wider. The other tensors:
    the mixer's parameters, any of these dtypes; recurrence, norms and decays are computed in float32. The result has h's dtype.
    Differentiable in everything. Source: Mamba-2 (arXiv 2405.21060), section 7.
    """
    parameters = (conv_weight_CK, conv_bias_C, dt_bias_H, A_log_H, D_H, norm_weight_I)
    _check(h_TE, packing, groups, *parameters)
    return mamba2_by(h_TE, *parameters, packing, groups, eps, dt_limit)


def mamba2_by(h_TE, *given):
    """``mamba2`` without its checks, by the table."""
    return _of(MAMBA2, PARTS, mamba2_reference, h_TE.device)(h_TE, *given)


def mamba2_mixer(
    x_TD,
    norm: Normed,
    in_weight_ED,
    out_weight_DI,
    residual_TD,
    conv_weight_CK,
    conv_bias_C,
    dt_bias_H,
    A_log_H,
    D_H,
    norm_weight_I,
    packing: Packing,
    *,
    groups: int,
    eps: float,
    dt_limit: tuple[float, float] = NO_LIMIT,
):
    """The whole mixer: residual + mamba2(norm(x) in^T) out^T, (T, D) in the residual's dtype; ``mamba2`` says the rest.

    Products are multiplied in the weights' dtype, or autocast's. x and residual may be one tensor.
    """
    inside = (conv_weight_CK, conv_bias_C, dt_bias_H, A_log_H, D_H, norm_weight_I, packing, groups, eps, dt_limit)
    run = _of(MAMBA2_MIXER, ("linear", "mamba2", *PARTS), mamba2_mixer_reference, x_TD.device)
    return run(x_TD, norm, in_weight_ED, out_weight_DI, residual_TD, *inside)


def _of(op: Op, parts, by_parts, device):
    """The implementation to run: the parts one by one where somebody forced another one of a part, and none of the whole."""
    choices = forced()
    chosen = op.name not in choices and any(choices.get(part, "triton") != "triton" for part in parts)
    return by_parts if chosen else op(device)


def _check(h_TE, packing, groups, conv_weight, conv_bias, dt_bias, A_log, D, norm_weight):
    I, H, C = len(norm_weight), len(D), len(conv_weight)  # noqa: E741
    if h_TE.shape != (packing.total, I + C + H) or (C - I) % (2 * groups) or I % H or I % groups or H % groups:
        raise ValueError(f"h {tuple(h_TE.shape)} does not fit {packing}, {H} heads, {C} convolved channels, width {I}")
