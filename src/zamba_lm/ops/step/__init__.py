"""One token for every sequence: the recurrence of both families, in place."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.step.reference import step_reference

STEP = Op("step", (Implementation("reference", step_reference),))


def step(x_SHP, dt_SHP, A_HPN, B_SGN, C_SGN, D_HP, state_SHPN):
    """h <- exp(dt A) h + dt x B^T;  y = h C + D x, for one token of each of S sequences.

    x_SHP: inputs, any float dtype. dt: float32 (S, H, P) for Mamba-1 or (S, H, 1) for Mamba-2. A: float32 (H, P, N) or (H, 1, 1).
    B_SGN, C_SGN: maps of G groups, H divisible by G. D: float32 (H, P) or (H, 1). state_SHPN: float32, **updated in place**.
    Returns y_SHP in x's dtype. Not differentiable: a whole pass over a sequence is (see ``ssd`` and ``scan``).
    """
    S, H, _, N = state_SHPN.shape
    G = B_SGN.shape[1]
    if state_SHPN.shape[:3] != x_SHP.shape or B_SGN.shape != (S, G, N) or C_SGN.shape != (S, G, N) or H % G:
        raise ValueError(
            f"x {tuple(x_SHP.shape)}, B {tuple(B_SGN.shape)}, C {tuple(C_SGN.shape)} do not fit state {tuple(state_SHPN.shape)}"
        )
    return STEP(x_SHP.device)(x_SHP, dt_SHP, A_HPN, B_SGN, C_SGN, D_HP, state_SHPN)
