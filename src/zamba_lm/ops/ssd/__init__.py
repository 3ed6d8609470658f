"""The Mamba-2 state-space scan (SSD) over packed sequences, in chunks of matrix products."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.packing import Packing, check_entries
from zamba_lm.ops.ssd.reference import CHUNK, ssd_reference
from zamba_lm.ops.step.reference import NO_LIMIT

SSD = Op(
    "ssd",
    (
        kernels("ssd", "ssd_triton"),
        Implementation("reference", ssd_reference),
    ),
)


def ssd(
    x_THP,
    dt_TH,
    A_H,
    B_TGN,
    C_TGN,
    D_H,
    packing: Packing,
    state_SHPN=None,
    chunk_states: int = 0,
    dt_bias_H=None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    *,
    slots_S=None,
    in_place: bool = False,
):
    """For each sequence and head: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t.

    x_THP: inputs, any float dtype. dt_TH: time steps > 0, float32 (softplus already applied). A_H: negative decay rates, float32.
    B_TGN, C_TGN: input and output maps, shared by the H / G heads of a group. D_H: skip, float32. state_SHPN: float32 states
    before the sequences, or None for zeros. Returns (y_THP in x's dtype, states after the sequences (S, H, P, N) float32).
    Differentiable. Source: Mamba-2 (arXiv 2405.21060), section 6.

    chunk_states: with n > 0, a multiple of 64, the states after every n tokens of each sequence and after its last one are
    returned as well: (sum over sequences of ceil(length / n), H, P, N) float32, sequence by sequence. They carry no gradient.

    dt_bias_H: with a bias (H), float32, dt is raw, of any float dtype, and the time step is softplus(dt + bias) within dt_limit.

    in_place: for inference, the states after the sequences overwrite those before, which may then be of any float dtype and
    memory of more sequences than these: sequence s has entry slots_S[s] (int32, on the device), or entry s without slots.
    """
    T, H, P = x_THP.shape
    if T != packing.total or dt_TH.shape != (T, H) or B_TGN.shape != C_TGN.shape or len(B_TGN) != T or H % B_TGN.shape[1]:
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in (("x", x_THP), ("dt", dt_TH), ("B", B_TGN), ("C", C_TGN)))
        raise ValueError(f"{shapes} do not fit {packing}")
    check_entries("state", state_SHPN, (H, P, B_TGN.shape[2]), packing, slots_S, in_place)
    if chunk_states < 0 or chunk_states % CHUNK:
        raise ValueError(f"chunk_states is {chunk_states}, expected 0 or a multiple of {CHUNK}")
    given = (x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, packing, state_SHPN, chunk_states, dt_bias_H, dt_limit)
    return SSD(x_THP.device)(*given, slots_S, in_place) if in_place else SSD(x_THP.device)(*given)
