"""The convolution backward: everything of the forward pass is made again from x, so nothing but the inputs is kept."""

import triton
import triton.language as tl

from zamba_lm.ops.conv.triton.parts import inputs_at, load_rows, load_taps, sequence_of, weighed
from zamba_lm.ops.sigmoid import quick_sigmoid


@triton.jit
def conv_backward(
    d_x,
    d_window,
    d_weight,
    d_y,
    x,
    window,
    weight,
    bias,
    starts,
    T,
    S,
    x_stride,
    d_stride,
    dx_stride,
    C,
    K: tl.constexpr,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Programs: blocks of channels, by blocks of ROWS * TURNS tokens and then, where there are windows, sequences.

    d_weight (blocks of tokens, K + 1, C) float32: each block's share of the sums over tokens, the bias last.
    """
    blocks = tl.cdiv(C, BLOCK_C)
    block, c = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    taps, bias_C = load_taps(weight, c, in_c, K, BLOCK_K), tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)
    if block < tl.cdiv(T, ROWS * TURNS):
        shares = ()
        for _ in tl.static_range(K + 1):
            shares = shares + (tl.zeros((BLOCK_C,), tl.float32),)
        for turn in range(TURNS):
            first = (block * TURNS + turn) * ROWS
            if first < T:
                shares = slide(
                    shares, d_x, d_y, x, window, taps, bias_C, starts, first, T, S, x_stride, d_stride, dx_stride, c, in_c, C,
                    K, GIVEN, ROWS,
                )  # fmt: skip
        for k in tl.static_range(K + 1):
            tl.store(d_weight + (block.to(tl.int64) * (K + 1) + k) * C + c, shares[k], mask=in_c)
    else:
        if GIVEN:
            s = block - tl.cdiv(T, ROWS * TURNS)
            of_window(d_window, d_y, x, window, taps, bias_C, starts, s, x_stride, d_stride, c, in_c, C, K)


@triton.jit
def slide(
    shares,
    d_x,
    d_y,
    x,
    window,
    taps,
    bias_C,
    starts,
    first,
    T,
    S,
    x_stride,
    d_stride,
    dx_stride,
    c,
    in_c,
    C,
    K: tl.constexpr,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """d_x of tokens ``first`` and ROWS - 1 following, which needs the K - 1 tokens behind them; the shares with theirs added."""
    rows = load_rows(x, first - (K - 1), T, x_stride, c, in_c, ROWS + 2 * (K - 1))
    d_ys = load_rows(d_y, first, T, d_stride, c, in_c, ROWS + K - 1)
    s = sequence_of(starts, first, S)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    if (first - start >= K - 1) & (first + ROWS + K - 1 <= end):  # far from any border: nothing to choose
        ds = ()
        for u in tl.static_range(ROWS + K - 1):
            ds = ds + (through_silu(d_ys[u], weighed(rows[u : u + K], taps, bias_C, K)),)
        for u in tl.static_range(ROWS):
            d = backwards(ds[u : u + K], taps, K)
            tl.store(d_x + (first + u).to(tl.int64) * dx_stride + c, d.to(d_x.dtype.element_ty), mask=in_c)
            shares = with_share(shares, ds[u], rows[u : u + K], K)
    else:
        for u in range(tl.minimum(ROWS, T - first)):
            t = first + u
            if t == end:
                s, start = s + 1, end
                end = tl.load(starts + s + 1)
            past = window
            if GIVEN:
                past += s.to(tl.int64) * (K - 1) * C
            ds = ()
            for ahead in tl.static_range(K):
                inputs = inputs_at(x, past, t + ahead, start, x_stride, c, in_c & (t + ahead < end), C, K, GIVEN)
                at = d_y + (t + ahead).to(tl.int64) * d_stride + c
                d = through_silu(tl.load(at, mask=in_c & (t + ahead < end), other=0.0), weighed(inputs, taps, bias_C, K))
                if ahead == 0:
                    shares = with_share(shares, d, inputs, K)
                ds = ds + (d,)
            tl.store(d_x + t.to(tl.int64) * dx_stride + c, backwards(ds, taps, K).to(d_x.dtype.element_ty), mask=in_c)
    return shares


@triton.jit
def through_silu(d_y, total):
    sigmoid = quick_sigmoid(total)
    return d_y.to(tl.float32) * sigmoid * (1 + total * (1 - sigmoid))


@triton.jit
def backwards(ds, taps, K: tl.constexpr):
    """What an input is to the sums of its own token and the K - 1 following, whose gradients are ds."""
    total = taps[K - 1] * ds[0]
    for ahead in tl.static_range(1, K):
        total += taps[K - 1 - ahead] * ds[ahead]
    return total


@triton.jit
def with_share(shares, d, inputs, K: tl.constexpr):
    more = ()
    for k in tl.static_range(K):
        more = more + (shares[k] + d * inputs[k].to(tl.float32),)
    return more + (shares[K] + d,)


@triton.jit
def of_window(d_window, d_y, x, window, taps, bias_C, starts, s, x_stride, d_stride, c, in_c, C, K: tl.constexpr):
    """What the first K - 1 tokens of sequence s have to say about its window."""
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    at = s.to(tl.int64) * (K - 1) * C
    ds = ()
    for u in tl.static_range(K - 1):
        here = in_c & (start + u < end)
        inputs = inputs_at(x, window + at, start + u, start, x_stride, c, here, C, K, True)
        d = tl.load(d_y + (start + u).to(tl.int64) * d_stride + c, mask=here, other=0.0)
        ds = ds + (through_silu(d, weighed(inputs, taps, bias_C, K)),)
    for k in tl.static_range(K - 1):
        total = taps[k] * ds[0]
        for u in tl.static_range(1, k + 1):
            total += taps[k - u] * ds[u]
        tl.store(d_window + at + k * C + c, total.to(d_window.dtype.element_ty), mask=in_c)


@triton.jit
def add_shares(shares, d_weight, d_bias, blocks, C, K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """d_weight (C, K) and d_bias (C) of all blocks' shares (blocks, K + 1, C), added up in order. Programs: channels, taps."""
    c, k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(1)
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, blocks, ROWS):
        at = ((first + row).to(tl.int64) * (K + 1) + k) * C + c[None, :]
        total += tl.load(shares + at, mask=(first + row < blocks) & (c < C)[None, :], other=0.0)
    if k < K:
        tl.store(d_weight + c * K + k, tl.sum(total, 0).to(d_weight.dtype.element_ty), mask=c < C)
    else:
        tl.store(d_bias + c, tl.sum(total, 0).to(d_bias.dtype.element_ty), mask=c < C)
