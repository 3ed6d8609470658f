"""One token for every sequence, in place: the recurrence of both families, and all of a mixer between its two projections."""

import torch

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.step.mamba1 import mamba1_step_reference
from zamba_lm.ops.step.mamba2 import mamba2_step_reference
from zamba_lm.ops.step.reference import NO_LIMIT, step_reference, time_step

__all__ = ["MAMBA1_STEP", "MAMBA2_STEP", "NO_LIMIT", "STEP", "mamba1_step", "mamba2_step", "step", "time_step"]

STEP = Op("step", (Implementation("reference", step_reference),))
MAMBA1_STEP = Op(
    "mamba1_step",
    (
        kernels("step", "mamba1_step_triton"),
        Implementation("reference", mamba1_step_reference),
    ),
)
MAMBA2_STEP = Op(
    "mamba2_step",
    (
        kernels("step", "mamba2_step_triton"),
        Implementation("reference", mamba2_step_reference),
    ),
)

STATE_DTYPES = (torch.float32, torch.bfloat16)


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


def mamba2_step(
    h_SE, window_SKC, state_SHPN, constants, groups: int, dt_limit: tuple[float, float], slots_S=None, early=False, norm=None
):
    """What a Mamba-2 mixer does to one token between its input projection and its norm: convolution, recurrence, gate.

    h_SE: rows [z | x | B | C | dt] of the input projection, or that one ``Unmade`` (``ops.linear``). window_SKC: the last K - 1
    inputs of the convolution; state_SHPN: float32, or bfloat16 to halve it. Both are **updated in place**: row s works on entry
    ``slots_S[s]`` of them (int32, on their device; rows that share a slot spoil it and their own results, nothing else), or on
    entry s where slots_S is None. constants: (conv weight (C, K), conv bias (C), dt bias (H), A (H), D (H)), float32. Returns y *
    SiLU(z), (S, H P) in **float32**, for the norm that follows: nothing is rounded on the way. norm: None, or that norm, a
    ``Normed``; then the result is a pair, y and what is left of the norm: all of it, or ``Squares`` of a y that is multiplied by
    the norm's weight and rounded.

    early: window, state and slots are older than the running chain of dependent kernels (see ``ops.gpu.launch``), so they may be
    read before the kernel that makes h has ended. A caller says so when each layer's step runs once a chain, and something that
    waits for all, such as torch's own kernels, stands between one token and the next.
    """
    _, H, P, N = state_SHPN.shape
    _fits(h_SE, 2 * H * P + 2 * groups * N + H, window_SKC, H * P + 2 * groups * N, state_SHPN, slots_S)
    return MAMBA2_STEP(h_SE.device)(h_SE, window_SKC, state_SHPN, constants, groups, dt_limit, slots_S, early, norm)


def mamba1_step(
    h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit: tuple[float, float], slots_S=None, early=False
):
    """What a Mamba-1 mixer does to one token between its two projections.

    Convolution and SiLU, each head's [dt | B | C] by ``x_proj`` and its time steps by ``dt_proj``, recurrence, D x, gate.
    h_S2I: rows [x | z] of the input projection. x_proj_HRP: (H, R + 2 N, P); dt_proj_HPR: (H, P, R); both in h's dtype.
    constants: (conv weight (C, K), conv bias (C), dt bias (H, P), A (H, P, N), D (H, P)), float32. Window, state, slots, early as
    in ``mamba2_step``. Returns (S, H P) in h's dtype; arithmetic in float32 but for the operands of the two products.
    """
    _, H, P, N = state_SHPN.shape
    _fits(h_S2I, 2 * H * P, window_SKC, H * P, state_SHPN, slots_S)
    R = dt_proj_HPR.shape[-1]
    if x_proj_HRP.shape != (H, R + 2 * N, P) or dt_proj_HPR.shape != (H, P, R):
        projections = f"x_proj {tuple(x_proj_HRP.shape)} and dt_proj {tuple(dt_proj_HPR.shape)}"
        raise ValueError(f"{projections} do not fit state {tuple(state_SHPN.shape)}")
    args = h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit, slots_S, early
    return MAMBA1_STEP(h_S2I.device)(*args)


def _fits(h, width, window, channels, state, slots):
    S, n = len(h), len(state)
    if h.shape != (S, width) or len(window) != n or window.shape[2:] != (channels,) or (slots is None and n != S):
        raise ValueError(f"h {tuple(h.shape)} and window {tuple(window.shape)} do not fit state {tuple(state.shape)}")
    if slots is not None and slots.shape != (S,):
        raise ValueError(f"slots are {tuple(slots.shape)}, expected {(S,)}, one for each row")
    if state.dtype not in STATE_DTYPES:
        raise ValueError(f"state is {state.dtype}, expected float32 or bfloat16")
