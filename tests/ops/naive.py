"""The definitions of the recurrent ops, one token after another in float64: what every implementation is held against.

Each function takes one sequence. ``each`` applies one to every sequence of a packed batch.
"""

import torch


def conv(x_TC, weight_CK, bias_C, window_KC=None):
    """SiLU of a causal depthwise convolution; also the last K - 1 inputs."""
    x_TC, weight_CK, bias_C = x_TC.double(), weight_CK.double(), bias_C.double()
    C, K = weight_CK.shape
    before = torch.zeros(K - 1, C, dtype=torch.float64) if window_KC is None else window_KC.double()
    seen = [*before, *x_TC]
    y = [bias_C + sum(weight_CK[:, k] * seen[t + k] for k in range(K)) for t in range(len(x_TC))]
    y_TC = torch.stack(y)
    return y_TC * torch.sigmoid(y_TC), torch.stack(seen[len(x_TC) :])


def ssd(x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, state_HPN=None):
    """Mamba-2's recurrence; also the last state."""
    x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H = (v.double() for v in (x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H))
    (_, H, P), (_, G, N) = x_THP.shape, B_TGN.shape
    group = [h // (H // G) for h in range(H)]
    h_HPN = torch.zeros(H, P, N, dtype=torch.float64) if state_HPN is None else state_HPN.double()
    y = []
    for x_HP, dt_H, B_GN, C_GN in zip(x_THP, dt_TH, B_TGN, C_TGN, strict=True):
        h_HPN = torch.exp(dt_H * A_H)[:, None, None] * h_HPN + (dt_H[:, None] * x_HP)[:, :, None] * B_GN[group][:, None]
        y.append(torch.einsum("hpn,hn->hp", h_HPN, C_GN[group]) + D_H[:, None] * x_HP)
    return torch.stack(y), h_HPN


def scan(x_THP, dt_THP, A_HPN, B_THN, C_THN, D_HP, state_HPN=None):
    """Mamba-1's recurrence; also the last state."""
    x_THP, dt_THP, A_HPN, B_THN, C_THN, D_HP = (v.double() for v in (x_THP, dt_THP, A_HPN, B_THN, C_THN, D_HP))
    h_HPN = torch.zeros_like(A_HPN) if state_HPN is None else state_HPN.double()
    y = []
    for x_HP, dt_HP, B_HN, C_HN in zip(x_THP, dt_THP, B_THN, C_THN, strict=True):
        h_HPN = torch.exp(dt_HP[:, :, None] * A_HPN) * h_HPN + (dt_HP * x_HP)[:, :, None] * B_HN[:, None]
        y.append(torch.einsum("hpn,hn->hp", h_HPN, C_HN) + D_HP * x_HP)
    return torch.stack(y), h_HPN


def attention(q_THd, k_UHd, v_UHd, scale):
    """Causal attention of the last T of U tokens over all of them."""
    q_THd, k_UHd, v_UHd = q_THd.double(), k_UHd.double(), v_UHd.double()
    past = len(k_UHd) - len(q_THd)
    y = []
    for t, q_Hd in enumerate(q_THd):
        seen = past + t + 1
        scores_UH = scale * (k_UHd[:seen] * q_Hd).sum(-1)
        weights_UH = torch.exp(scores_UH - scores_UH.max(0).values)
        y.append((weights_UH[..., None] * v_UHd[:seen]).sum(0) / weights_UH.sum(0)[:, None])
    return torch.stack(y)


def each(function, lengths, packed, states=None):
    """``function`` on every sequence alone: outputs packed again, and the states after them stacked."""
    parts = list(zip(*(v.split(tuple(lengths)) for v in packed), strict=True))
    results = [function(*part, *(() if states is None else (states[s],))) for s, part in enumerate(parts)]
    return torch.cat([y for y, _ in results]), torch.stack([after for _, after in results])
