"""SSD in plain torch: inside a chunk a masked matrix product, between chunks a small recurrence.

Numbers in comments follow the algorithm of section 6 of the paper: (1) inside chunks, (2) what a chunk adds to the state,
(3) states between chunks, (4) what a carried state adds inside a chunk.

Long sequences are cut into spans that hand their state on, so memory does not grow with length.
"""

from functools import partial

import torch
import torch.nn.functional as F

from zamba_lm.ops.packing import Packing, entries, over_runs, put_back
from zamba_lm.ops.step.reference import NO_LIMIT, time_step

CHUNK = 64  # tokens a matrix product sees at once
SPAN = 2048  # tokens a row holds intermediates for at once


def ssd_reference(
    x_THP,
    dt_TH,
    A_H,
    B_TGN,
    C_TGN,
    D_H,
    packing: Packing,
    state_SHPN=None,
    chunk_states=0,
    dt_bias_H=None,
    dt_limit=NO_LIMIT,
    slots_S=None,
    in_place=False,
    *,
    chunk=CHUNK,
    span=SPAN,
    product_dtype=torch.float32,
):
    """``product_dtype``: what the matrix products read (they add in float32); decays are float32 always."""
    if dt_bias_H is not None:
        dt_TH = time_step(dt_TH, dt_bias_H, dt_limit)
    rows = partial(_rows, A_H, D_H, chunk_states, chunk, span, product_dtype)
    packed = (x_THP, dt_TH, B_TGN, C_TGN)
    if not in_place:
        return over_runs(packing, rows, packed, (state_SHPN,))
    y_THP, after_SHPN, *kept = over_runs(packing, rows, packed, (entries(state_SHPN, slots_S).float(),))
    return y_THP, put_back(state_SHPN, after_SHPN, slots_S), *kept


def _rows(A_H, D_H, every, chunk, span, product_dtype, x_BTHP, dt_BTH, B_BTGN, C_BTGN, state_BHPN):
    B, T, H, P = x_BTHP.shape
    if state_BHPN is None:
        state_BHPN = x_BTHP.new_zeros(B, H, P, B_BTGN.shape[-1], dtype=torch.float32)
    outputs, kept = [], []
    for start in range(0, T, span):
        part = [v[:, start : start + span] for v in (x_BTHP, dt_BTH, B_BTGN, C_BTGN)]
        y_BTHP, borders_BZHPN = _span(A_H, min(chunk, part[0].shape[1]), product_dtype, *part, state_BHPN)
        outputs.append(torch.addcmul(y_BTHP, part[0].float(), D_H[:, None]).to(x_BTHP.dtype))
        state_BHPN = borders_BZHPN[:, -1].clone()  # free of its span's others
        if every:
            ends = [min(start + (z + 1) * chunk, T) for z in range(borders_BZHPN.shape[1])]
            kept.append(borders_BZHPN[:, [z for z, end in enumerate(ends) if end % every == 0 or end == T]].detach())
    y_BTHP = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return (y_BTHP, state_BHPN, torch.cat(kept, dim=1).flatten(0, 1)) if every else (y_BTHP, state_BHPN)


def _span(A_H, Q, product_dtype, x_BTHP, dt_BTH, B_BTGN, C_BTGN, state_BHPN):
    """All chunks of Q tokens at once: outputs, and the state after every chunk. Padding tokens have dt = 0: they neither decay
    nor add."""
    T, G = x_BTHP.shape[1], B_BTGN.shape[2]
    dt, x, Bm, Cm = (_chunked(v, Q) for v in (dt_BTH, x_BTHP, B_BTGN, C_BTGN))  # b c q ...
    steps = dt * A_H  # b c q h: log of each token's decay
    since = steps.cumsum(2)  # ... and of the decay since the chunk began
    xdt = x.float() * dt[..., None]
    left = _after(steps).exp()[..., None]  # decay from each token to the chunk's end
    adds = _per_group(xdt * left, G).to(product_dtype).transpose(-1, -2) @ _groups_first(Bm).to(product_dtype)  # (2) b c g hp n
    borders = _between(since[:, :, -1], adds.unflatten(3, (-1, x.shape[-1])).flatten(2, 3).float(), state_BHPN)  # (3)
    inside = _inside(steps, xdt, Bm, Cm, product_dtype)  # (1) b c h q p
    carried = _groups_first(Cm).to(product_dtype) @ _state_per_group(borders[:, :-1], G).to(product_dtype)  # (4) b c g q hp
    y = inside.permute(0, 1, 3, 2, 4) + _tokens_first(carried, x.shape[-1]).float() * since.exp()[..., None]
    return y.flatten(1, 2)[:, :T], borders[:, 1:]


def _chunked(v_BT, Q):
    short = -v_BT.shape[1] % Q
    if short:
        v_BT = F.pad(v_BT, (0, 0) * (v_BT.dim() - 2) + (0, short))
    return v_BT.unflatten(1, (-1, Q))


def _after(steps):
    """Sums of ``steps`` (b c q h) over the tokens behind each one."""
    return F.pad(steps[:, :, 1:], (0, 0, 0, 1)).flip(2).cumsum(2).flip(2)


def _decays(steps):
    """exp of the sum of ``steps`` over (j, i], zero for j > i: (..., q) gives (..., i, j).

    Differences of one running sum forget small steps behind large ones (in float32, 3000.001 - 3000 is 0.0009766), so what
    rounding took from the running sum goes along. It carries no gradient: in exact arithmetic it is zero.
    """
    sums = steps.cumsum(-1)
    lost = (steps - sums.diff(dim=-1, prepend=torch.zeros_like(sums[..., :1]))).cumsum(-1).detach()
    future = torch.ones(*sums.shape[-1:] * 2, dtype=torch.bool, device=sums.device).triu(1)
    logs = (sums[..., :, None] - sums[..., None, :]).add_(lost[..., :, None]).sub_(lost[..., None, :])
    return logs.masked_fill_(future, -torch.inf).exp_()


def _inside(steps, xdt, Bm, Cm, product_dtype):
    """(1): scores C_i . B_j, decayed from j to i and zero for j > i, times the inputs."""
    H, G = steps.shape[3], Bm.shape[3]
    scores = _groups_first(Cm).to(product_dtype) @ _groups_first(Bm).to(product_dtype).transpose(-1, -2)  # b c g i j
    mask = _decays(steps.transpose(2, 3))  # b c h i j
    weights = (mask.unflatten(2, (G, H // G)) * scores.unsqueeze(3)).flatten(2, 3)
    return (weights.to(product_dtype) @ xdt.permute(0, 1, 3, 2, 4).to(product_dtype)).float()


def _between(total, adds, state):
    """(3): the state before the first chunk and after every one; ``total`` (b c h) is each chunk's whole log decay."""
    mask = _decays(F.pad(total, (0, 0, 1, 0)).transpose(1, 2))  # b h z c: to boundary z, from source c
    sources = torch.cat([state[:, None], adds], dim=1).transpose(1, 2)  # b h c p n: source 0 is the start
    return (mask @ sources.flatten(3)).unflatten(3, state.shape[2:]).transpose(1, 2)


def _per_group(v, G):
    """b c q h p -> b c g q (heads of the group x p)."""
    return v.unflatten(3, (G, -1)).permute(0, 1, 3, 2, 4, 5).flatten(4)


def _groups_first(v):
    """b c q g n -> b c g q n."""
    return v.transpose(2, 3)


def _state_per_group(state, G):
    """b c h p n -> b c g n (heads of the group x p)."""
    return state.unflatten(2, (G, -1)).flatten(3, 4).transpose(-1, -2)


def _tokens_first(v, P):
    """b c g q (h p) -> b c q (g h) p."""
    return v.transpose(2, 3).unflatten(-1, (-1, P)).flatten(3, 4)
