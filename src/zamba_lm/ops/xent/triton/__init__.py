"""Linear cross-entropy: products by cuBLAS a few thousand tokens at a time, everything between them by one Triton kernel."""

import torch

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.xent.reference import operands
from zamba_lm.ops.xent.triton.rows import loss_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK_BYTES = 128 << 20  # of logits that exist at once
WHOLE = 65536  # the longest row of logits that stays in registers


def xent_triton(x_TD, weight_VD, targets_T):
    x_TD, weight_VD = operands(x_TD, weight_VD)
    if x_TD.dtype not in DTYPES:
        raise TypeError(f"x is {x_TD.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T)


def chunk(V: int, width: int, budget: int = CHUNK_BYTES) -> int:
    """Tokens whose logits of ``width`` bytes exist at once: a power of two between 1024 and 8192."""
    return min(8192, max(1024, 1 << (budget // (V * width)).bit_length() - 1))


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, while the logits are at hand: the backward pass only scales them."""

    @staticmethod
    def forward(ctx, x_TD, weight_VD, targets_T):
        (T, _), V = x_TD.shape, len(weight_VD)
        want_x, want_w = ctx.needs_input_grad[:2]
        losses_T = x_TD.new_empty(T, dtype=torch.float32)
        dx_TD = torch.empty_like(x_TD) if want_x else None
        dw_VD = None
        step = chunk(V, x_TD.element_size())
        for start in range(0, T, step):
            x, targets = x_TD[start : start + step], targets_T[start : start + step]
            logits_TV = x @ weight_VD.T
            loss(logits_TV, targets, losses_T[start : start + step], want_x or want_w)
            if want_x:
                torch.mm(logits_TV, weight_VD, out=dx_TD[start : start + step])
            if want_w:
                dw_VD = _add(dw_VD, logits_TV, x, alone=T <= step)
        if want_w and dw_VD is None:
            dw_VD = torch.zeros_like(weight_VD)
        ctx.save_for_backward(dx_TD, dw_VD)
        ctx.dtype = weight_VD.dtype
        return losses_T.sum()

    @staticmethod
    def backward(ctx, scale):
        dx_TD, dw_VD = ctx.saved_tensors
        dx_TD = None if dx_TD is None else dx_TD * scale
        if dw_VD is not None:
            dw_VD = torch.mul(dw_VD, scale, out=torch.empty_like(dw_VD, dtype=ctx.dtype))
        return dx_TD, dw_VD, None


def loss(logits_TV, targets_T, losses_T, gradient: bool) -> None:
    """Write losses; where ``gradient``, overwrite the logits with it."""
    T, V = logits_TV.shape
    block = min(WHOLE, max(128, 1 << (V - 1).bit_length()))
    warps = min(32, max(1, block // 2048 * 1))
    launch(
        loss_kernel, (T,), logits_TV, targets_T.contiguous(), losses_T, V, logits_TV.stride(0), BLOCK=block, ONCE=V <= block,
        GRADIENT=gradient, num_warps=warps, device=logits_TV.device,
    )  # fmt: skip


def _add(sum_VD, dlogits_TV, x_TD, alone: bool):
    """The sum of the weight's gradient so far, float32, and one chunk's part; the part as it is where it is the only one."""
    if alone:
        return dlogits_TV.T @ x_TD
    if x_TD.device.type == "cpu" or x_TD.dtype == torch.float32:
        part_VD = dlogits_TV.T @ x_TD
        return part_VD.float() if sum_VD is None else sum_VD.add_(part_VD)
    if sum_VD is None:
        return torch.mm(dlogits_TV.T, x_TD, out_dtype=torch.float32)
    return torch.addmm(sum_VD, dlogits_TV.T, x_TD, out_dtype=torch.float32, out=sum_VD)
