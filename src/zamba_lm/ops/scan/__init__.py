"""The Mamba-1 selective scan over packed sequences, heads as groups."""

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.packing import Packing, check_entries
from zamba_lm.ops.scan.reference import scan_reference
from zamba_lm.ops.step.reference import NO_LIMIT

SCAN = Op(
    "scan",
    (
        kernels("scan", "scan_triton"),
        Implementation("reference", scan_reference),
    ),
)


def scan(
    x_THP,
    dt_THP,
    A_HPN,
    B_THN,
    C_THN,
    D_HP,
    packing: Packing,
    state_SHPN=None,
    *,
    z_THP=None,
    dt_bias_HP=None,
    dt_limit: tuple[float, float] = NO_LIMIT,
    slots_S=None,
    in_place: bool = False,
):
    """For each sequence and channel: h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;  y_t = C_t . h_t + D x_t.

    x_THP: inputs, any float dtype. dt_THP: time steps > 0, float32 (softplus already applied), one a channel. A_HPN: negative
    decay rates, float32. B_THN, C_THN: input and output maps of each head. D_HP: skip, float32. state_SHPN: float32 states before
    the sequences, or None for zeros. Returns (y_THP in x's dtype, states after the sequences (S, H, P, N) float32).
    Differentiable. Source: Mamba (arXiv 2312.00752), algorithm 2.

    What stands before and after the scan in a mixer may be done on the way. dt_bias_HP, float32: dt is raw, any float dtype, and
    the time steps are softplus(dt + dt_bias) clamped to ``dt_limit``. z_THP, x's dtype: y is multiplied by SiLU(z).

    in_place: for inference, the states after the sequences overwrite those before, which may then be of any float dtype and
    memory of more sequences than these: sequence s has entry slots_S[s] (int32, on the device), or entry s without slots.
    """
    T, H, P = x_THP.shape
    if T != packing.total or dt_THP.shape != x_THP.shape or B_THN.shape != C_THN.shape or B_THN.shape[:2] != (T, H):
        shapes = ", ".join(f"{name} {tuple(v.shape)}" for name, v in (("x", x_THP), ("dt", dt_THP), ("B", B_THN), ("C", C_THN)))
        raise ValueError(f"{shapes} do not fit {packing}")
    check_entries("state", state_SHPN, (H, P, B_THN.shape[2]), packing, slots_S, in_place)
    if z_THP is not None and z_THP.shape != x_THP.shape:
        raise ValueError(f"z is {tuple(z_THP.shape)}, expected {tuple(x_THP.shape)} as x")
    if dt_bias_HP is None and dt_limit != NO_LIMIT:
        raise ValueError(f"dt_limit {dt_limit} is for raw time steps: give dt_bias too")
    if dt_bias_HP is not None and dt_bias_HP.shape != (H, P):
        raise ValueError(f"dt_bias is {tuple(dt_bias_HP.shape)}, expected {(H, P)}")
    given = (x_THP, dt_THP, A_HPN, B_THN, C_THN, D_HP, packing, state_SHPN, z_THP, dt_bias_HP, dt_limit)
    return SCAN(x_THP.device)(*given, slots_S, in_place) if in_place else SCAN(x_THP.device)(*given)
