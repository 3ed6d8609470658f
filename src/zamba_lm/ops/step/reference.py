"""The time step, the recurrence and the convolution of one token as their definitions, and how a step finds its slots."""

import torch
import torch.nn.functional as F

NO_LIMIT = (0.0, float("inf"))


def time_step(raw, bias, limit: tuple[float, float]):
    """softplus(raw + bias) in float32, clamped to ``limit``. One function for whole passes and single steps, so they agree."""
    dt = F.softplus(raw.float() + bias.float())
    return dt if limit == NO_LIMIT else dt.clamp(*limit)


def step_reference(x_SHP, dt_SHP, A_HPN, B_SGN, C_SGN, D_HP, state_SHPN):
    S, H, P, N = state_SHPN.shape
    G = B_SGN.shape[1]
    x = x_SHP.float()
    state = state_SHPN.view(S, G, H // G, P, N)
    decay = (dt_SHP[..., None] * A_HPN).exp()  # S H P|1 N|1
    state.mul_(decay.unflatten(1, (G, -1))).addcmul_((dt_SHP * x).view(S, G, -1, P, 1), B_SGN.float()[:, :, None, None])
    y_SHP = torch.matmul(state.view(S, G, -1, N), C_SGN.float()[..., None]).view(S, H, P)
    return y_SHP.addcmul_(x, D_HP).to(x_SHP.dtype)


def conv_token(x_SC, window_SKC, weight_CK, bias_C):
    """The convolution and its SiLU for one token, float32; the window moves on by that token, in place."""
    longer_SKC = torch.cat((window_SKC, x_SC[:, None]), 1)
    window_SKC.copy_(longer_SKC[:, 1:])
    return F.silu((longer_SKC * weight_CK.T).sum(1).add_(bias_C))


def on_slots(token, h, window, state, slots_S, *rest):
    """``token(h, window, state, *rest)`` where row s of h works on entry ``slots_S[s]`` of window and state, in place.

    ``token`` writes to what it is given, and wants a float32 state: without slots that is window and state themselves, otherwise
    copies of the entries, which go back afterwards.
    """
    if slots_S is None and state.dtype == torch.float32:
        return token(h, window, state, *rest)
    rows = slice(None) if slots_S is None else slots_S.long()
    own_window, own_state = window[rows], state[rows].float()
    y = token(h, own_window, own_state, *rest)
    window[rows], state[rows] = own_window, own_state.to(state.dtype)
    return y
