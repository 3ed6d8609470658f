"""The smallest parts: a projection without bias, a norm. Weights are uninitialised until loaded or initialised."""

import torch
from torch import nn

from zamba_lm.ops.linear import Normed, linear, pack, unpack
from zamba_lm.ops.norm import norm


class Linear(nn.Module):
    """y = x W^T with W (out, in). ``row_scale`` belongs to a weight packed in eight bits (see ``ops.linear``)."""

    def __init__(self, d_in: int, d_out: int, *, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, device=device, dtype=dtype))
        self.row_scale: torch.Tensor | None = None

    def forward(self, x, *, norm: "Norm | Normed | None" = None, residual=None):
        """``norm`` is applied to x first, ``residual`` is added to the product (see ``ops.linear``)."""
        if isinstance(norm, Norm):
            norm = Normed(norm.weight, norm.eps)
        return linear(x, self.weight, self.row_scale, norm=norm, residual_TO=residual)

    def pack(self) -> None:
        """Pack the weight for this machine's processor, for inference only."""
        packed, self.row_scale = pack(self.weight.detach())
        self.weight = nn.Parameter(packed, requires_grad=False)

    def dense(self) -> torch.Tensor:
        """The weight as a plain tensor."""
        return unpack(self.weight.detach(), self.row_scale)


class Norm(nn.Module):
    """RMSNorm with a weight (width,)."""

    def __init__(self, width: int, eps: float, *, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x):
        return norm(x, self.weight, self.eps)
