"""What the step kernels of both families share: time step, SiLU, the convolution's taps, and asking for the state early."""

import triton
import triton.language as tl


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to float32's last places also where it is tiny, without a library's log1p."""
    u = tl.exp(-tl.abs(x))
    s = u / (2 + u)  # log(1 + u) = 2 artanh(s), s <= 1/3
    q = s * s
    series = 1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15)))
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
    return tl.where(x > 0, x, 0.0) + 2 * s * series


@triton.jit
def time_step(raw, low, high, LIMITED: tl.constexpr):
    dt = softplus(raw)
    if LIMITED:
        dt = tl.clamp(dt, low, high, propagate_nan=tl.PropagateNan.ALL)
    return dt


@triton.jit
def load_taps(weight, c, mask, K: tl.constexpr):
    """The K taps of channels c, oldest first."""
    taps = ()
    for k in tl.static_range(K):
        taps = taps + (tl.load(weight + c * K + k, mask=mask, other=0.0),)
    return taps


@triton.jit
def load_past(window, row_stride, mask, K: tl.constexpr):
    """The K - 1 inputs before the token, oldest first; ``window`` points at the oldest ones."""
    past = ()
    for k in tl.static_range(K - 1):
        past = past + (tl.load(window + k * row_stride, mask=mask, other=0.0),)
    return past


@triton.jit
def convolved(past, new, taps, bias, K: tl.constexpr):
    total = bias + new.to(tl.float32) * taps[K - 1]
    for k in tl.static_range(K - 1):
        total += past[k].to(tl.float32) * taps[k]
    return silu(total)


@triton.jit
def shift(window, row_stride, past, new, mask, K: tl.constexpr):
    """The window one token later."""
    for k in tl.static_range(K - 2):
        tl.store(window + k * row_stride, past[k + 1], mask=mask)
    tl.store(window + (K - 2) * row_stride, new.to(window.dtype.element_ty), mask=mask)


@triton.jit
def fetch_early(first, n_bytes):
    """Ask the L2 cache for ``n_bytes`` from ``first``, both multiples of 16, and do not wait. Only where PDL is: it takes Hopper.

    What the kernel before may still write can be asked for, unlike loaded: the cache sees the write.
    """
    tl.inline_asm_elementwise(
        """{
        .reg .pred one;
        .reg .u32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 one, thread, 0;
        @one cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [first.to(tl.int64), n_bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
