"""What scan kernels share: time steps from raw ones, the gate, and traffic between the lanes of a warp.

A program is one warp. A tensor of 32 numbers is a number a lane; a tuple of them is what a lane keeps in registers. SPLIT lanes
share a channel: lane PB q + c holds part q of the N numbers of channel c's state, and every SPLIT tokens one of them is its own:
it does what is not multiplied by N (softplus, gate, products with x) for that token and hands the results to its mates.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def fetch_early(at, which):
    """Ask the L2 cache for what lies at some of the addresses, and do not wait."""
    if not INTERPRETED:
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
            "=r,l,r",
            [at.to(tl.int64), which.to(tl.int32)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def fetch_inputs(x, dt, z, which, GATE: tl.constexpr):
    """``fetch_early`` for a token's x (or dy), dt and z."""
    fetch_early(x, which)
    fetch_early(dt, which)
    if GATE:
        fetch_early(z, which)


@triton.jit
def softplus(v):
    """log(1 + e^v) = max(v, 0) + e P(e) with e = e^-|v|, to a few units in the last place also where it is tiny.

    e P(e) is log(1 + e) on [0, 1] to 2e-7 of itself, by least squares; P(0) = 1. The hardware's logarithm would lose the small
    steps, of which there are many.
    """
    e = tl.exp2(-tl.abs(v) * LOG2E)
    p = -0.008778772316873074
    p = p * e + 0.04498600214719772
    p = p * e - 0.10902203619480133
    p = p * e + 0.17847149074077606
    p = p * e - 0.24536845088005066
    p = p * e + 0.33284059166908264
    p = p * e - 0.4999817907810211
    p = p * e + 1.0
    return p * e + tl.maximum(v, 0.0)


@triton.jit
def time_steps(raw, bias, low, high, RAW: tl.constexpr, LIMITED: tl.constexpr):
    """Time steps, from raw ones where RAW."""
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
def gated(dy, z, GATE: tl.constexpr):
    """The gradient of what the scan put out, from that of the gated output."""
    dy = dy.to(tl.float32)
    if GATE:
        dy *= silu(z.to(tl.float32))
    return dy


@triton.jit
def owned(value, c, SPLIT: tl.constexpr):
    """A value of each of SPLIT tokens, from the lane whose token it is to all lanes of the channel."""
    out = ()
    for r in tl.static_range(SPLIT):
        if SPLIT == 1:
            out += (value,)
        else:
            out += (tl.gather(value, r * (32 // SPLIT) + c, 0),)
    return out


@triton.jit
def totals(parts, lane, part, apart: tl.constexpr, SPLIT: tl.constexpr):
    """Sums over SPLIT lanes, ``apart`` from each other, of SPLIT values: to lane ``part`` of them that of value ``part``.

    Lanes swap halves of what they have, so that each step moves half as much as the one before.
    """
    if SPLIT == 1:
        return parts[0]
    else:
        HALF: tl.constexpr = SPLIT // 2
        upper = (part & HALF) != 0
        kept = ()
        for i in tl.static_range(HALF):
            give = tl.where(upper, parts[i], parts[i + HALF])
            keep = tl.where(upper, parts[i + HALF], parts[i])
            kept += (keep + tl.gather(give, lane ^ (HALF * apart), 0),)
        return totals(kept, lane, part, apart, HALF)


@triton.jit
def load_row(at, part, PART: tl.constexpr):
    """PART neighbouring float32 numbers a lane, those of its part of a row.

    Four at a time by an instruction of ours: of a (lanes, 4) tile Triton makes the same, but takes four times as long to compile.
    """
    at += part * PART
    out = ()
    if INTERPRETED or PART < 4:
        for i in tl.static_range(PART):
            out += (tl.load(at + i),)
    else:
        for i in tl.static_range(PART // 4):
            out += tl.inline_asm_elementwise(
                "ld.global.v4.f32 {$0, $1, $2, $3}, [$4];",
                "=f,=f,=f,=f,l",
                [at + i * 4],
                dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
                is_pure=False,
                pack=1,
            )
    return out


@triton.jit
def load_state(at, n, N: tl.constexpr, APART: tl.constexpr, PART: tl.constexpr, live):
    """A lane's numbers of a state, ``APART`` from each other in memory; zeros beyond N."""
    out = ()
    for j in tl.static_range(PART):
        out += (tl.load(at + (n + j) * APART, mask=live & (n + j < N), other=0.0).to(tl.float32),)
    return out


@triton.jit
def store_state(at, state, n, N: tl.constexpr, APART: tl.constexpr, PART: tl.constexpr, live):
    for j in tl.static_range(PART):
        tl.store(at + (n + j) * APART, state[j], mask=live & (n + j < N))


@triton.jit
def zeros(COUNT: tl.constexpr):
    out = ()
    for _ in tl.static_range(COUNT):
        out += (tl.zeros((32,), tl.float32),)
    return out
