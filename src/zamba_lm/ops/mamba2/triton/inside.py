"""From the input projection's rows to what the output projection reads, and back, by the kernels of conv, ssd and norm.

Kept for the way back: what the convolution made, what SSD made, the state before every chunk, and a few constants. Going back,
each kernel writes its part of the gradient of h where it belongs, so that the product behind reads it as it lies; split and
joined by autograd, every part was copied twice. What the output projection read is made again on the way, by the kernel that
needs its factors anyhow.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from zamba_lm.ops.conv.triton import convolved
from zamba_lm.ops.conv.triton import gradients as conv_gradients
from zamba_lm.ops.gpu import cdiv, launch, power_of_two
from zamba_lm.ops.mamba2.reference import apart, split
from zamba_lm.ops.norm.triton import gradients as norm_gradients
from zamba_lm.ops.norm.triton import normed
from zamba_lm.ops.norm.triton.sums import column_sums
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd.triton.call import Call

ALIGNED = 16  # columns that rows of h and its gradient are padded to: products and wide loads want them aligned
KEPT = 4  # tensors that ``there`` hands to ``back``


class Parameters(NamedTuple):
    conv_weight: torch.Tensor  # (C, K)
    conv_bias: torch.Tensor  # (C)
    dt_bias: torch.Tensor  # (H)
    A_log: torch.Tensor  # (H)
    D: torch.Tensor  # (H)
    norm_weight: torch.Tensor  # (I)


class How(NamedTuple):
    packing: Packing
    groups: int
    eps: float
    limit: tuple[float, float]


def padded(width: int) -> int:
    return -(-width // ALIGNED) * ALIGNED


def width_of(p: Parameters) -> int:
    """Of a row of h."""
    return p.norm_weight.shape[0] + p.conv_weight.shape[0] + p.D.shape[0]


def there(h, p: Parameters, how: How, keep: bool):
    """What the output projection reads (T, I), and what ``back`` wants besides h where ``keep``."""
    z, x, dt, heads, maps = split(h, p.conv_weight, p.D, p.norm_weight, how.groups)
    x = convolved(x, p.conv_weight.contiguous(), p.conv_bias.contiguous(), how.packing)
    constants = _constants(p)
    y, _, states = _call(x, dt, heads, maps, constants, how).forward(before=keep)
    y = y.flatten(-2)
    return normed(y, z, p.norm_weight, how.eps, how.groups), (x, y, states, constants)


def back(d, h, kept, p: Parameters, how: How, again=None):
    """Gradients of h, rows padded with zeros (T, padded(E)), and of the parameters, for d (T, I) with unit column stride.
    ``again`` (T, I), where given, is filled with what ``there`` returned."""
    x, y, states, constants = kept
    z, before, dt, heads, maps = split(h, p.conv_weight, p.D, p.norm_weight, how.groups)
    E = h.shape[1]
    whole = torch.empty(h.shape[0], padded(E), dtype=h.dtype, device=h.device)
    whole[:, E:].zero_()
    d_z, d_before, d_dt, _, _ = split(whole[:, :E], p.conv_weight, p.D, p.norm_weight, how.groups)

    d_y = torch.empty_like(y)
    shares = norm_gradients(d_y, d_z, d, y, z, p.norm_weight, how.eps, how.groups, again)

    d_x = torch.empty_like(x)
    to_x, to_B, to_C = apart(d_x, y.shape[1], heads, maps)
    call, into = _call(x, dt, heads, maps, constants, how), (to_x, d_dt, to_B, to_C)
    sums = call.backward(d_y.unflatten(-1, heads), None, into, states)

    of_conv = conv_gradients(d_before, d_x, before, p.conv_weight.contiguous(), p.conv_bias.contiguous(), how.packing)
    return whole, Parameters(*of_conv, *_of_steps(sums, constants, p), column_sums(shares, p.norm_weight.dtype))


def _call(x, dt, heads, maps, constants, how: How) -> Call:
    A, D, bias = constants
    x, B, C = apart(x, heads[0] * heads[1], heads, maps)
    return Call(x, dt, A, B, C, D, None, bias, how.packing, 0, how.limit, None)


def _constants(p: Parameters):
    """(3, H) float32: A, D, and the bias of the time steps."""
    H = p.D.shape[0]
    out = torch.empty(3, H, dtype=torch.float32, device=p.D.device)
    given = (v.contiguous() for v in (p.A_log, p.D, p.dt_bias))
    launch(constants_kernel, (1,), *given, out, H, BLOCK=power_of_two(H), device=out.device, num_warps=1)
    return out


def _of_steps(sums, constants, p: Parameters):
    """Gradients of dt_bias, A_log and D from their chunks' shares (3, Z, H): of A, D and the bias."""
    _, Z, H = sums.shape
    d_bias, d_A_log, d_D = (torch.empty(H, dtype=v.dtype, device=v.device) for v in (p.dt_bias, p.A_log, p.D))
    grid = (cdiv(H, 16), 3)
    launch(steps_sums_kernel, grid, sums, constants, d_A_log, d_D, d_bias, Z, H, ROWS=128, BH=16, device=d_D.device, num_warps=4)
    return d_bias, d_A_log, d_D


@triton.jit
def steps_sums_kernel(sums, constants, d_A_log, d_D, d_bias, Z, H, ROWS: tl.constexpr, BH: tl.constexpr):
    h, which = tl.program_id(0) * BH + tl.arange(0, BH), tl.program_id(1)
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, BH), tl.float32)
    for first in range(0, Z, ROWS):
        at = (which * Z + first + row).to(tl.int64) * H + h[None, :]
        total += tl.load(sums + at, mask=(first + row < Z) & (h < H)[None, :], other=0.0)
    found = tl.sum(total, 0)
    if which == 0:  # A = -exp(A_log) is its own slope
        found *= tl.load(constants + h, mask=h < H, other=0.0)
        tl.store(d_A_log + h, found.to(d_A_log.dtype.element_ty), mask=h < H)
    elif which == 1:
        tl.store(d_D + h, found.to(d_D.dtype.element_ty), mask=h < H)
    else:
        tl.store(d_bias + h, found.to(d_bias.dtype.element_ty), mask=h < H)


@triton.jit
def constants_kernel(A_log, D, bias, out, H, BLOCK: tl.constexpr):
    h = tl.arange(0, BLOCK)
    here = h < H
    tl.store(out + h, -tl.exp(tl.load(A_log + h, here, other=0.0).to(tl.float32)), here)
    tl.store(out + H + h, tl.load(D + h, here, other=0.0).to(tl.float32), here)
    tl.store(out + 2 * H + h, tl.load(bias + h, here, other=0.0).to(tl.float32), here)
