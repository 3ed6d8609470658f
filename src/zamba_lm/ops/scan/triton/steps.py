"""What scan kernels share: time steps from raw ones, the gate, and one row of a tile of tokens."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def softplus(v):
    """log(1 + e^v) = max(v, 0) + log(1 + e^-|v|), to a few units in the last place also where it is tiny.

    With s = e / (2 + e), log(1 + e) = 2 (s + s^3 / 3 + s^5 / 5 + ...), and s <= 1/3: the hardware's logarithm would lose the
    small steps, of which there are many.
    """
    e = tl.exp2(-tl.abs(v) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    series = 2.0 / 13.0
    series = series * q + 2.0 / 11.0
    series = series * q + 2.0 / 9.0
    series = series * q + 2.0 / 7.0
    series = series * q + 2.0 / 5.0
    series = series * q + 2.0 / 3.0
    series = series * q + 2.0
    return tl.maximum(v, 0.0) + series * s


@triton.jit
def time_steps(raw, bias, low, high, RAW: tl.constexpr, LIMITED: tl.constexpr):
    """Time steps of a tile, from raw ones where RAW."""
    dt = raw.to(tl.float32)
    if RAW:
        dt = softplus(dt + bias)
        if LIMITED:
            dt = tl.minimum(tl.maximum(dt, low), high)
    return dt


@triton.jit
def silu(z):
    return z / (1.0 + tl.exp2(-z * LOG2E))


@triton.jit
def row(tile, rows, r: tl.constexpr):
    """Column r of a (channels, tokens) tile, for all lanes that work on the channel."""
    if tile.shape[1] == 1:
        return tl.sum(tile, axis=1)
    else:
        return tl.sum(tl.gather(tile, tl.full((tile.shape[0], 1), r, tl.int32), 1), axis=1)


@triton.jit
def gated(dy, z, GATE: tl.constexpr):
    """The gradient of what the scan put out, from that of the gated output."""
    dy = dy.to(tl.float32)
    if GATE:
        dy *= silu(z.to(tl.float32))
    return dy
