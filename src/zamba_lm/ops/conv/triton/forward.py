"""The convolution forward: a program takes some tokens by some channels, loads all rows at once and slides over them."""

import triton
import triton.language as tl

from zamba_lm.ops.conv.triton.parts import inputs_at, load_rows, load_taps, sequence_of, weighed


@triton.jit
def conv_forward(
    y,
    after,
    x,
    window,
    weight,
    bias,
    starts,
    T,
    S,
    x_stride,
    C,
    K: tl.constexpr,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Programs: blocks of channels, by blocks of tokens and then, for the windows after them, sequences."""
    blocks = tl.cdiv(C, BLOCK_C)
    block, c = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    if block < tl.cdiv(T, ROWS * TURNS):
        taps, bias_C = load_taps(weight, c, in_c, K, BLOCK_K), tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)
        for turn in range(TURNS):
            first = (block * TURNS + turn) * ROWS
            if first < T:
                slide(y, x, window, taps, bias_C, starts, first, T, S, x_stride, c, in_c, C, K, GIVEN, ROWS)
    else:
        keep_last(after, x, window, starts, block - tl.cdiv(T, ROWS * TURNS), x_stride, c, in_c, C, K, GIVEN)


@triton.jit
def slide(
    y,
    x,
    window,
    taps,
    bias_C,
    starts,
    first,
    T,
    S,
    x_stride,
    c,
    in_c,
    C,
    K: tl.constexpr,
    GIVEN: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = load_rows(x, first - (K - 1), T, x_stride, c, in_c, ROWS + K - 1)
    s = sequence_of(starts, first, S)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    if (first - start >= K - 1) & (first + ROWS <= end):  # far from any border: nothing to choose
        for u in tl.static_range(ROWS):
            total = weighed(rows[u : u + K], taps, bias_C, K)
            to = y + (first + u).to(tl.int64) * C + c
            tl.store(to, (total / (1 + tl.exp(-total))).to(y.dtype.element_ty), mask=in_c)
    else:
        for u in range(tl.minimum(ROWS, T - first)):
            t = first + u
            if t == end:
                s, start = s + 1, end
                end = tl.load(starts + s + 1)
            past = window
            if GIVEN:
                past += s.to(tl.int64) * (K - 1) * C
            total = weighed(inputs_at(x, past, t, start, x_stride, c, in_c, C, K, GIVEN), taps, bias_C, K)
            to = y + t.to(tl.int64) * C + c
            tl.store(to, (total / (1 + tl.exp(-total))).to(y.dtype.element_ty), mask=in_c)


@triton.jit
def keep_last(after, x, window, starts, s, x_stride, c, in_c, C, K: tl.constexpr, GIVEN: tl.constexpr):
    """The last K - 1 inputs of sequence s, bit for bit; the younger end of the old window where the sequence is shorter."""
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    at = s.to(tl.int64) * (K - 1) * C + c
    for k in tl.static_range(K - 1):
        t = end - (K - 1) + k
        row = tl.load(x + t.to(tl.int64) * x_stride + c, mask=in_c & (t >= start), other=0.0)
        if GIVEN:
            before = tl.load(window + at + (K - 1 + t - start) * C, mask=in_c & (t < start), other=0.0)
            row = tl.where(t >= start, row, before.to(row.dtype))
        tl.store(after + at + k * C, row, mask=in_c)
