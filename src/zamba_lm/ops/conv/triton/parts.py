"""What forward and backward share: finding a token's sequence, and the input a tap meets near the beginning of one."""

import triton
import triton.language as tl


@triton.jit
def sequence_of(starts, t, S):
    """The sequence that packed token t lies in: the last one that starts at or before it."""
    low, high = 0, S
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts + middle) <= t:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def load_taps(weight, c, in_c, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """The K taps of channels c, oldest first. Read as they lie, a channel's taps side by side, and taken apart afterwards."""
    k = tl.arange(0, BLOCK_K)[None, :]
    together = tl.load(weight + c[:, None] * K + k, mask=in_c[:, None] & (k < K), other=0.0).to(tl.float32)
    taps = ()
    for tap in tl.static_range(K):
        taps = taps + (tl.sum(tl.where(k == tap, together, 0.0), 1),)
    return taps


@triton.jit
def load_rows(x, first, T, stride, c, in_c, ROWS: tl.constexpr):
    """Rows ``first`` and following, all loads under way before any is waited for; zeros outside of [0, T)."""
    rows = ()
    for u in tl.static_range(ROWS):
        t = first + u
        rows = rows + (tl.load(x + t.to(tl.int64) * stride + c, mask=in_c & (t >= 0) & (t < T), other=0.0),)
    return rows


@triton.jit
def inputs_at(x, window, t, start, x_stride, c, in_c, C, K: tl.constexpr, GIVEN: tl.constexpr):
    """The K inputs that the taps meet at token t of a sequence that begins at ``start`` with ``window``, oldest first."""
    inputs = ()
    for k in tl.static_range(K):
        at = t - (K - 1) + k
        v = tl.load(x + at.to(tl.int64) * x_stride + c, mask=in_c & (at >= start), other=0.0).to(tl.float32)
        if GIVEN:
            before = tl.load(window + (K - 1 + at - start) * C + c, mask=in_c & (at < start), other=0.0)
            v = tl.where(at >= start, v, before.to(tl.float32))
        inputs = inputs + (v,)
    return inputs


@triton.jit
def weighed(inputs, taps, bias, K: tl.constexpr):
    total = bias
    for k in tl.static_range(K):
        total += taps[k] * inputs[k].to(tl.float32)
    return total
