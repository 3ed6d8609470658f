"""The convolution forward: a program takes some tokens by some channels, loads all rows at once and slides over them.

What meets a sequence's window is left to programs of its own, a sequence each: its first K - 1 tokens, and the window behind it.
So a window has one reader, who may write the next one in its place.
"""

import triton
import triton.language as tl

from zamba_lm.ops.conv.triton.parts import inputs_at, load_rows, load_taps, sequence_of, weighed
from zamba_lm.ops.sigmoid import quick_sigmoid


@triton.jit(do_not_specialize=["T", "S"])
def conv_forward(
    y,
    after,
    x,
    window,
    weight,
    bias,
    starts,
    slots,
    T,
    S,
    x_stride,
    C,
    K: tl.constexpr,
    GIVEN: tl.constexpr,  # windows before the sequences
    AFTER: tl.constexpr,  # windows after them are wanted
    SLOTS: tl.constexpr,  # sequence s has window slots[s]
    ROWS: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """Programs: blocks of channels, by sequences and then blocks of tokens."""
    blocks = tl.cdiv(C, BLOCK_C)
    block, c = tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < C
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    taps, bias_C = load_taps(weight, c, in_c, K, BLOCK_K), tl.load(bias + c, mask=in_c, other=0.0).to(tl.float32)
    if PDL:
        tl.extra.cuda.gdc_wait()
    if block < S:
        start, end = tl.load(starts + block), tl.load(starts + block + 1)
        if end > start:
            slot = block
            if SLOTS:
                slot = tl.load(slots + block)
            at = slot.to(tl.int64) * (K - 1) * C
            begin(y, x, window + at, taps, bias_C, start, end, x_stride, c, in_c, C, K, GIVEN)
            if AFTER:
                keep_last(after + at, x, window + at, start, end, x_stride, c, in_c, C, K, GIVEN)
    else:
        total = tl.load(starts + S)
        for turn in range(TURNS):
            first = ((block - S) * TURNS + turn) * ROWS
            if first < total:
                slide(y, x, taps, bias_C, starts, first, total, T, S, x_stride, c, in_c, C, K, ROWS)


@triton.jit
def slide(y, x, taps, bias_C, starts, first, total, T, S, x_stride, c, in_c, C, K: tl.constexpr, ROWS: tl.constexpr):
    """Tokens [first, first + ROWS) but for those that meet a window."""
    rows = load_rows(x, first - (K - 1), T, x_stride, c, in_c, ROWS + K - 1)
    s = sequence_of(starts, first, S)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    if (first - start >= K - 1) & (first + ROWS <= end):  # far from any border: nothing to choose
        for u in tl.static_range(ROWS):
            put(y, first + u, weighed(rows[u : u + K], taps, bias_C, K), c, in_c, C)
    else:
        for u in range(tl.minimum(ROWS, total - first)):
            t = first + u
            while t >= end:  # more than once where sequences are empty
                s += 1
                start = end
                end = tl.load(starts + s + 1)
            if t - start >= K - 1:
                put(y, t, weighed(inputs_at(x, x, t, start, x_stride, c, in_c, C, K, False), taps, bias_C, K), c, in_c, C)


@triton.jit
def begin(y, x, window, taps, bias_C, start, end, x_stride, c, in_c, C, K: tl.constexpr, GIVEN: tl.constexpr):
    """The first K - 1 tokens of a sequence."""
    for u in tl.static_range(K - 1):
        here = in_c & (start + u < end)
        inputs = inputs_at(x, window, start + u, start, x_stride, c, here, C, K, GIVEN)
        put(y, start + u, weighed(inputs, taps, bias_C, K), c, here, C)


@triton.jit
def put(y, t, total, c, in_c, C):
    to = y + t.to(tl.int64) * C + c
    tl.store(to, (total * quick_sigmoid(total)).to(y.dtype.element_ty), mask=in_c)


@triton.jit
def keep_last(after, x, window, start, end, x_stride, c, in_c, C, K: tl.constexpr, GIVEN: tl.constexpr):
    """The last K - 1 inputs of a sequence, bit for bit; the younger end of the old window where the sequence is shorter. Entries
    move towards the front, oldest first, so ``after`` may be ``window``."""
    for k in tl.static_range(K - 1):
        t = end - (K - 1) + k
        row = tl.load(x + t.to(tl.int64) * x_stride + c, mask=in_c & (t >= start), other=0.0)
        if GIVEN:
            before = tl.load(window + (K - 1 + t - start) * C + c, mask=in_c & (t < start), other=0.0)
            row = tl.where(t >= start, row, before.to(row.dtype))
        tl.store(after + k * C + c, row, mask=in_c)
