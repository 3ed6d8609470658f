"""The convolution of one token a row on the registers that hold its input: what ``streams_kernel`` may do to a product."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def window_of(
    window,
    slots,
    first,
    S,
    window_slot,
    INNER: gl.constexpr,
    C: gl.constexpr,
    LINES: gl.constexpr,
    M: gl.constexpr,
    BS: gl.constexpr,
    SLOTS: gl.constexpr,
    to: gl.constexpr,
):
    """Of M outputs from ``first`` on, which are channels of the convolution, which is to read C outputs from INNER on; and where
    the windows of those channels begin, in each row's slot."""
    line = gl.arange(0, M, gl.SliceLayout(1, to))
    c = first + line - INNER
    s = gl.arange(0, BS, gl.SliceLayout(0, to))
    slot = s
    if SLOTS:
        slot = gl.load(slots + s, mask=s < S, other=0)
    return c, (line < LINES) & (c >= 0) & (c < C), window + slot.to(gl.int64)[None, :] * window_slot + c[:, None]


@gluon.jit
def load_past(own, window_row, keep, K: gl.constexpr):
    """The K - 1 inputs before the token, oldest first."""
    past = ()
    for k in gl.static_range(K - 1):
        past = past + (gl.load(own + k * window_row, mask=keep, other=0.0),)
    return past


@gluon.jit
def load_taps(weight, c, in_c, K: gl.constexpr):
    """The K taps of channels c, oldest first."""
    taps = ()
    for k in gl.static_range(K):
        taps = taps + (gl.load(weight + c * K + k, mask=in_c, other=0.0)[:, None],)
    return taps


@gluon.jit
def convolved(past, new, taps, bias, K: gl.constexpr):
    """SiLU of the convolution, float32."""
    total = bias[:, None] + new.to(gl.float32) * taps[K - 1]
    for k in gl.static_range(K - 1):
        total += past[k].to(gl.float32) * taps[k]
    return total / (1 + gl.exp(-total))


@gluon.jit
def shift(own, window_row, past, new, keep, K: gl.constexpr):
    """The window one token later."""
    for k in gl.static_range(K - 2):
        gl.store(own + k * window_row, past[k + 1], mask=keep)
    gl.store(own + (K - 2) * window_row, new, mask=keep)
