"""The sigmoid as Triton kernels make it that are short of instructions."""

import triton
import triton.language as tl


@triton.jit
def quick_sigmoid(x):
    """Of float32: half the instructions of exp and a division."""
    root = tl.rsqrt(1 + tl.exp2(x * -1.4426950408889634))
    return root * root
