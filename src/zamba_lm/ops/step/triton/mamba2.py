"""A Mamba-2 mixer's token. For a few rows: one kernel, each program owns some channels of one row, with their window and state.
For more: the recurrence behind the convolution (conv.py), which then has little to do but to move states."""

import triton
import triton.language as tl

from zamba_lm.ops.step.triton.parts import fetch_early, silu, time_step


@triton.jit
def mamba2_token(
    y,
    h,
    window,
    state,
    slots,
    arrivals,
    conv_weight,
    conv_bias,
    dt_bias,
    A,
    D,
    h_stride,
    window_slot,
    window_row,
    state_slot,
    dt_low,
    dt_high,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FETCH: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs: (blocks of channels, row). h: rows [z | x | B | C | dt].

    B and C of a group are read by all its programs, and their window is shifted by whichever arrives last: then all have read.
    """
    INNER: tl.constexpr = H * P
    WIDTH: tl.constexpr = INNER // G
    PROGRAMS: tl.constexpr = (WIDTH + BLOCK_I - 1) // BLOCK_I
    g, first, row = tl.program_id(0) // PROGRAMS, tl.program_id(0) % PROGRAMS * BLOCK_I, tl.program_id(1)
    n, k = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)[None, :]
    in_n = n < N
    if SLOTS:
        slot = tl.load(slots + row).to(tl.int64)
    else:
        slot = row.to(tl.int64)
    state += slot * state_slot
    window += slot * window_slot
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if FETCH and not EARLY:
            channels = tl.minimum(BLOCK_I, WIDTH - first)
            bits: tl.constexpr = state.dtype.element_ty.primitive_bitwidth
            fetch_early(state + (g * WIDTH + first) * N, channels * N * bits // 8)
            size: tl.constexpr = window.dtype.element_ty.primitive_bitwidth // 8
            for past in tl.static_range(K - 1):
                at = window + past * window_row
                fetch_early(at + g * WIDTH + first, channels * size)
                fetch_early(at + INNER + g * N, N * size)
                fetch_early(at + INNER + (G + g) * N, N * size)

    b, c = INNER + g * N + n, INNER + (G + g) * N + n  # B's and C's channels of the convolution
    b_taps, b_bias = taps_of(conv_weight, conv_bias, b, in_n, k, K)
    c_taps, c_bias = taps_of(conv_weight, conv_bias, c, in_n, k, K)
    constants = constants_of(conv_weight, conv_bias, dt_bias, A, D, g, first, k, INNER, WIDTH, P, K, BLOCK_I)
    i, in_i = g * WIDTH + first + tl.arange(0, BLOCK_I), first + tl.arange(0, BLOCK_I) < WIDTH
    states = state + i[:, None] * N + n[None, :]
    keep = in_i[:, None] if N == BLOCK_N else in_i[:, None] & in_n[None, :]
    if EARLY:
        h_IN, x_past = tl.load(states, mask=keep, other=0.0), past_of(window, window_row, i, in_i, k, K)
        b_past, c_past = past_of(window, window_row, b, in_n, k, K), past_of(window, window_row, c, in_n, k, K)
    if PDL:
        tl.extra.cuda.gdc_wait()

    h += row.to(tl.int64) * h_stride
    y += row.to(tl.int64) * INNER
    if not EARLY:
        b_past, c_past = past_of(window, window_row, b, in_n, k, K), past_of(window, window_row, c, in_n, k, K)
        h_IN, x_past = tl.load(states, mask=keep, other=0.0), past_of(window, window_row, i, in_i, k, K)
    b_seen = seen_of(h + INNER, b_past, b, in_n, k, K)
    c_seen = seen_of(h + INNER, c_past, c, in_n, k, K)
    x_taps, x_bias, bias_H, A_H, D_H = constants
    head, in_h = head_of(g, first, INNER, WIDTH, P, BLOCK_I)
    x_seen = seen_of(h + INNER, x_past, i, in_i, k, K)
    dt_H = tl.load(h + 2 * INNER + 2 * G * N + head, mask=in_h, other=0.0).to(tl.float32) + bias_H
    z_I = tl.load(h + i, mask=in_i, other=0.0).to(tl.float32)
    tl.debug_barrier()  # all threads have read these channels' windows
    B_N = silu(tl.sum(b_seen.to(tl.float32) * b_taps, 1) + b_bias)
    C_N = silu(tl.sum(c_seen.to(tl.float32) * c_taps, 1) + c_bias)
    # Arriving must follow reading. The number added hangs on every value read of B's and C's windows (SiLU is never below -1, a
    # fact the compiler does not know), so no fence is needed, which would cost more than all the rest.
    one = tl.where(tl.min(B_N + C_N) < -2, 2, 1)
    arrived = tl.atomic_add(arrivals + row * G + g, one, sem="relaxed")
    x_I = silu(tl.sum(x_seen.to(tl.float32) * x_taps, 1) + x_bias)
    dt_H = time_step(dt_H, dt_low, dt_high, LIMITED)
    decay_H = tl.exp(dt_H * A_H)
    h_IN = h_IN.to(tl.float32)
    if P % BLOCK_I == 0:
        h_IN = h_IN * decay_H + (dt_H * x_I)[:, None] * B_N[None, :]
    else:
        h_IN = h_IN * decay_H[:, None] + (dt_H * x_I)[:, None] * B_N[None, :]
    tl.store(states, h_IN.to(state.dtype.element_ty), mask=keep)
    y_I = tl.sum(h_IN * C_N[None, :], 1) + D_H * x_I
    tl.store(y + i, y_I * silu(z_I), mask=in_i)
    shift(window, window_row, x_seen, i, in_i, k, K)
    if arrived == PROGRAMS - 1:
        shift(window, window_row, b_seen, b, in_n, k, K)
        shift(window, window_row, c_seen, c, in_n, k, K)
        tl.store(arrivals + row * G + g, 0)


@triton.jit
def mamba2_state(
    y,
    h,
    xBC,
    state,
    slots,
    dt_bias,
    A,
    D,
    gain,
    sums,
    h_stride,
    state_slot,
    dt_low,
    dt_high,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    SLOTS: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NORMED: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """Recurrence and gate behind the convolution. h: rows [z | x | B | C | dt]; xBC: rows [x | B | C], convolved, float32.

    Programs: (blocks of a head's channels, head, row). NORMED: y comes times the gain of its norm, and the sum of each program's
    squares goes to ``sums``.
    """
    INNER: tl.constexpr = H * P
    head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    p, n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    in_p, in_n, i = p < P, n < N, head * P + p
    slot = tl.load(slots + row).to(tl.int64) if SLOTS else row
    states, keep = state + slot * state_slot + i[:, None] * N + n[None, :], in_p[:, None] & in_n[None, :]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    if EARLY:
        h_IN = tl.load(states, mask=keep, other=0.0)
    bias, A_head, D_head = tl.load(dt_bias + head), tl.load(A + head), tl.load(D + head)
    if NORMED:
        gain_I = tl.load(gain + i, mask=in_p, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if not EARLY:
        h_IN = tl.load(states, mask=keep, other=0.0)
    h += row * h_stride
    xBC += row * (INNER + 2 * G * N)
    maps = xBC + INNER + head // (H // G) * N + n
    B_N, C_N = tl.load(maps, mask=in_n, other=0.0), tl.load(maps + G * N, mask=in_n, other=0.0)
    x_I, z_I = tl.load(xBC + i, mask=in_p, other=0.0), tl.load(h + i, mask=in_p, other=0.0).to(tl.float32)
    dt = time_step(tl.load(h + 2 * INNER + 2 * G * N + head).to(tl.float32) + bias, dt_low, dt_high, LIMITED)
    h_IN = h_IN.to(tl.float32) * tl.exp(dt * A_head) + (dt * x_I)[:, None] * B_N[None, :]
    tl.store(states, h_IN.to(state.dtype.element_ty), mask=keep)
    y_I = (tl.sum(h_IN * C_N[None, :], 1) + D_head * x_I) * silu(z_I)
    if NORMED:
        square = tl.sum(tl.where(in_p, y_I * y_I, 0.0), 0)
        tl.store(sums + (row * H + head) * tl.num_programs(0) + tl.program_id(0), square)
        y_I *= gain_I
    tl.store(y + row * INNER + i, y_I.to(y.dtype.element_ty), mask=in_p)


@triton.jit
def head_of(g, first, INNER: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr, BLOCK_I: tl.constexpr):
    """Heads of channels ``first`` and following of group g, and which of them exist. One for all where blocks do not straddle."""
    if P % BLOCK_I == 0:
        return (g * WIDTH + first) // P, first < WIDTH
    else:
        i = first + tl.arange(0, BLOCK_I)
        return (g * WIDTH + i) // P, i < WIDTH


@triton.jit
def constants_of(
    conv_weight,
    conv_bias,
    dt_bias,
    A,
    D,
    g,
    first,
    k,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """What no token changes: taps and bias of the convolution, and bias of dt, A and D."""
    i = first + tl.arange(0, BLOCK_I)
    taps, bias = taps_of(conv_weight, conv_bias, g * WIDTH + i, i < WIDTH, k, K)
    head, in_h = head_of(g, first, INNER, WIDTH, P, BLOCK_I)
    bias_H, A_H = tl.load(dt_bias + head, mask=in_h, other=0.0), tl.load(A + head, mask=in_h, other=0.0)
    return taps, bias, bias_H, A_H, tl.load(D + head, mask=in_h, other=0.0)


@triton.jit
def taps_of(weight, bias, c, in_c, k, K: tl.constexpr):
    """Taps (channel, k), oldest first, and bias of channels c."""
    taps = tl.load(weight + c[:, None] * K + k, mask=in_c[:, None] & (k < K), other=0.0)
    return taps, tl.load(bias + c, mask=in_c, other=0.0)


@triton.jit
def past_of(window, row_stride, c, in_c, k, K: tl.constexpr):
    """What the taps meet but for the token itself, (channel, k): the window's rows."""
    return tl.load(window + k * row_stride + c[:, None], mask=in_c[:, None] & (k < K - 1), other=0.0)


@triton.jit
def seen_of(new, past, c, in_c, k, K: tl.constexpr):
    """What the taps meet, (channel, k): the past, and in the last place the token."""
    token = tl.load(new + c[:, None] + 0 * k, mask=in_c[:, None] & (k == K - 1), other=0.0)
    return tl.where(k == K - 1, token.to(past.dtype), past)


@triton.jit
def shift(window, row_stride, seen, c, in_c, k, K: tl.constexpr):
    """The window one token later."""
    tl.store(window + (k - 1) * row_stride + c[:, None], seen, mask=in_c[:, None] & (k > 0) & (k < K))
