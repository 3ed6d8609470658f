"""SSD in Triton: forward in two or four launches, and gradients that store no state a token.

    steps    running sums of the log decays in every chunk of tokens
    add      what each segment (a run of chunks) adds to the state          only where a sequence has several segments
    hand on  the state before each segment                                  "
    scan     walks through the chunks of each segment and writes outputs

A segment is as long as still leaves enough programs for the chip; x is read twice when there are several, else once.
The gradient walks twice without outputs, forward for the state and backward for its gradient, storing both at every chunk,
and then takes all chunks at once.
"""

import torch

from zamba_lm.ops.packing import Packing
from zamba_lm.ops.ssd.triton.call import Call
from zamba_lm.ops.ssd.triton.configs import LARGEST_GRADIENT, power
from zamba_lm.ops.step.reference import NO_LIMIT

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = (128, 256)  # P and N


def ssd_triton(
    x_THP,
    dt_TH,
    A_H,
    B_TGN,
    C_TGN,
    D_H,
    packing: Packing,
    state_SHPN=None,
    chunk_states=0,
    dt_bias_H=None,
    dt_limit=NO_LIMIT,
    slots_S=None,
    in_place=False,
    *,
    config=None,
):
    """``config``: a configs.Config instead of the shipped one."""
    given = (x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, state_SHPN, dt_bias_H)
    _check(*given, in_place)
    how = (packing, chunk_states, dt_limit, config)
    gradient = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in given)
    check_sizes(x_THP.shape[2], B_TGN.shape[2], x_THP.dtype, gradient and not in_place)
    if in_place:
        y, after, kept = Call(*given, *how, slots_S, True).forward()
    elif gradient:
        y, after, kept = _SSD.apply(*given, *how)
    else:
        y, after, kept = Call(*given, *how).forward()
    return (y, after, kept) if chunk_states else (y, after)


def _check(x, dt, A, B, C, D, state, bias, in_place):
    state = None if in_place else state  # that one is of any dtype
    if x.dtype not in DTYPES or B.dtype != x.dtype or C.dtype != x.dtype:
        raise ValueError(
            f"x, B, C are {x.dtype}, {B.dtype}, {C.dtype}; the Triton ssd takes one of float32, bfloat16, float16 for all three"
        )
    if bias is not None and dt.dtype not in DTYPES:
        raise ValueError(f"dt is {dt.dtype}, expected one of float32, bfloat16, float16")
    for name, v in (
        ("dt", dt if bias is None else None),
        ("A", A),
        ("D", D),
        ("state", state),
        ("dt_bias", bias),
    ):
        if v is not None and v.dtype != torch.float32:
            raise ValueError(f"{name} is {v.dtype}, expected torch.float32")


def check_sizes(P: int, N: int, dtype: torch.dtype, gradient: bool) -> None:
    """ValueError when heads of P channels with d_state N are too large for the kernels."""
    if P > LARGEST[0] or N > LARGEST[1]:
        raise ValueError(f"heads are {P} wide with d_state {N}; the Triton ssd takes up to {LARGEST[0]} and {LARGEST[1]}")
    if gradient and power(P) * power(N) > LARGEST_GRADIENT[dtype]:
        raise ValueError(
            f"gradients of {dtype} heads {P} wide with d_state {N} do not fit in shared memory; "
            'train in bfloat16, or with force(ssd="reference")'
        )


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state, bias, packing, chunk_states, limit, config):
        ctx.save_for_backward(x, dt, A, B, C, D, state, bias)
        ctx.how = packing, 0, limit, config
        ctx.set_materialize_grads(False)
        y, after, kept = Call(x, dt, A, B, C, D, state, bias, packing, chunk_states, limit, config).forward()
        if kept is not None:
            ctx.mark_non_differentiable(kept)
        return y, after, kept

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dafter, _):
        return *Call(*ctx.saved_tensors, *ctx.how).backward(dy, dafter), None, None, None, None
