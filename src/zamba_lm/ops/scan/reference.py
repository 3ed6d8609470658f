"""The selective scan in plain torch: decays and inputs for a few tokens at once, then one multiply-add a token.

Only CHUNK tokens of (H, P, N) intermediates exist at a time, never the whole sequence's. Where gradients are wanted, the state
before each chunk is kept and the rest is computed again on the way back.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from zamba_lm.ops.packing import Packing, entries, over_runs, put_back
from zamba_lm.ops.step.reference import time_step

CHUNK = 16


def scan_reference(
    x_THP,
    dt_THP,
    A_HPN,
    B_THN,
    C_THN,
    D_HP,
    packing: Packing,
    state_SHPN=None,
    z_THP=None,
    dt_bias_HP=None,
    dt_limit=None,
    slots_S=None,
    in_place=False,
):
    if dt_bias_HP is not None:
        dt_THP = time_step(dt_THP, dt_bias_HP, dt_limit)
    before_SHPN = entries(state_SHPN, slots_S).float() if in_place else state_SHPN
    y_THP, after_SHPN = over_runs(packing, partial(_rows, A_HPN, D_HP), (x_THP, dt_THP, B_THN, C_THN), (before_SHPN,))
    if z_THP is not None:
        y_THP = (y_THP.float() * F.silu(z_THP.float())).to(y_THP.dtype)
    return y_THP, put_back(state_SHPN, after_SHPN, slots_S) if in_place else after_SHPN


def _rows(A_HPN, D_HP, x_BTHP, dt_BTHP, B_BTHN, C_BTHN, state_BHPN):
    if state_BHPN is None:
        state_BHPN = x_BTHP.new_zeros(x_BTHP.shape[0], *A_HPN.shape, dtype=torch.float32)
    outputs = []
    for part in zip(*(v.split(CHUNK, dim=1) for v in (x_BTHP, dt_BTHP, B_BTHN, C_BTHN)), strict=True):
        inputs = (A_HPN, D_HP, *part, state_BHPN)
        if torch.is_grad_enabled() and any(v.requires_grad for v in inputs):
            y_BTHP, state_BHPN = checkpoint(_chunk, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            y_BTHP, state_BHPN = _chunk(*inputs)
        outputs.append(y_BTHP)
    return torch.cat(outputs, dim=1), state_BHPN


def _chunk(A_HPN, D_HP, x_BTHP, dt_BTHP, B_BTHN, C_BTHN, state_BHPN):
    x, dt, Bm, Cm = (v.float() for v in (x_BTHP, dt_BTHP, B_BTHN, C_BTHN))
    states = _states(A_HPN, x, dt, Bm, state_BHPN)
    y_BTHP = (states @ Cm[..., None]).squeeze(-1) + x * D_HP
    return y_BTHP.to(x_BTHP.dtype), states[:, -1].clone()  # a state of its own, or it would keep all of the chunk's


def _states(A_HPN, x, dt, Bm, state_BHPN):
    """States after each token of a chunk (B, t, H, P, N)."""
    decay = (dt[..., None] * A_HPN).exp_()
    add = (dt * x)[..., None] * Bm[..., None, :]
    if torch.is_grad_enabled() and (decay.requires_grad or add.requires_grad or state_BHPN.requires_grad):
        return _states_with_gradient(decay, add, state_BHPN)
    states = add  # filled in place: entry t becomes the state after token t
    for t in range(x.shape[1]):
        states[:, t].addcmul_(decay[:, t], state_BHPN)
        state_BHPN = states[:, t]
    return states


def _states_with_gradient(decay, add, state_BHPN):
    states = []
    for add_BHPN, decay_BHPN in zip(add.unbind(1), decay.unbind(1), strict=True):
        state_BHPN = torch.addcmul(add_BHPN, decay_BHPN, state_BHPN)
        states.append(state_BHPN)
    return torch.stack(states, dim=1)
