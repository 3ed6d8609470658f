"""The highest logit of each row and its place."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

NONE = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _higher(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def highest(x):
    """The highest of x; NaN when x holds one."""
    return tl.reduce(tl.ravel(x, can_reorder=True), 0, _higher)


@triton.jit
def first(x, top, place):
    """The first place of ``top``; -1 when it is NaN."""
    return tl.where(top == top, tl.min(tl.ravel(tl.where(x == top, place, NONE), can_reorder=True)), -1)


@triton.jit
def argmax_kernel(logits, stride, ids, values, places, V, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    s, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + s * stride + place, mask=place < V, other=float("-inf")).to(tl.float32)
    top = highest(x)
    if PARTS == 1:
        tl.store(ids + s, first(x, top, place).to(tl.int64))
    else:
        tl.store(values + s * PARTS + part, top)
        tl.store(places + s * PARTS + part, first(x, top, place))


@triton.jit
def best_part_kernel(values, places, ids, PARTS: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    s = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, WIDTH)
    x = tl.load(values + s * PARTS + part, mask=part < PARTS, other=float("-inf"))
    place = tl.load(places + s * PARTS + part, mask=part < PARTS, other=NONE)
    tl.store(ids + s, first(x, highest(x), place).to(tl.int64))
