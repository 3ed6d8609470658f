"""Linear cross-entropy: products by cuBLAS a few thousand tokens at a time, everything between them by one Triton kernel."""

import torch

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.linear.weights import outer
from zamba_lm.ops.xent.triton.rows import loss_kernel

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHUNK_BYTES = 1 << 30  # of logits that exist at once, at most
TILED = 10 << 20  # numbers in dx of a chunk, at least: its products keep a large GPU busy, and dW is not added up too often
WHOLE = 4096  # logits that a program holds at once, twice as many of rows of more than two pieces; see measured.md


def xent_triton(x_TD, weight_VD, targets_T):
    return _LinearCrossEntropy.apply(*operands(x_TD, weight_VD), targets_T)


def operands(x_TD, weight_VD):
    """x as it is multiplied: in autocast's dtype. The weight is brought to it later, so that its gradient is of its own dtype."""
    kind = x_TD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_TD.dtype
    if dtype not in DTYPES:
        raise TypeError(f"x is {dtype}, expected one of {', '.join(map(str, DTYPES))}")
    x_TD = x_TD.to(dtype)
    if not torch.is_grad_enabled():  # inside forward it is always off, and parameters still say that they need a gradient
        x_TD, weight_VD = x_TD.detach(), weight_VD.detach()
    return x_TD, weight_VD


def chunk(V: int, D: int, width: int, budget: int = CHUNK_BYTES) -> int:
    """Tokens whose logits of ``width`` bytes exist at once: a power of two, at least 1024. As many as leave the product by the
    head, (chunk, V) with (V, D), tiles for every multiprocessor; narrow models need more."""
    wanted = 1 << (TILED // D - 1).bit_length()
    return max(1024, min(wanted, 1 << (budget // (V * width)).bit_length() - 1))


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, while the logits are at hand: the backward pass only scales them. The weight is
    brought to x's dtype for products; its gradient is added up in float32."""

    @staticmethod
    def forward(ctx, x_TD, weight_VD, targets_T):
        (T, _), V, ctx.dtype = x_TD.shape, len(weight_VD), weight_VD.dtype
        weight_VD = weight_VD.to(x_TD.dtype)
        want_x, want_w = ctx.needs_input_grad[:2]
        losses_T = x_TD.new_empty(T, dtype=torch.float32)
        dx_TD = torch.empty_like(x_TD) if want_x else None
        dw_VD = None
        step = chunk(V, x_TD.shape[1], x_TD.element_size())
        for start in range(0, T, step):
            x, targets = x_TD[start : start + step], targets_T[start : start + step]
            logits_TV = torch.mm(x, weight_VD.T, out=x.new_empty(len(x), V))
            loss(logits_TV, targets, losses_T[start : start + step], want_x or want_w)
            if want_x:
                torch.mm(logits_TV, weight_VD, out=dx_TD[start : start + step])
            if want_w:
                dw_VD = outer(logits_TV, x, ctx.dtype if T <= step else torch.float32, dw_VD)
        if want_w and dw_VD is None:
            dw_VD = torch.zeros_like(weight_VD)
        ctx.save_for_backward(dx_TD, dw_VD)
        return losses_T.sum()

    @staticmethod
    def backward(ctx, scale):
        dx_TD, dw_VD = ctx.saved_tensors
        dx_TD = None if dx_TD is None else dx_TD * scale
        if dw_VD is not None:
            dw_VD = torch.mul(dw_VD, scale, out=torch.empty_like(dw_VD, dtype=ctx.dtype))
        return dx_TD, dw_VD, None


def loss(logits_TV, targets_T, losses_T, gradient: bool, scores=(None, None, None)) -> None:
    """Write losses; where ``gradient``, overwrite the logits with it. ``scores``: where to write entropy, mean and top."""
    T, V = logits_TV.shape
    block = min(WHOLE if V <= 2 * WHOLE else 2 * WHOLE, max(128, 1 << (V - 1).bit_length()))
    warps = max(1, block // 1024)
    launch(
        loss_kernel, (T,), logits_TV, targets_T.contiguous(), losses_T, *scores, V, logits_TV.stride(0), BLOCK=block,
        ONCE=V <= block, GRADIENT=gradient, SCORES=scores[0] is not None, num_warps=warps, device=logits_TV.device,
    )  # fmt: skip
