"""Linear cross-entropy a few thousand tokens at a time; gradients are made while the logits are at hand."""

import torch
import torch.nn.functional as F

CHUNK = 8192  # tokens whose logits exist at once


def xent_reference(x_TD, weight_VD, targets_T, *, loss=None):
    """``loss``: another way to compute ``loss_and_gradient``."""
    x_TD, weight_VD = operands(x_TD, weight_VD)
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T, loss or loss_and_gradient)


def operands(x_TD, weight_VD):
    """x and weight as they are multiplied: in autocast's dtype, and without a wish for gradients where none can be had."""
    if torch.is_autocast_enabled(x_TD.device.type):
        dtype = torch.get_autocast_dtype(x_TD.device.type)
        x_TD, weight_VD = x_TD.to(dtype), weight_VD.to(dtype)
    if not torch.is_grad_enabled():  # inside forward it is always off, and parameters still say that they need a gradient
        x_TD, weight_VD = x_TD.detach(), weight_VD.detach()
    return x_TD, weight_VD


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss is a sum, so its gradient scales with what comes from above and can be computed in the forward pass."""

    @staticmethod
    def forward(ctx, x_TD, weight_VD, targets_T, loss_and_gradient):
        want_x, want_w = ctx.needs_input_grad[:2]
        total = x_TD.new_zeros((), dtype=torch.float32)
        dx_TD = torch.empty_like(x_TD) if want_x else None
        dw_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if want_w else None
        for start in range(0, x_TD.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits_TV = x_TD[part] @ weight_VD.T
            if not (want_x or want_w):
                total += F.cross_entropy(logits_TV.float(), targets_T[part].clamp(min=-1), ignore_index=-1, reduction="sum")
                continue
            loss, dlogits_TV = loss_and_gradient(logits_TV, targets_T[part])
            total += loss
            if want_x:
                torch.mm(dlogits_TV, weight_VD, out=dx_TD[part])
            if want_w:  # a frozen head, as under LoRA, costs no (V, D) gradient
                dw_VD += dlogits_TV.T @ x_TD[part]
        ctx.save_for_backward(dx_TD, dw_VD)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx, scale):
        dx_TD, dw_VD = ctx.saved_tensors
        dx_TD = None if dx_TD is None else dx_TD * scale
        return dx_TD, None if dw_VD is None else (dw_VD * scale).to(ctx.weight_dtype), None, None


def loss_and_gradient(logits_TV, targets_T):
    """Summed loss and d loss / d logits in the logits' dtype. No matrix product: one or two passes when compiled."""
    logits = logits_TV.float()
    counted = targets_T >= 0
    log_z = torch.logsumexp(logits, dim=-1)
    at = targets_T.clamp(min=0)[:, None]
    loss = ((log_z - logits.gather(1, at)[:, 0]) * counted).sum()
    is_target = torch.arange(logits.shape[1], device=logits.device) == at
    dlogits = (torch.exp(logits - log_z[:, None]) - is_target.float()) * counted[:, None]
    return loss, dlogits.to(logits_TV.dtype)
