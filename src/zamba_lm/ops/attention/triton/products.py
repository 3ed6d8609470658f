"""Matrix products of a tile."""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634  # scores are scaled by it, so that weights are powers of two

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc):
    """acc + a b, in full float32 for float32. Triton's interpreter holds bfloat16 as integers and would multiply those, so there
    the product is spelled out."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
