"""Launchers of the step kernels. Nothing here waits for the device, so all of it can be captured in a CUDA graph."""

import torch
import triton

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.linear import Squares, Unmade, made
from zamba_lm.ops.linear.triton import convolved
from zamba_lm.ops.step.reference import NO_LIMIT
from zamba_lm.ops.step.triton.configs import (
    MAMBA1_BY_HAND,
    MAMBA1_DT,
    MAMBA1_LOW,
    MAMBA1_PRODUCTS,
    MAMBA1_TOKEN,
    MAMBA1_X,
    MAMBA2,
    MAMBA2_ALONE,
    STATE,
)
from zamba_lm.ops.step.triton.conv import conv_token
from zamba_lm.ops.step.triton.mamba1 import mamba1_low, mamba1_state, mamba1_token
from zamba_lm.ops.step.triton.mamba2 import mamba2_state, mamba2_token
from zamba_lm.ops.step.triton.product import product

WIDE = (torch.bfloat16, torch.float32)  # hold what no rms has tamed yet
FETCHING_ROWS = 8  # up to here programs are few enough that what they ask for early is what they wait for
_arrivals: dict[tuple[torch.device, int], torch.Tensor] = {}


def mamba2_step_triton(h_SE, window_SKC, state_SHPN, constants, groups, dt_limit, slots_S=None, early=False, norm=None):
    _laid_out(window_SKC, state_SHPN, constants)
    how = window_SKC, state_SHPN, constants, groups, dt_limit, slots_S, early
    if len(h_SE) > MAMBA2_ALONE:
        begun = norm if norm is not None and norm.groups == 1 and norm.weight_I.dtype in WIDE else None
        y, sums = _mamba2_many(h_SE, *how, begun)
        left = norm if begun is None else Squares(sums, y.shape[1], norm.eps)
    else:
        y, left = _mamba2_few(_rows(made(h_SE)), *how), norm
    return y if norm is None else (y, left)


def _mamba2_few(h_SE, window_SKC, state_SHPN, constants, groups, dt_limit, slots_S, early):
    """One kernel."""
    S, (_, H, P, N) = len(h_SE), state_SHPN.shape
    config = MAMBA2
    block_n = triton.next_power_of_2(N)
    block_i = min(max(config.tile // block_n, 1), triton.next_power_of_2(H * P // groups))
    y = torch.empty(S, H * P, dtype=torch.float32, device=h_SE.device)
    launch(
        mamba2_token,
        (groups * triton.cdiv(H * P // groups, block_i), S),
        *(y, h_SE, window_SKC, state_SHPN, slots_S, _counters(window_SKC, S * groups), *constants),
        *(h_SE.stride(0), *window_SKC.stride()[:2], state_SHPN.stride(0), *dt_limit),
        H=H,
        P=P,
        N=N,
        G=groups,
        K=window_SKC.shape[1] + 1,
        SLOTS=slots_S is not None,
        LIMITED=tuple(dt_limit) != NO_LIMIT,
        BLOCK_I=block_i,
        BLOCK_N=block_n,
        BLOCK_K=triton.next_power_of_2(window_SKC.shape[1] + 1),
        FETCH=_can_fetch(S, window_SKC, state_SHPN, N, block_i, H * P // groups),
        EARLY=early,
        num_warps=config.warps,
        device=h_SE.device,
        pdl=True,
    )
    return y


def _mamba2_many(h_SE, window_SKC, state_SHPN, constants, groups, dt_limit, slots_S, early, norm):
    """Two kernels: the convolution, which may be part of the input projection's, and the recurrence, which then has little to do
    but move the state. With a norm, y times its weight, rounded, and sums of squares of what it was."""
    S, (_, H, P, N) = len(h_SE), state_SHPN.shape
    conv_weight_CK, conv_bias_C, dt_bias_H, A_H, D_H = constants
    conv = window_SKC, slots_S, conv_weight_CK, conv_bias_C
    both = convolved(h_SE, H * P, *conv, early) if type(h_SE) is Unmade else None
    if both is None:
        h_SE = _rows(made(h_SE))
        both = h_SE, conv_token(h_SE[:, H * P : h_SE.shape[1] - H], *conv, torch.float32, early)
    h_SE, xBC = both
    block_p = _channels(state_SHPN)
    gain = None if norm is None else norm.weight_I
    y = torch.empty(S, H * P, dtype=torch.float32 if gain is None else gain.dtype, device=h_SE.device)
    sums = None if gain is None else torch.empty(S, H * triton.cdiv(P, block_p), dtype=torch.float32, device=h_SE.device)
    launch(
        mamba2_state,
        (triton.cdiv(P, block_p), H, S),
        *(y, h_SE, xBC, state_SHPN, slots_S, dt_bias_H, A_H, D_H, gain, sums, h_SE.stride(0), state_SHPN.stride(0), *dt_limit),
        H=H,
        P=P,
        N=N,
        G=groups,
        LIMITED=tuple(dt_limit) != NO_LIMIT,
        BLOCK_P=block_p,
        BLOCK_N=triton.next_power_of_2(N),
        SLOTS=slots_S is not None,
        NORMED=gain is not None,
        EARLY=early,
        num_warps=STATE[1],
        device=h_SE.device,
        pdl=True,
    )
    return y, sums


def mamba1_step_triton(h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit, slots_S=None, early=False):
    _laid_out(window_SKC, state_SHPN, constants)
    h_S2I = _rows(h_S2I)
    few = len(h_S2I) <= MAMBA1_BY_HAND
    run = _mamba1_few if few else _mamba1_many
    return run(h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit, slots_S, early)


def _mamba1_few(h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit, slots_S, early):
    S, (_, H, P, N), R = len(h_S2I), state_SHPN.shape, dt_proj_HPR.shape[-1]
    block_r, block_p, low_warps = MAMBA1_LOW
    RN, splits, device = R + 2 * N, triton.cdiv(P, block_p), h_S2I.device
    low = torch.empty(splits, S, H, RN, dtype=torch.float32, device=device)
    y = torch.empty(S, H * P, dtype=h_S2I.dtype, device=device)
    strides = (S, h_S2I.stride(0), *window_SKC.stride()[:2])
    conv_weight_CK, conv_bias_C, dt_bias_HP, A_HPN, D_HP = constants
    shared = {"H": H, "P": P, "K": window_SKC.shape[1] + 1, "SLOTS": slots_S is not None, "device": device, "pdl": True}
    launch(
        mamba1_low,
        (triton.cdiv(RN, block_r), splits, H * S),
        *(low, h_S2I, window_SKC, slots_S, x_proj_HRP.contiguous(), conv_weight_CK, conv_bias_C, *strides),
        RN=RN,
        BLOCK_R=block_r,
        BLOCK_P=block_p,
        FETCH=_can_fetch(S, window_SKC, state_SHPN, block_p, P),
        EARLY=early,
        num_warps=low_warps,
        **shared,
    )
    block_p, warps = MAMBA1_TOKEN
    launch(
        mamba1_token,
        (triton.cdiv(P, block_p), H, S),
        *(y, h_S2I, window_SKC, state_SHPN, slots_S, low, dt_proj_HPR.contiguous()),
        *(conv_weight_CK, conv_bias_C, dt_bias_HP, A_HPN, D_HP, *strides, state_SHPN.stride(0), *dt_limit),
        N=N,
        R=R,
        SPLITS=splits,
        LIMITED=tuple(dt_limit) != NO_LIMIT,
        BLOCK_P=block_p,
        BLOCK_R=triton.next_power_of_2(R),
        BLOCK_N=triton.next_power_of_2(N),
        FETCH=_can_fetch(S, window_SKC, state_SHPN, block_p, P),
        EARLY=early,
        num_warps=warps,
        **shared,
    )
    return y


def _mamba1_many(h_S2I, window_SKC, state_SHPN, constants, x_proj_HRP, dt_proj_HPR, dt_limit, slots_S, early):
    S, (_, H, P, N), R = len(h_S2I), state_SHPN.shape, dt_proj_HPR.shape[-1]
    conv_weight_CK, conv_bias_C, dt_bias_HP, A_HPN, D_HP = constants
    x_SI = conv_token(h_S2I[:, : H * P], window_SKC, slots_S, conv_weight_CK, conv_bias_C, h_S2I.dtype, early)
    y = torch.empty(S, H * P, dtype=h_S2I.dtype, device=h_S2I.device)
    x_HSP = x_SI.view(S, H, P).transpose(0, 1)
    if S <= MAMBA1_PRODUCTS:
        arrivals = _counters(window_SKC, H * (R + 2 * N + P))
        low_HSR = product(x_HSP, x_proj_HRP.contiguous(), MAMBA1_X, arrivals)
        dt_HSP = product(low_HSR[:, :, :R], dt_proj_HPR.contiguous(), MAMBA1_DT, arrivals)
    else:
        low_HSR = torch.bmm(x_HSP, x_proj_HRP.transpose(1, 2))
        dt_HSP = torch.bmm(low_HSR[:, :, :R], dt_proj_HPR.transpose(1, 2))
    block_p = _channels(state_SHPN)
    launch(
        mamba1_state,
        (triton.cdiv(P, block_p), H, S),
        *(y, x_SI, h_S2I[:, H * P :], state_SHPN, slots_S, low_HSR, dt_HSP, dt_bias_HP, A_HPN, D_HP),
        *(S, h_S2I.stride(0), state_SHPN.stride(0), *dt_limit),
        H=H,
        P=P,
        N=N,
        R=R,
        LIMITED=tuple(dt_limit) != NO_LIMIT,
        BLOCK_P=block_p,
        BLOCK_N=triton.next_power_of_2(N),
        SLOTS=slots_S is not None,
        EARLY=early,
        num_warps=STATE[1],
        device=h_S2I.device,
        pdl=True,
    )
    return y


def _channels(state) -> int:
    """Channels of a head that a program of the recurrence takes."""
    _, _, P, N = state.shape
    return min(max(1, STATE[0] // (triton.next_power_of_2(N) * state.element_size())), triton.next_power_of_2(P))


def _counters(window, n):
    """Zeros that the programs of one step count themselves with and leave as zeros. Windows of one storage share them: steps on
    it follow one another anyway. They are kept for good, since a CUDA graph may hold their address; those made while one is
    captured are its own, as nothing fills them before it runs."""
    key = (window.device, window.untyped_storage().data_ptr())
    known = _arrivals.get(key)
    if known is None or len(known) < n:
        made = torch.zeros(max(n, 1024), dtype=torch.int32, device=window.device)
        if window.is_cuda and torch.cuda.is_current_stream_capturing():
            return made
        _kept.append(known)
        known = _arrivals[key] = made
    return known


_kept: list[torch.Tensor | None] = []  # counters that became too few for newer calls


def _can_fetch(S, window, state, *pieces):
    """Whether to ask for memory early: where few programs wait, and all starts and ends are multiples of 16 bytes, as the bulk
    fetch wants them. ``pieces``: numbers of channels that windows are cut into."""
    starts = [window.data_ptr(), state.data_ptr()]
    starts += [n * window.element_size() for n in (*window.stride()[:2], *pieces)]
    starts += [n * state.element_size() for n in (state.stride(0), state.shape[-1])]
    return S <= FETCHING_ROWS and all(n % 16 == 0 for n in starts)


def _laid_out(window, state, constants):
    """Inside a row, and inside a slot's state, numbers lie side by side."""
    if window.stride(-1) != 1 or not state[0].is_contiguous():
        strides = f"window {window.stride()}, state {state.stride()}"
        raise ValueError(f"a step needs channels side by side and each slot's state contiguous; strides are {strides}")
    if any(c.dtype != torch.float32 or not c.is_contiguous() for c in constants):
        raise ValueError(f"constants are {[c.dtype for c in constants]}, expected contiguous float32")


def _rows(h):
    """Rows as the kernels take them, with any stride between them."""
    if h.stride(-1) != 1:
        raise ValueError(f"a step needs channels side by side; strides of h are {h.stride()}")
    if h.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"h is {h.dtype}, expected float32, bfloat16 or float16")
    return h
