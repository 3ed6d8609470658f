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
# Log of the strongest decay. e^-30 is nothing in float32 beside a token's own 1, and what stronger ones lead to, numbers below
# float32's normal range, takes a processor a hundred times as long.
LEAST = -30.0


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
        y_BTHP, borders = _span(A_H, min(chunk, part[0].shape[1]), product_dtype, *part, state_BHPN)
        outputs.append(torch.addcmul(y_BTHP, part[0].float(), D_H[:, None]).to(x_BTHP.dtype))
        state_BHPN = _back(borders[:, -1], P).clone(memory_format=torch.contiguous_format)  # free of its span's others
        if every:
            ends = [min(start + z * chunk, T) for z in range(1, borders.shape[1])]
            kept += [_back(borders[:, z].detach(), P) for z, end in enumerate(ends, 1) if end % every == 0 or end == T]
    y_BTHP = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return (y_BTHP, state_BHPN, torch.stack(kept, dim=1).flatten(0, 1)) if every else (y_BTHP, state_BHPN)


def _span(A_H, Q, product_dtype, x_BTHP, dt_BTH, B_BTGN, C_BTGN, state_BHPN):
    """All chunks of Q tokens at once: outputs, and the state before the first chunk and after every one, b z g n hp. Padding
    tokens have dt = 0: they neither decay nor add."""
    T, G = x_BTHP.shape[1], B_BTGN.shape[2]
    dt, x, Bm, Cm = (_chunked(v, Q) for v in (dt_BTH, x_BTHP, B_BTGN, C_BTGN))  # b c q ...
    steps = dt * A_H  # b c q h: log of each token's decay
    since = steps.cumsum(2).clamp(min=LEAST)  # ... and of the decay since the chunk began
    xdt = x.float() * dt[..., None]
    left = _after(steps).clamp(min=LEAST).exp()[..., None]  # decay from each token to the chunk's end
    Bm, Cm = (v.transpose(2, 3).to(product_dtype) for v in (Bm, Cm))  # b c g q n
    adds = Bm.transpose(-1, -2) @ _per_group(xdt * left, G).to(product_dtype)  # (2) b c g n hp
    borders = _between(since[:, :, -1].exp(), adds.float(), _across(state_BHPN, G))  # (3) b z g n hp
    inside = _inside(steps, xdt, Bm, Cm, product_dtype)  # (1) b c h q p
    carried = Cm @ borders[:, :-1].to(product_dtype)  # (4) b c g q hp
    y = _tokens_first(carried, x.shape[-1]).float() * since.exp()[..., None] + inside.transpose(2, 3)
    return y.flatten(1, 2)[:, :T], borders


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
    rounding took from the running sum goes along. It carries no gradient: in exact arithmetic it is zero. Future decays are
    kept from growing without end before they are dropped.
    """
    sums = steps.cumsum(-1)
    lost = (steps - sums.diff(dim=-1, prepend=torch.zeros_like(sums[..., :1]))).cumsum(-1).detach()
    logs = (sums[..., :, None] - sums[..., None, :]).add_(lost[..., :, None]).sub_(lost[..., None, :])
    return logs.clamp_(LEAST, 0).exp_().tril()


def _inside(steps, xdt, Bm, Cm, product_dtype):
    """(1): scores C_i . B_j, decayed from j to i and zero for j > i, times the inputs."""
    H, G = steps.shape[3], Bm.shape[2]
    scores = Cm @ Bm.transpose(-1, -2)  # b c g i j
    mask = _decays(steps.transpose(2, 3))  # b c h i j
    weights = (mask.unflatten(2, (G, H // G)) * scores.unsqueeze(3)).flatten(2, 3)
    return (weights.to(product_dtype) @ xdt.transpose(2, 3).to(product_dtype)).float()


def _between(decay, adds, state):
    """(3): the state (b g n hp) before the first chunk and after every one, b z g n hp; ``decay`` (b c h): of whole chunks."""
    G, hp = adds.shape[2], adds.shape[4]
    decay = decay.unflatten(2, (G, 1, -1)).repeat_interleave(hp * G // decay.shape[2], dim=-1)  # b c g 1 hp
    borders = [state]
    for z in range(adds.shape[1]):
        borders.append(torch.addcmul(adds[:, z], borders[-1], decay[:, z]))
    return torch.stack(borders, dim=1)


def _per_group(v, G):
    """b c q h p -> b c g q (heads of the group x p)."""
    return v.unflatten(3, (G, -1)).permute(0, 1, 3, 2, 4, 5).flatten(4)


def _across(state, G):
    """b h p n -> b g n (heads of the group x p), as products read it."""
    return state.unflatten(1, (G, -1)).permute(0, 1, 4, 2, 3).flatten(3)


def _back(state, P):
    """b g n (h p) -> b h p n."""
    return state.unflatten(-1, (-1, P)).permute(0, 1, 3, 4, 2).flatten(1, 2)


def _tokens_first(v, P):
    """b c g q (h p) -> b c q (g h) p."""
    return v.transpose(2, 3).unflatten(-1, (-1, P)).flatten(3, 4)
