"""Exchanges between ranks that split layers, with their gradients; and sums of many tensors at once."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zamba_lm.parallel.group import Ranks

LARGE = 1 << 20  # numbers of a gradient that travels by itself; smaller ones go together


def enter(x: Tensor, ranks: Ranks) -> Tensor:
    """x, whose gradient is the sum of everybody's."""
    return _Enter.apply(x, ranks.group)


def leave(part: Tensor, ranks: Ranks) -> Tensor:
    """The sum of everybody's part, in its dtype."""
    return _Leave.apply(part, ranks.group)


def own(x_TD: Tensor, ranks: Ranks) -> Tensor:
    """x, of whose gradient this rank passes on its own rows."""
    return _Own.apply(x_TD, mine_of(len(x_TD), ranks))


def mine_of(rows: int, ranks: Ranks) -> slice:
    """My part of so many rows."""
    return slice(ranks.rank * rows // ranks.size, (ranks.rank + 1) * rows // ranks.size)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d_x):
        return summed(d_x, ctx.group), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, part, group):
        return summed(part, group)

    @staticmethod
    def backward(ctx, d_sum):
        return d_sum, None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mine):
        ctx.mine = mine
        return x.view_as(x)

    @staticmethod
    def backward(ctx, d_x):
        part = torch.zeros_like(d_x)
        part[ctx.mine] = d_x[ctx.mine]
        return part, None


def summed(part: Tensor, group: Any) -> Tensor:
    """A tensor of its own with the sum of everybody's."""
    total = part.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def add_up(tensors: list[Tensor], group: Any) -> None:
    """Every tensor becomes the sum of everybody's, in place; contiguous and of one dtype."""
    small = [one for one in tensors if 0 < one.numel() < LARGE]
    for one in tensors:
        if one.numel() >= LARGE:
            dist.all_reduce(one, group=group)
    if small:
        together = torch.cat([one.flatten() for one in small])
        dist.all_reduce(together, group=group)
        for one, total in zip(small, together.split([one.numel() for one in small])):
            one.copy_(total.view_as(one))
