"""LoRA layers whose usual case is one step of autograd.

PEFT scales and adds over a projection's whole output, and autograd adds two gradients of its whole input: passes over memory that
the products make on their way here. ``fuse`` changes the class of the layers there are: names, weights, saving and merging stay
PEFT's.
"""

import torch
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import nn

from zamba_lm.model.parts import is_plain


def fuse(model: nn.Module) -> nn.Module:
    """Have the LoRA layers of a model run fused; returns it. Layers of other kinds stay as they are."""
    for module in model.modules():
        if type(module) in (kinds := _kinds()):
            module.__class__ = kinds[type(module)]
    return model


class _Fused:
    """Before a LoRA layer of PEFT, which gets whatever is not the usual case: dropout, merged or several adapters, variants."""

    def forward(self, x, *args, **kwargs):
        name = None if args or kwargs else _usual(self)
        A, B = (None, None) if name is None else (self.lora_A[name].weight, self.lora_B[name].weight)
        dtype = None if name is None else _dtype(x, self.base_layer, A)
        if dtype is None:
            return super().forward(x, *args, **kwargs)
        return _LoraLinear.apply(x, A, B, self.base_layer, self.scaling[name], dtype)


class FusedLinear(_Fused, PeftLinear):
    """Over full weights."""


def _kinds() -> dict[type, type]:
    from peft.import_utils import is_bnb_4bit_available

    if not is_bnb_4bit_available():
        return {PeftLinear: FusedLinear}
    from peft.tuners.lora.bnb import Linear4bit

    return {PeftLinear: FusedLinear, Linear4bit: _four_bit(Linear4bit)}


_made: dict[type, type] = {}


def _four_bit(kind: type) -> type:
    """The class over four-bit weights, made where bitsandbytes is installed."""
    if kind not in _made:
        _made[kind] = type("FusedLinear4bit", (_Fused, kind), {"__doc__": "Over four-bit weights."})
    return _made[kind]


def _usual(layer: LoraLayer) -> str | None:
    """The one adapter in effect, if nothing but B A x is asked of it."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    base = layer.base_layer
    if layer.disable_adapters or layer.merged or len(names) != 1 or names[0] in layer.lora_variant:
        return None
    if (layer.training and not isinstance(layer.lora_dropout[names[0]], nn.Identity)) or layer.lora_bias[names[0]]:
        return None
    frozen = base.bias is None and not base.weight.requires_grad
    known = is_plain(base) and base.row_scale is None or _quantised(base)
    return names[0] if frozen and known else None


def _quantised(base: nn.Module) -> bool:
    """A four-bit layer whose weight has been quantised."""
    return type(base).__name__ == "Linear4bit" and getattr(base.weight, "quant_state", None) is not None


def _dtype(x: torch.Tensor, base: nn.Module, A: torch.Tensor) -> torch.dtype | None:
    """What products are made in; None where the dtypes differ and no autocast says which counts."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    weight = base.compute_dtype if _quantised(base) else base.weight.dtype
    return x.dtype if x.dtype == A.dtype == weight else None


def _dense(base: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The frozen weight (out, in)."""
    if not _quantised(base):
        return base.weight.detach().to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.data, base.weight.quant_state).to(dtype)


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + s (x A^T) B^T with W frozen; one gradient of x, and those of A and B."""

    @staticmethod
    def forward(ctx, x, A, B, base, scale, dtype):
        rows = x.to(dtype).flatten(0, -2)
        h = rows @ A.to(dtype).T
        y = rows @ _dense(base, dtype).T
        y.addmm_(h, B.to(dtype).T, alpha=scale)
        ctx.save_for_backward(rows, h, A, B)
        ctx.base, ctx.scale, ctx.shape, ctx.dtype = base, scale, x.shape, x.dtype
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, dy):
        rows, h, A, B = ctx.saved_tensors
        dy = dy.flatten(0, -2)
        dh = (dy @ B.to(dy.dtype)).mul_(ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ _dense(ctx.base, dy.dtype)).addmm_(dh, A.to(dy.dtype)).view(ctx.shape).to(ctx.dtype)
        dA = (dh.T @ rows).to(A.dtype) if ctx.needs_input_grad[1] else None
        dB = (dy.T @ h).to(B.dtype).mul_(ctx.scale) if ctx.needs_input_grad[2] else None
        return dx, dA, dB, None, None, None
