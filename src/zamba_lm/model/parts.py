"""The smallest parts: a projection without bias, the door to it, a norm. Weights are uninitialised until they are filled."""

import torch
from torch import nn

from zamba_lm.ops.linear import Normed, Squares, linear, pack, prepared, summed, unpack
from zamba_lm.ops.norm import norm


class Linear(nn.Linear):
    """y = x W^T with W (out, in). ``row_scale`` belongs to a weight packed in eight bits (see ``ops.linear``).

    An ``nn.Linear``, so that whoever replaces such layers (PEFT, bitsandbytes) finds it. Models call it by ``project``.
    """

    def __init__(self, d_in: int, d_out: int, *, device=None, dtype=None):
        super().__init__(d_in, d_out, bias=False, device=device, dtype=dtype)
        self.row_scale: torch.Tensor | None = None

    def reset_parameters(self) -> None:
        """Nothing: what is drawn here would be overwritten."""

    def forward(self, x, *, norm: "Norm | Normed | None" = None, residual=None):
        """``norm`` is applied to x first, ``residual`` is added to the product (see ``ops.linear``)."""
        if isinstance(norm, Norm):
            norm = Normed(norm.weight, norm.eps)
        return linear(x, self.weight, self.row_scale, norm=norm, residual_TO=residual)

    def pack(self) -> None:
        """Pack the weight where that gains anything, for inference only."""
        packed, scale = pack(self.weight)
        if scale is not None:
            self.weight, self.row_scale = nn.Parameter(packed, requires_grad=False), scale

    def dense(self) -> torch.Tensor:
        """The weight as a plain tensor."""
        return unpack(self.weight.detach(), self.row_scale)


def project(module: nn.Module, x, *, norm: "Norm | Normed | Squares | None" = None, residual=None):
    """module(norm(x)) + residual, whatever stands in the projection's place; x (T, in), or two that lie side by side.

    Our own ``Linear`` does all three at once. Anything else (a LoRA layer, a quantised one), and a ``Linear`` that somebody
    listens to by hooks, gets the normed x and is never bypassed.
    """
    if is_plain(module):
        return module(x, norm=norm, residual=residual)
    x, residual = tuple(map(summed, x)) if type(x) is tuple else summed(x), summed(residual)
    y_TO = module(prepared(x, Normed(norm.weight, norm.eps) if isinstance(norm, Norm) else norm))
    return y_TO if residual is None else residual + y_TO


def project_onto(module: nn.Module, x, residual, *, norm: "Normed | Squares | None" = None):
    """``project`` for inference: the sum may take the residual's place, or be left to the norm that reads it (``Unsummed``)."""
    if type(module) is not Linear or not is_plain(module):
        return project(module, x, norm=norm, residual=residual)
    return linear(x, module.weight, module.row_scale, norm=norm, residual_TO=residual, overwrite=True, later=True)


def is_plain(*modules: nn.Module) -> bool:
    """Whether all are ``Linear`` without hooks: then their weights may be read past them."""
    for m in modules:
        if not isinstance(m, Linear) or m._forward_pre_hooks or m._forward_hooks or m._backward_hooks:
            return False
    return True


class Norm(nn.Module):
    """RMSNorm with a weight (width,)."""

    def __init__(self, width: int, eps: float, *, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x):
        return norm(x, self.weight, self.eps)
