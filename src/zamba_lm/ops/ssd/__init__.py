"""The Mamba-2 state-space scan (SSD) over packed sequences, in chunks of matrix products."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd.reference import ssd_reference

SSD = Op("ssd", (Implementation("reference", ssd_reference),))


def ssd(x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, packing: Packing, state_SHPN=None):
    """For each sequence and head: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t.

    x_THP: inputs, any float dtype. dt_TH: time steps > 0, float32 (softplus already applied). A_H: negative decay rates, float32.
    B_TGN, C_TGN: input and output maps, shared by the H / G heads of a group. D_H: skip, float32. state_SHPN: float32 states
    before the sequences, or None for zeros. Returns (y_THP in x's dtype, states after the sequences (S, H, P, N) float32).
    Differentiable. Source: Mamba-2 (arXiv 2405.21060), section 6.
    """
    T, H, P = x_THP.shape
    if T != packing.total or dt_TH.shape != (T, H) or B_TGN.shape != C_TGN.shape or len(B_TGN) != T or H % B_TGN.shape[1]:
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in (("x", x_THP), ("dt", dt_TH), ("B", B_TGN), ("C", C_TGN)))
        raise ValueError(f"{shapes} do not fit {packing}")
    if state_SHPN is not None and state_SHPN.shape != (expected := (len(packing), H, P, B_TGN.shape[2])):
        raise ValueError(f"state is {tuple(state_SHPN.shape)}, expected {expected} for {packing}")
    return SSD(x_THP.device)(x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, packing, state_SHPN)
