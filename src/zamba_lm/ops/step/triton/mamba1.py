"""A Mamba-1 mixer's token. For a row or two: two kernels with the products in them. For more: the recurrence with its gate,
behind the convolution (conv.py) and the two products (product.py, or torch's)."""

import triton
import triton.language as tl

from zamba_lm.ops.step.triton.parts import convolved, fetch_early, load_past, load_taps, shift, silu, time_step


@triton.jit
def mamba1_low(
    low,
    h,
    window,
    slots,
    x_proj,
    conv_weight,
    conv_bias,
    S,
    h_stride,
    window_slot,
    window_row,
    H: tl.constexpr,
    P: tl.constexpr,
    RN: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FETCH: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """low[split, s, head] = x_proj[head] SiLU(conv(x)) over BLOCK_P of the channels: partial sums, in float32.

    Programs: (blocks of rows of x_proj, splits of channels, s and head). The convolution is done again by every block of rows;
    the window is left as it is.
    """
    split, s, head = tl.program_id(1), tl.program_id(2) // H, tl.program_id(2) % H
    r, p = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R), split * BLOCK_P + tl.arange(0, BLOCK_P)
    in_r, in_p, c = r < RN, p < P, head * P + p
    slot = tl.load(slots + s).to(tl.int64) if SLOTS else s.to(tl.int64)
    window += slot * window_slot
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if FETCH and not EARLY and tl.program_id(0) == 0:
            size: tl.constexpr = window.dtype.element_ty.primitive_bitwidth // 8
            for past in tl.static_range(K - 1):
                channels = tl.minimum(BLOCK_P, P - split * BLOCK_P)
                fetch_early(window + past * window_row + head * P + split * BLOCK_P, channels * size)
    w_RP = tl.load(x_proj + (head * RN + r[:, None]) * P + p[None, :], mask=in_r[:, None] & in_p[None, :], other=0.0)
    taps, bias = load_taps(conv_weight, c, in_p, K), tl.load(conv_bias + c, mask=in_p, other=0.0)
    if EARLY:
        past = load_past(window + c, window_row, in_p, K)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if not EARLY:
        past = load_past(window + c, window_row, in_p, K)
    new = tl.load(h + s.to(tl.int64) * h_stride + c, mask=in_p, other=0.0)
    x_P = convolved(past, new, taps, bias, K)
    low_R = tl.sum(w_RP.to(tl.float32) * tl.where(in_p, x_P, 0.0)[None, :], 1)
    tl.store(low + ((split * S + s) * H + head) * RN + r, low_R, mask=in_r)


@triton.jit
def mamba1_token(
    y,
    h,
    window,
    state,
    slots,
    low,
    dt_proj,
    conv_weight,
    conv_bias,
    dt_bias,
    A,
    D,
    S,
    h_stride,
    window_slot,
    window_row,
    state_slot,
    dt_low,
    dt_high,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    SLOTS: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    FETCH: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs: (blocks of a head's channels, head, s). Each owns its channels' windows and states."""
    RN: tl.constexpr = R + 2 * N
    first, head, s = tl.program_id(0) * BLOCK_P, tl.program_id(1), tl.program_id(2)
    p, r, n = first + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_N)
    in_p, in_r, in_n, c = p < P, r < R, n < N, head * P + p
    slot = tl.load(slots + s).to(tl.int64) if SLOTS else s.to(tl.int64)
    state += slot * state_slot
    window += slot * window_slot
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if FETCH and not EARLY:
            n_bytes = tl.minimum(BLOCK_P, P - first) * N * state.dtype.element_ty.primitive_bitwidth // 8
            fetch_early(state + (head * P + first) * N, n_bytes)
    w_PR = tl.load(dt_proj + c[:, None] * R + r[None, :], mask=in_p[:, None] & in_r[None, :], other=0.0)
    taps, bias = load_taps(conv_weight, c, in_p, K), tl.load(conv_bias + c, mask=in_p, other=0.0)
    bias_P, D_P = tl.load(dt_bias + c, mask=in_p, other=0.0), tl.load(D + c, mask=in_p, other=0.0)
    keep, at = in_p[:, None] & in_n[None, :], c[:, None] * N + n[None, :]
    A_PN = tl.load(A + at, mask=keep, other=0.0)
    if EARLY:
        h_PN, past = tl.load(state + at, mask=keep, other=0.0), load_past(window + c, window_row, in_p, K)
    if PDL:
        tl.extra.cuda.gdc_wait()

    h += s.to(tl.int64) * h_stride
    if not EARLY:
        h_PN, past = tl.load(state + at, mask=keep, other=0.0), load_past(window + c, window_row, in_p, K)
    h_PN, new = h_PN.to(tl.float32), tl.load(h + c, mask=in_p, other=0.0)
    z_P = tl.load(h + H * P + c, mask=in_p, other=0.0).to(tl.float32)
    dt_R = tl.zeros((BLOCK_R,), tl.float32)
    B_N, C_N = tl.zeros((BLOCK_N,), tl.float32), tl.zeros((BLOCK_N,), tl.float32)
    for split in tl.static_range(SPLITS):
        part = low + ((split * S + s) * H + head) * RN
        dt_R += tl.load(part + r, mask=in_r, other=0.0)
        B_N += tl.load(part + R + n, mask=in_n, other=0.0)
        C_N += tl.load(part + R + N + n, mask=in_n, other=0.0)
    x_P = convolved(past, new, taps, bias, K)
    dt_P = time_step(tl.sum(w_PR.to(tl.float32) * dt_R[None, :], 1) + bias_P, dt_low, dt_high, LIMITED)
    h_PN = h_PN * tl.exp(dt_P[:, None] * A_PN) + (dt_P * x_P)[:, None] * B_N[None, :]
    tl.store(state + at, h_PN.to(state.dtype.element_ty), mask=keep)
    y_P = (tl.sum(h_PN * C_N[None, :], 1) + D_P * x_P) * silu(z_P)
    tl.store(y + s.to(tl.int64) * (H * P) + c, y_P.to(y.dtype.element_ty), mask=in_p)
    tl.debug_barrier()  # threads may hold the same channels: all have read the window before one writes to it
    shift(window + c, window_row, past, new, in_p, K)


@triton.jit
def mamba1_state(
    y,
    x,
    z,
    state,
    slots,
    low,
    dt,
    dt_bias,
    A,
    D,
    S,
    z_stride,
    state_slot,
    dt_low,
    dt_high,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    SLOTS: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """Recurrence and gate. low: (H, S, R + 2 N); dt: (H, S, P), raw. Programs: (blocks of channels, head, s)."""
    head, s = tl.program_id(1), tl.program_id(2)
    p, n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    in_p, in_n, c = p < P, n < N, head * P + p
    slot = tl.load(slots + s).to(tl.int64) if SLOTS else s.to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    keep, at = in_p[:, None] & in_n[None, :], c[:, None] * N + n[None, :]
    A_PN = tl.load(A + at, mask=keep, other=0.0)
    bias_P, D_P = tl.load(dt_bias + c, mask=in_p, other=0.0), tl.load(D + c, mask=in_p, other=0.0)
    states = state + slot * state_slot + at
    if EARLY:
        h_PN = tl.load(states, mask=keep, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if not EARLY:
        h_PN = tl.load(states, mask=keep, other=0.0)
    h_PN = h_PN.to(tl.float32)
    to = s.to(tl.int64) * (H * P) + c
    x_P = tl.load(x + to, mask=in_p, other=0.0).to(tl.float32)
    z_P = tl.load(z + s.to(tl.int64) * z_stride + c, mask=in_p, other=0.0).to(tl.float32)
    dt_P = tl.load(dt + (head * S + s).to(tl.int64) * P + p, mask=in_p, other=0.0).to(tl.float32)
    low += (head * S + s) * (R + 2 * N) + R
    B_N = tl.load(low + n, mask=in_n, other=0.0).to(tl.float32)
    C_N = tl.load(low + N + n, mask=in_n, other=0.0).to(tl.float32)
    dt_P = time_step(dt_P + bias_P, dt_low, dt_high, LIMITED)
    h_PN = h_PN * tl.exp(dt_P[:, None] * A_PN) + (dt_P * x_P)[:, None] * B_N[None, :]
    tl.store(states, h_PN.to(state.dtype.element_ty), mask=keep)
    y_P = (tl.sum(h_PN * C_N[None, :], 1) + D_P * x_P) * silu(z_P)
    tl.store(y + to, y_P.to(y.dtype.element_ty), mask=in_p)
