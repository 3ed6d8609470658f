"""A weight as products read it: brought to their dtype once a pass, its gradients added up by the products that make them.

Under autocast a float32 weight is multiplied in bfloat16. A shared block is called many times in a pass; its weights are cast at
the first call and kept until the pass is over. Going back, each call's product adds into one sum of the weight's own dtype, and
autograd (with whatever hooks there are) sees that sum once.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_running = threading.local()


class Sum:
    """Where the gradients of one weight's uses in a pass are added up: (O, I), of the weight's dtype."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.total: torch.Tensor | None = None
        self.task = -1  # of autograd: what an unfinished backward pass left here is not of the next one

    def add(self, dy_TO: torch.Tensor, x_TI: torch.Tensor) -> None:
        """Add dy^T x."""
        self.add_matrix(None, dy_TO, x_TI)

    def add_matrix(self, part_OI, dy_TO=None, x_TI=None) -> None:
        """Add a matrix made already, which nobody else writes to; or dy^T x where it is None."""
        task = torch._C._current_graph_task_id()
        total, self.task = self.total if self.task == task else None, task
        if part_OI is None:
            self.total = outer(dy_TO, x_TI, self.dtype, total)
        else:
            self.total = part_OI.to(self.dtype) if total is None else total.add_(part_OI)

    def take(self) -> torch.Tensor | None:
        total, self.total = self.total if self.task == torch._C._current_graph_task_id() else None, None
        return total


def outer(dy_TO, x_TI, dtype: torch.dtype, total_OI=None) -> torch.Tensor:
    """dy^T x in ``dtype``, added to ``total_OI`` where that is given. Added up in float32 by the product itself."""
    out = total_OI
    if out is None:
        out = torch.empty(dy_TO.shape[1], x_TI.shape[1], dtype=dtype, device=x_TI.device)
    if dtype == x_TI.dtype:
        plain = {"out": out}  # with ``out``, autocast keeps away
        return torch.mm(dy_TO.T, x_TI, **plain) if total_OI is None else torch.addmm(out, dy_TO.T, x_TI, **plain)
    if x_TI.device.type != "cuda" or dtype != torch.float32:  # only there products are wider than what they multiply
        part = torch.empty_like(out)
        torch.mm(dy_TO.T.to(dtype), x_TI.to(dtype), out=part)
        return part if total_OI is None else out.add_(part)
    if total_OI is None:
        return torch.mm(dy_TO.T, x_TI, out_dtype=dtype, out=out)
    return torch.addmm(out, dy_TO.T, x_TI, out_dtype=dtype, out=out)


@contextmanager
def one_pass() -> Iterator[None]:
    """Inside, every weight is cast at most once and its gradients are added up in one place. Of this thread; passes may nest."""
    before = getattr(_running, "weights", None)
    _running.weights = {}
    try:
        yield
    finally:
        _running.weights = before


def operand(weight_OI: torch.Tensor, dtype: torch.dtype, align: int = 1) -> tuple[torch.Tensor, Sum | None]:
    """The weight in ``dtype``, and where a product that used it adds its gradient. The sum is None where there is none to make;
    outside of ``one_pass`` each call has its own. ``align``: rows of zeros follow up to a multiple of it, in sum and weight."""
    known = getattr(_running, "weights", None)
    key = id(weight_OI), dtype, align, torch.is_grad_enabled()
    if known is not None and key in known:
        return known[key][1:]
    if torch.is_grad_enabled() and weight_OI.requires_grad:
        sum_OI = Sum(gradient_dtype(weight_OI))
        found = _Operand.apply(weight_OI, dtype, sum_OI, align), sum_OI
    else:
        found = _read(weight_OI.detach(), dtype, align), None
    if known is not None:
        known[key] = weight_OI, *found  # with the weight itself, so that its id stays its own
    return found


def gradient_dtype(weight_OI: torch.Tensor) -> torch.dtype:
    """The weight's own, unless its owner wants gradients in a wider one (torch's ``grad_dtype``)."""
    return (getattr(weight_OI, "grad_dtype", None) if weight_OI.is_leaf else None) or weight_OI.dtype


class _Operand(torch.autograd.Function):
    """The products hand no gradient back along the graph: it lies in the sum by the time this one's turn has come."""

    @staticmethod
    def forward(ctx, weight_OI, dtype, sum_OI, align):
        ctx.sum, ctx.rows = sum_OI, len(weight_OI)
        ctx.set_materialize_grads(False)
        w = _read(weight_OI, dtype, align)
        return w.view_as(w) if w is weight_OI else w

    @staticmethod
    def backward(ctx, elsewhere_OI):
        total = ctx.sum.take()
        if elsewhere_OI is not None:  # from somebody who used it as a plain tensor
            elsewhere_OI = elsewhere_OI.to(ctx.sum.dtype)
            total = elsewhere_OI if total is None else total.add_(elsewhere_OI)
        return None if total is None else total[: ctx.rows], None, None, None


def _read(weight_OI, dtype, align):
    if len(weight_OI) % align == 0:
        return weight_OI.to(dtype)
    padded = weight_OI.new_zeros(-(-len(weight_OI) // align) * align, weight_OI.shape[1], dtype=dtype)
    padded[: len(weight_OI)] = weight_OI
    return padded
