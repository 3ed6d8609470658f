"""A Zamba spread over devices by its structure (FSDP2).

Every matrix lies in equal pieces on all devices, float32, with its gradient and its moments. Before a unit runs, its pieces are
gathered in the dtype of products; behind it they are let go. The units:

- each layer, with the adapters and the link of its call;
- each shared block. It is called from many layers, so it is gathered once, before its first call, and kept to the end of the step
  (``keep``);
- the embedding, which is the head too, in float32: the residual stream begins with it.

Vectors (norms, biases, convolutions, A_log, D, dt_bias) are a thousandth of the weights. They stay whole and float32 on every
device, and their gradients are averaged together once a step. Gradients of matrices leave their products in float32, as on one
device, and are added up in float32.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from zamba_lm.train.optim import kind_of
from zamba_lm.train.scale.exchange import add_up
from zamba_lm.train.scale.mesh import Places
from zamba_lm.train.scale.tensor import Split

AHEAD = 2  # layers before its first call that a block is asked for


class Spread:
    """What a step over several devices does beside what FSDP2 does by itself. ``model``: a wrapper around ``zamba``."""

    def __init__(self, model: nn.Module, places: Places, *, bf16: bool, keep: str = "blocks"):
        self.model, self.zamba, self.places = cast(Any, model), cast(Any, model.zamba), places
        self.split = Split(model, places.tensor) if places.tensor else None
        self.units: list[Any] = []
        if places.pieces is None:
            self.apart = [p for p in model.parameters() if p.requires_grad]
        else:
            self.apart = [p for p in _apart(self.zamba) if p.requires_grad]
            self._spread(places.pieces, torch.bfloat16 if bf16 else None, keep)
        if self.split:
            self.split.mark(self.zamba)

    def _spread(self, mesh: DeviceMesh, products: torch.dtype | None, keep: str) -> None:
        zamba, model, ignored = self.zamba, self.model, set(_apart(self.zamba))
        shard = partial(_shard, mesh=mesh, ignored=ignored)
        for block in zamba.blocks:
            shard(block, dtype=products, keep=keep in ("blocks", "all"))
        for layer in zamba.layers:
            shard(layer, dtype=products, keep=keep == "all")
        model.through = lambda run: run()
        shard(model, dtype=None, keep=True)
        register_fsdp_forward_method(model, "through")
        self.units = [model, *zamba.blocks, *zamba.layers]
        _in_order(model, list(zamba.layers), list(zamba.blocks))

    def end_step(self) -> None:
        """Behind the last backward pass of a step: average the gradients of what lies in no pieces, let the blocks go, and add up
        those of what ranks hold together."""
        grads = [p.grad for p in self.apart if p.grad is not None]
        if self.places.count > 1:
            add_up(grads, self.places.data)
            torch._foreach_div_(grads, self.places.count)
        self.let_go()
        if self.split:
            self.split.end_step(self.zamba)

    def let_go(self) -> None:
        """Every device holds its own pieces alone."""
        for unit in self.units:
            unit.reshard()

    def through(self, run: Callable[[], Any]) -> Any:
        """run() while the embedding is gathered; layers and blocks gather themselves. All processes have to do the same."""
        if not self.units:
            return run()
        try:
            return self.model.through(run)
        finally:
            self.let_go()


def _apart(zamba: nn.Module) -> list[nn.Parameter]:
    """Parameters that lie in no pieces: vectors, and adapters over a frozen model."""
    named = list(zamba.named_parameters())
    adapters = not all(p.requires_grad for _, p in named)
    return [p for name, p in named if kind_of(name, p) == "vector" or (adapters and p.requires_grad)]


def _shard(unit: nn.Module, *, mesh: DeviceMesh, ignored: set[nn.Parameter], dtype: torch.dtype | None, keep: bool) -> None:
    """Make a module a unit. ``keep``: gathered until ``let_go``."""
    size = mesh.shape[-1]
    fully_shard(
        unit,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
        reshard_after_forward=not keep,
        shard_placement_fn=lambda p: _placement(p, size),
        ignored_params=ignored,
    )
    cast(FSDPModule, unit).set_reshard_after_backward(not keep, recurse=False)
    unit.register_forward_pre_hook(_wide_gradients)  # behind FSDP's own, which gathers


def _placement(p: torch.Tensor, size: int) -> Shard:
    """Rows of matrices; of a stack of few matrices an axis that divides."""
    if p.dim() < 3 or p.shape[0] % size == 0:
        return Shard(0)
    return Shard(next((dim for dim in (1, 2) if p.shape[dim] % size == 0), 0))


def _wide_gradients(unit: nn.Module, args: Any) -> None:
    """Gathered weights may be bfloat16; their gradients are made in float32 all the same."""
    for p in unit.parameters():
        if p.requires_grad and p.dtype == torch.bfloat16:
            p.grad_dtype = torch.float32


def _in_order(model: Any, layers: list[Any], blocks: list[Any]) -> None:
    """Say which units to gather next while one runs, forward and back."""
    ahead: dict[int, list] = {at: [layers[at + 1]] for at in range(len(layers) - 1)}
    first = [layers[0]]
    for number, block in enumerate(blocks):
        at = next(layer.plan.layer for layer in layers if layer.plan.block == number) - AHEAD
        (first if at < 0 else ahead[at]).append(block)
    model.set_modules_to_forward_prefetch(first)
    for at, units in ahead.items():
        layers[at].set_modules_to_forward_prefetch(units)
        layers[at + 1].set_modules_to_backward_prefetch([layers[at]])
