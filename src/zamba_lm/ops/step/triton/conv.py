"""The convolution of one token a row, for more rows than the recurrence's own kernels can do it beside."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import cdiv, launch
from zamba_lm.ops.step.triton.configs import CONV
from zamba_lm.ops.step.triton.parts import convolved, load_past, load_taps, shift


@triton.jit
def conv_kernel(
    x,
    h,
    window,
    slots,
    conv_weight,
    conv_bias,
    S,
    h_stride,
    window_slot,
    window_row,
    INNER: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ROWS: tl.constexpr,
    EARLY: tl.constexpr,
    PDL: tl.constexpr,
):
    """x = SiLU(conv(h)), and the window one token later. Programs: (blocks of channels, ROWS rows).

    The taps, some numbers a channel side by side, are slow to read: a program reads them once for all its rows.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1) * ROWS
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    taps, bias = load_taps(conv_weight, c, c < INNER, K), tl.load(conv_bias + c, mask=c < INNER, other=0.0)
    windows, pasts, news = (), (), ()
    for r in tl.static_range(ROWS):
        slot = tl.load(slots + first + r, mask=first + r < S, other=0) if SLOTS else first + r
        windows += (window + slot.to(tl.int64) * window_slot + c,)
        if EARLY:
            pasts += (load_past(windows[r], window_row, (c < INNER) & (first + r < S), K),)
    if PDL:
        tl.extra.cuda.gdc_wait()
    for r in tl.static_range(ROWS):
        keep = (c < INNER) & (first + r < S)
        news += (tl.load(h + (first + r).to(tl.int64) * h_stride + c, mask=keep, other=0.0),)
        if not EARLY:
            pasts += (load_past(windows[r], window_row, keep, K),)
    for r in tl.static_range(ROWS):
        value = convolved(pasts[r], news[r], taps, bias, K).to(x.dtype.element_ty)
        tl.store(x + (first + r).to(tl.int64) * INNER + c, value, mask=(c < INNER) & (first + r < S))
    tl.debug_barrier()  # all threads have read these channels' windows
    for r in tl.static_range(ROWS):
        shift(windows[r], window_row, pasts[r], news[r], (c < INNER) & (first + r < S), K)


def conv_token(h_SC, window_SKC, slots_S, weight_CK, bias_C, dtype: torch.dtype, early: bool) -> torch.Tensor:
    """SiLU(conv) of rows h (S, C), any stride between them, in ``dtype``; the windows of ``slots_S``, or the first S, move on."""
    S, (K, C) = len(h_SC), window_SKC.shape[1:]
    x_SC = torch.empty(S, C, dtype=dtype, device=h_SC.device)
    block, warps, rows = CONV
    launch(
        conv_kernel,
        (cdiv(C, block), cdiv(S, rows)),
        *(x_SC, h_SC, window_SKC, slots_S, weight_CK, bias_C, S, h_SC.stride(0), *window_SKC.stride()[:2]),
        INNER=C,
        K=K + 1,
        SLOTS=slots_S is not None,
        BLOCK_C=block,
        ROWS=rows,
        EARLY=early,
        num_warps=warps,
        device=h_SC.device,
        pdl=True,
    )
    return x_SC
