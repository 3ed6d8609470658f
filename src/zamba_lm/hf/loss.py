"""Targets from labels, and the loss that never holds a batch's logits."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from zamba_lm.errors import ZambaError
from zamba_lm.hf.layout import Layout
from zamba_lm.model.parts import is_plain, project
from zamba_lm.ops.xent import xent

IGNORED = -100


def targets(labels_BT: torch.Tensor, where: Layout, *, shifted: bool = False) -> torch.Tensor:
    """What every token of a pass is to predict, (N,) int64: the label of the next token of its own sequence, IGNORED where that
    is or where there is none. ``shifted``: the labels stand with the token that predicts them already."""
    if tuple(labels_BT.shape) != where.shape:
        raise ZambaError(f"labels have shape {tuple(labels_BT.shape)}, expected that of the input, {where.shape}")
    labels_N = where.pack(labels_BT)
    if shifted:
        return labels_N
    targets_N = torch.cat([labels_N[1:], labels_N.new_full((1,), IGNORED)])
    return targets_N.index_fill_(0, where.packing.last(labels_N.device), IGNORED)  # an assignment would wait for the device


def loss(hidden_ND: torch.Tensor, head: nn.Module, targets_N: torch.Tensor, count: Any = None) -> torch.Tensor:
    """Cross-entropy in nats, a float32 scalar: the sum over targets divided by ``count`` (None: by their number)."""
    if is_plain(head):
        total = xent(hidden_ND, cast(torch.Tensor, head.weight), targets_N)
    else:  # a head that somebody replaced
        total = F.cross_entropy(project(head, hidden_ND).float(), targets_N, ignore_index=IGNORED, reduction="sum")
    if count is None:
        count = (targets_N >= 0).sum().clamp(min=1)
    return total / (count.to(total.device) if isinstance(count, torch.Tensor) else count)
