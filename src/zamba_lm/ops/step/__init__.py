"""One token for every sequence, in place: the recurrence of both families, and all of a Mamba-2 mixer between its projections."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.step.mamba2 import mamba2_step_reference
from zamba_lm.ops.step.reference import step_reference, time_step

__all__ = ["MAMBA2_STEP", "STEP", "mamba2_step", "step", "time_step"]

STEP = Op("step", (Implementation("reference", step_reference),))
MAMBA2_STEP = Op("mamba2_step", (Implementation("reference", mamba2_step_reference),))


def step(x_SHP, dt_SHP, A_HPN, B_SGN, C_SGN, D_HP, state_SHPN):
    """h <- exp(dt A) h + dt x B^T;  y = h C + D x, for one token of each of S sequences.

    x_SHP: inputs, any float dtype. dt: float32 (S, H, P) for Mamba-1 or (S, H, 1) for Mamba-2. A: float32 (H, P, N) or (H, 1, 1).
    B_SGN, C_SGN: maps of G groups, H divisible by G. D: float32 (H, P) or (H, 1). state_SHPN: float32, **updated in place**.
    Returns y_SHP in x's dtype. Not differentiable: a whole pass over a sequence is (see ``ssd`` and ``scan``).
    """
    S, H, _, N = state_SHPN.shape
    G = B_SGN.shape[1]
    if state_SHPN.shape[:3] != x_SHP.shape or B_SGN.shape != (S, G, N) or C_SGN.shape != (S, G, N) or H % G:
        shapes = f"x {tuple(x_SHP.shape)}, B {tuple(B_SGN.shape)}, C {tuple(C_SGN.shape)}"
        raise ValueError(f"{shapes} do not fit state {tuple(state_SHPN.shape)}")
    return STEP(x_SHP.device)(x_SHP, dt_SHP, A_HPN, B_SGN, C_SGN, D_HP, state_SHPN)


def mamba2_step(h_SE, window_SKC, state_SHPN, constants, norm_weight_I, groups: int, eps: float, dt_limit: tuple[float, float]):
    """What a Mamba-2 mixer does to one token between its two projections: convolution, recurrence, gate, norm.

    h_SE: rows [z | x | B | C | dt] of the input projection. window_SKC: the last K - 1 inputs of the convolution; state_SHPN:
    float32. Both are **updated in place**. constants: (conv weight (C, K), conv bias (C), dt bias (H), A (H), D (H)), float32.
    norm_weight_I: weight of the norm over ``groups`` parts. Returns (S, H P) in h's dtype; arithmetic in float32. The same
    function as ``conv``, ``step`` and ``gated_norm`` in a row, without rounding in between.
    """
    S, H, P, N = state_SHPN.shape
    if h_SE.shape != (S, 2 * H * P + 2 * groups * N + H) or len(window_SKC) != S:
        raise ValueError(f"h {tuple(h_SE.shape)} and window {tuple(window_SKC.shape)} do not fit state {tuple(state_SHPN.shape)}")
    return MAMBA2_STEP(h_SE.device)(h_SE, window_SKC, state_SHPN, constants, norm_weight_I, groups, eps, dt_limit)
