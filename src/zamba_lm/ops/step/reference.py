"""The time step and the recurrence as their definitions."""

import torch
import torch.nn.functional as F


def time_step(raw, bias, limit: tuple[float, float]):
    """softplus(raw + bias) in float32, clamped to ``limit``. One function for whole passes and single steps, so they agree."""
    dt = F.softplus(raw.float() + bias.float())
    return dt if limit == (0.0, float("inf")) else dt.clamp(*limit)


def step_reference(x_SHP, dt_SHP, A_HPN, B_SGN, C_SGN, D_HP, state_SHPN):
    S, H, P, N = state_SHPN.shape
    G = B_SGN.shape[1]
    x = x_SHP.float()
    state = state_SHPN.view(S, G, H // G, P, N)
    decay = (dt_SHP[..., None] * A_HPN).exp()  # S H P|1 N|1
    state.mul_(decay.unflatten(1, (G, -1))).addcmul_((dt_SHP * x).view(S, G, -1, P, 1), B_SGN.float()[:, :, None, None])
    y_SHP = torch.matmul(state.view(S, G, -1, N), C_SGN.float()[..., None]).view(S, H, P)
    return y_SHP.addcmul_(x, D_HP).to(x_SHP.dtype)
