"""The two smallest modules: a projection without bias, a norm. Weights stay uninitialised until loaded or initialised."""

import torch
from torch import nn

from zamba_lm.ops.linear import linear
from zamba_lm.ops.norm import norm


class Linear(nn.Module):
    """y = x W^T with W (out, in)."""

    def __init__(self, d_in: int, d_out: int, *, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in, device=device, dtype=dtype))

    def forward(self, x):
        return linear(x, self.weight)


class Norm(nn.Module):
    """RMSNorm with a weight (width,)."""

    def __init__(self, width: int, eps: float, *, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x):
        return norm(x, self.weight, self.eps)
