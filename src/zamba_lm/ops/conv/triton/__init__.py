"""Launchers of the convolution's kernels, and their place in autograd."""

import torch
import triton

from zamba_lm.ops.conv.triton.backward import conv_backward
from zamba_lm.ops.conv.triton.forward import conv_forward
from zamba_lm.ops.gpu import launch
from zamba_lm.ops.packing import Packing, on_device

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# Tokens at a time, how many times, channels, warps: enough loads under way, and no register spilled, on Hopper.
FORWARD = (8, 4, 256, 1)
BACKWARD = (8, 8, 128, 2)


def conv_triton(x_TC, weight_CK, bias_C, packing: Packing, window_SKC=None):
    return Conv.apply(x_TC, weight_CK, bias_C, window_SKC, packing)


class Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, window, packing):
        if any(v is not None and v.dtype not in FLOATS for v in (x, weight, bias, window)):
            raise ValueError(f"conv takes float32, bfloat16 or float16; x is {x.dtype}, weight {weight.dtype}, bias {bias.dtype}")
        x = x if x.stride(-1) == 1 else x.contiguous()
        weight, bias, window = weight.contiguous(), bias.contiguous(), None if window is None else window.contiguous()
        (T, C), K, S = x.shape, weight.shape[1], len(packing)
        ctx.save_for_backward(x, weight, bias, window)
        ctx.packing = packing
        ctx.set_materialize_grads(False)
        y = torch.empty((T, C), dtype=x.dtype, device=x.device)
        after = torch.empty((S, K - 1, C), dtype=x.dtype, device=x.device)
        rows, turns, channels, warps = FORWARD
        launch(
            conv_forward,
            ((triton.cdiv(T, rows * turns) + S) * triton.cdiv(C, channels),),
            *(y, after, x, window, weight, bias, packing.cu_seqlens(x.device), T, S, x.stride(0), C),
            K=K,
            GIVEN=window is not None,
            ROWS=rows,
            TURNS=turns,
            BLOCK_C=channels,
            BLOCK_K=triton.next_power_of_2(K),
            num_warps=warps,
            device=x.device,
        )
        return y, after

    @staticmethod
    def backward(ctx, d_y, d_after):
        x, weight, bias, window = ctx.saved_tensors
        packing, (T, C), K = ctx.packing, x.shape, weight.shape[1]
        d_y = torch.zeros_like(x) if d_y is None else d_y
        d_y = d_y if d_y.stride(-1) == 1 else d_y.contiguous()
        d_x = torch.empty((T, C), dtype=x.dtype, device=x.device)
        d_window = None if window is None else torch.empty_like(window)
        rows, turns, channels, warps = BACKWARD
        blocks = triton.cdiv(T, rows * turns)
        sums = torch.empty((blocks, K + 1, C), dtype=torch.float32, device=x.device)
        launch(
            conv_backward,
            ((blocks + (0 if window is None else len(packing))) * triton.cdiv(C, channels),),
            *(d_x, d_window, sums, d_y, x, window, weight, bias, packing.cu_seqlens(x.device)),
            *(T, len(packing), x.stride(0), d_y.stride(0), C),
            K=K,
            GIVEN=window is not None,
            ROWS=rows,
            TURNS=turns,
            BLOCK_C=channels,
            BLOCK_K=triton.next_power_of_2(K),
            num_warps=warps,
            device=x.device,
        )
        sums = sums.sum(0)
        if d_after is not None:
            _add_windows_after(d_x, d_window, d_after, packing)
        return d_x, sums[:K].T.to(weight.dtype), sums[K].to(bias.dtype), d_window, None


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
