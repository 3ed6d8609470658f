"""What a call multiplies by, multiplied out beforehand: less work a token, more memory.

Adapters are added into per-call copies of the weights they correct, and a call's link is multiplied with the last projection of
its block: W_link (W_down y) is (W_link W_down) y, one product instead of two.
"""

from collections.abc import Iterable
from typing import cast

import torch

from zamba_lm.model.parts import Linear, is_plain
from zamba_lm.model.shared import Adapter, SharedBlock
from zamba_lm.model.zamba import Layer, Zamba


def merged_bytes(model: Zamba) -> int:
    """Bytes that the copies of ``merge_adapters`` take."""
    c = model.config
    rows = (2 * c.d_ff * c.d_model if c.adapter_rank else 0) + (3 * c.d_attn * c.d_attn if c.attention_adapters else 0)
    return c.n_calls * rows * model.embedding.weight.element_size()


@torch.no_grad()
def merge_adapters(model: Zamba) -> Zamba:
    """Give every call its own W + B A, in place; returns the model.

    For inference: later changes to a shared weight or an adapter are not seen by the copies. The model saves as before, since
    its parameters stay what they were. A model without adapters, with packed weights or with replaced projections is left alone.
    """
    for layer in _hybrid(model):
        layer.merged = layer.merged | _merged(layer, cast(SharedBlock, model.blocks[cast(int, layer.plan.block)]))
    return model


def link_bytes(model: Zamba) -> int:
    """Bytes that the products of ``merge_links`` take."""
    c = model.config
    return c.n_calls * c.d_model * c.d_ff * model.embedding.weight.element_size()


@torch.no_grad()
def merge_links(model: Zamba) -> Zamba:
    """Give every call its own W_link W_down, multiplied in float32 and rounded once, in place; returns the model.

    For inference, as ``merge_adapters``. Packed weights, replaced projections and a model split over GPUs, which has to add its
    parts up in between, are left alone.
    """
    for layer in _hybrid(model):
        down = cast(SharedBlock, model.blocks[cast(int, layer.plan.block)]).down
        plain = type(down) is Linear and type(layer.link) is Linear and is_plain(down, layer.link)
        if plain and down.row_scale is None and layer.link.row_scale is None:
            product = layer.link.weight.float() @ down.weight.float()
            layer.merged = layer.merged | {"link": product.to(down.weight.dtype)}
    return model


def split_adapters(model: Zamba) -> Zamba:
    """Drop all copies and products again; returns the model."""
    for layer in _hybrid(model):
        layer.merged = {}
    return model


def _hybrid(model: Zamba) -> list[Layer]:
    return [layer for layer in cast(Iterable[Layer], model.layers) if layer.plan.hybrid]


def _merged(layer: Layer, block: SharedBlock) -> dict[str, torch.Tensor]:
    adapters, found = cast(dict[str, Adapter], layer.adapters), {}
    if not is_plain(block.qkv, block.gate_up) or not all(adapter.is_plain for adapter in adapters.values()):
        return found
    parts = [block.qkv, block.gate_up, *(part for adapter in adapters.values() for part in (adapter.A, adapter.B))]
    if any(part.row_scale is not None for part in parts):
        return found
    if "gate_up" in adapters:
        found["gate_up"] = _sum(block.gate_up.weight, _product(adapters["gate_up"]))
    if "q" in adapters:
        found["qkv"] = _sum(block.qkv.weight, torch.cat([_product(adapters[name]) for name in "qkv"]))
    return found


def _sum(weight: torch.Tensor, correction: torch.Tensor) -> torch.Tensor:
    return correction.add_(weight).to(weight.dtype)


def _product(adapter: Adapter) -> torch.Tensor:
    """B A in float32, so that the sum is rounded once."""
    return adapter.B.weight.float() @ adapter.A.weight.float()
