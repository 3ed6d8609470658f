"""One program chooses one row's token, the row in its registers from the logits to the draw."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from zamba_lm.ops.sample.triton.argmax import first, highest
from zamba_lm.ops.sample.triton.search import kth_smallest, least_needed

COOLEST = tl.constexpr(1e-6)
LOG2_E = tl.constexpr(1.4426950408889634)
SCALE = tl.constexpr(float(2**44))  # weights of at most 1 as whole numbers: their sums are exact in any order, to 2^18 tokens


@triton.jit
def sample_kernel(
    logits, stride, words, reals, wholes, slots, seen, seen_stride, ids, V,
    SLOTS: tl.constexpr, SEEN: tl.constexpr, LINES: tl.constexpr, LINE: tl.constexpr, WORDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    s = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + s).to(tl.int64) if SLOTS else s
    place = tl.arange(0, LINES)[:, None] * LINE + tl.arange(0, LINE)[None, :]
    x = tl.load(logits + s * stride + place, mask=place < V, other=float("-inf")).to(tl.float32)
    count = words + slot * WORDS + 1
    real, top_k = reals + slot * (2 * WORDS), tl.load(wholes + slot * (2 * WORDS) + 8)
    temperature, top_p, min_p, penalty = tl.load(real + 4), tl.load(real + 5), tl.load(real + 6), tl.load(real + 7)
    seed, drawn = tl.load(count - 1), tl.load(count)
    if SEEN:
        if penalty != 1.0:
            marked = tl.load(seen + slot * seen_stride + place, mask=place < V, other=0) != 0
            x = tl.where(marked, tl.where(x > 0, tl.div_rn(x, penalty), x * penalty), x)
    top = highest(x)
    if temperature == 0:
        token = first(x, top, place)
    elif tl.abs(top) < float("inf"):
        weight = weights(top - x, temperature, top_k, top_p, min_p, V)
        token = inverse(weight, uniform(seed, drawn), LINES, LINE)
        tl.store(count, drawn + 1)
    else:
        token = -1
    tl.store(ids + s, token.to(tl.int64))
    if SEEN:
        tl.store(seen + slot * seen_stride + token, 1, mask=token >= 0)


@triton.jit
def weights(gap, temperature, top_k, top_p, min_p, V):
    """What each token weighs in the draw, the most likely one 1 and those left out 0. ``gap``: how far below the highest."""
    if (top_k > 0) & (top_k < V):
        gap = tl.where(gap.to(tl.int32, bitcast=True) <= kth_smallest(gap, top_k, V), gap, float("inf"))
    weight = tl.exp2(gap * -(LOG2_E / tl.maximum(temperature, COOLEST)))
    if top_p < 1.0:
        weight = tl.where(weight.to(tl.int32, bitcast=True) >= least_needed(weight, top_p), weight, 0.0)
    return tl.where(weight >= min_p, weight, 0.0)


@triton.jit
def inverse(weight, u, LINES: tl.constexpr, LINE: tl.constexpr):
    """The first place whose running sum of weights exceeds u times their sum: its group of lines, its line, itself."""
    GROUP: tl.constexpr = min(LINES, 32)
    mass = tl.reshape(tl.sum((weight * SCALE).to(tl.int64), axis=1), (LINES // GROUP, GROUP))
    total = tl.sum(mass)
    goal = tl.minimum((u * total.to(tl.float64)).to(tl.int64), total - 1)
    group, goal = crossing(tl.sum(mass, axis=1), goal, LINES // GROUP)
    line, goal = crossing(tl.sum(tl.where(tl.arange(0, LINES // GROUP)[:, None] == group, mass, 0), axis=0), goal, GROUP)
    line += group * GROUP
    chosen = tl.sum(tl.where(tl.arange(0, LINES)[:, None] == line, weight, 0.0), axis=0)
    place, goal = crossing((chosen * SCALE).to(tl.int64), goal, LINE)
    return line * LINE + place


@triton.jit
def crossing(mass, goal, N: tl.constexpr):
    """Where the running sum of a few masses first exceeds the goal, and how far into that one the goal lies."""
    up_to = tl.sum(tl.where(tl.arange(0, N)[:, None] >= tl.arange(0, N)[None, :], mass[None, :], 0), axis=1)
    within = up_to <= goal
    return tl.sum(within.to(tl.int32)), goal - tl.max(tl.where(within, up_to, 0))


@triton.jit
def uniform(seed, drawn):
    """``uniform`` of ``philox.py``, bit for bit; Triton brings the same Philox."""
    low, high = drawn.to(tl.uint32), (drawn >> 32).to(tl.uint32)
    a, b, _, _ = tl.philox(seed, low, high, low * 0, low * 0)
    return ((a >> 5).to(tl.int64) << 26 | (b >> 6).to(tl.int64)).to(tl.float64) * 1.1102230246251565e-16
