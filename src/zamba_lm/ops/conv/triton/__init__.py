"""Launchers of the convolution's kernels, and their place in autograd."""

import torch

from zamba_lm.ops.conv.triton.backward import add_shares, conv_backward
from zamba_lm.ops.conv.triton.forward import conv_forward
from zamba_lm.ops.gpu import cdiv, launch, power_of_two
from zamba_lm.ops.packing import Packing, on_device

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Tokens at a time, how many times, channels, warps: enough loads under way, and no register spilled, on Hopper.
FORWARD = (8, 2, 128, 1)
BACKWARD = (16, 4, 128, 2)


def conv_triton(x_TC, weight_CK, bias_C, packing: Packing, window_SKC=None, slots_S=None, in_place=False):
    given = x_TC, weight_CK, bias_C, window_SKC
    if any(v is not None and v.dtype not in FLOATS for v in given):
        raise ValueError(f"conv takes float32, bfloat16 or float16; x is {x_TC.dtype}, weight {weight_CK.dtype}")
    if not in_place:
        return Conv.apply(*given, packing)
    x, weight, bias = x_TC if x_TC.stride(-1) == 1 else x_TC.contiguous(), weight_CK.contiguous(), bias_C.contiguous()
    return convolved(x, weight, bias, packing, window_SKC, window_SKC, slots_S), window_SKC


class Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, window, packing):
        x = x if x.stride(-1) == 1 else x.contiguous()
        weight, bias, window = weight.contiguous(), bias.contiguous(), None if window is None else window.contiguous()
        ctx.save_for_backward(x, weight, bias, window)
        ctx.packing = packing
        ctx.set_materialize_grads(False)
        after = torch.empty((len(packing), weight.shape[1] - 1, len(weight)), dtype=x.dtype, device=x.device)
        return convolved(x, weight, bias, packing, window, after), after

    @staticmethod
    def backward(ctx, d_y, d_after):
        x, weight, bias, window = ctx.saved_tensors
        d_y = torch.zeros_like(x) if d_y is None else d_y
        d_y = d_y if d_y.stride(-1) == 1 else d_y.contiguous()
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        d_window = None if window is None else torch.empty_like(window)
        d_weight, d_bias = gradients(d_x, d_y, x, weight, bias, ctx.packing, window, d_window)
        if d_after is not None:
            _add_windows_after(d_x, d_window, d_after, ctx.packing)
        return d_x, d_weight, d_bias, d_window, None


def convolved(x, weight, bias, packing, window=None, after=None, slots=None):
    """The convolution's output; ``after``, where given, is filled with the windows behind the sequences, and may be ``window``.
    Sequence s has the windows ``slots[s]`` where there are slots."""
    (T, C), K, S = x.shape, weight.shape[1], len(packing)
    y, starts = torch.empty((T, C), dtype=x.dtype, device=x.device), packing.cu_seqlens(x.device)
    rows, turns, channels, warps = FORWARD
    launch(
        conv_forward,
        ((cdiv(T, rows * turns) + S) * cdiv(C, channels),),
        *(y, y if after is None else after, x, x if window is None else window, weight, bias, starts),
        *(starts if slots is None else slots, T, S, x.stride(0), C),
        K=K,
        GIVEN=window is not None,
        AFTER=after is not None,
        SLOTS=slots is not None,
        ROWS=rows,
        TURNS=turns,
        BLOCK_C=channels,
        BLOCK_K=power_of_two(K),
        num_warps=warps,
        device=x.device,
        pdl=True,
    )
    return y


def gradients(d_x, d_y, x, weight, bias, packing, window=None, d_window=None):
    """Fill d_x, whose rows may lie in something wider, and d_window; returns the gradients of weight and bias."""
    (T, C), K = x.shape, weight.shape[1]
    rows, turns, channels, warps = BACKWARD
    blocks = cdiv(T, rows * turns)
    sums = torch.empty((blocks, K + 1, C), dtype=torch.float32, device=x.device)
    launch(
        conv_backward,
        ((blocks + (0 if window is None else len(packing))) * cdiv(C, channels),),
        *(d_x, d_window, sums, d_y, x, window, weight, bias, packing.cu_seqlens(x.device)),
        *(T, len(packing), x.stride(0), d_y.stride(0), d_x.stride(0), C),
        K=K,
        GIVEN=window is not None,
        ROWS=rows,
        TURNS=turns,
        BLOCK_C=channels,
        BLOCK_K=power_of_two(K),
        num_warps=warps,
        device=x.device,
    )
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(bias)
    columns = 32
    launch(
        add_shares,
        (cdiv(C, columns), K + 1),
        *(sums, d_weight, d_bias, blocks, C),
        K=K,
        ROWS=128,
        COLUMNS=columns,
        num_warps=4,
        device=x.device,
    )
    return d_weight, d_bias


def _add_windows_after(d_x, d_window, d_after, packing):
    """The windows handed on are inputs, or entries of the windows before: their gradient belongs to those."""
    past = d_after.shape[1]
    ends = packing.cu_seqlens().tolist()[1:]
    inputs, entries = [], []  # (where from, where to), in rows
    for s, (end, length) in enumerate(zip(ends, packing.lengths, strict=True)):
        for k in range(past):
            back = past - k  # tokens before the end
            (inputs if back <= length else entries).append(
                (s * past + k, end - back if back <= length else s * past + k + length)
            )
    for to, pairs in ((d_x, inputs), (d_window, entries)):
        if to is not None and pairs:
            source, target = on_device(list(zip(*pairs, strict=True)), torch.int64, d_x.device)
            rows = to.view(-1, to.shape[-1])
            rows.index_add_(0, target, d_after.reshape(-1, rows.shape[-1])[source].to(to.dtype))
