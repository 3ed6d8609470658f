"""The reference with its elementwise part compiled by torch: for training runs, which ask for it by name."""

from functools import cache, partial

import torch

from zamba_lm.ops.xent.reference import loss_and_gradient, xent_reference


@cache
def _compiled():
    return torch.compile(loss_and_gradient, dynamic=False)


def xent_compiled(x_TD, weight_VD, targets_T):
    return partial(xent_reference, loss=_compiled())(x_TD, weight_VD, targets_T)
