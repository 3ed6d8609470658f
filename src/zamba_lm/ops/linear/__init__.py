"""A projection without bias, with what stands next to it in the model: the norm before it, the residual or gate after it."""

import torch

from zamba_lm.ops.dispatch import Implementation, Op
from zamba_lm.ops.gpu import kernels
from zamba_lm.ops.linear.cpu import linear_cpu, no_cpu, pack
from zamba_lm.ops.linear.later import Squares, Unmade, Unsummed, made, read, summed
from zamba_lm.ops.linear.normed import Normed, prepared
from zamba_lm.ops.linear.reference import gate_reference, gated_linear_reference, linear_reference, row_scales, unpack
from zamba_lm.ops.linear.weights import one_pass

LINEAR = Op(
    "linear",
    (
        Implementation("cpu", linear_cpu, no_cpu),
        kernels("linear", "linear_triton"),
        Implementation("reference", linear_reference),
    ),
)
GATED_LINEAR = Op(
    "gated_linear",
    (
        kernels("linear", "gated_linear_triton"),
        Implementation("reference", gated_linear_reference),
    ),
)
GATE = Op(
    "gate",
    (
        kernels("linear", "gated"),
        Implementation("reference", gate_reference),
    ),
)

__all__ = [
    "GATE",
    "GATED_LINEAR",
    "LINEAR",
    "Normed",
    "Squares",
    "Unmade",
    "Unsummed",
    "can_pack",
    "gate",
    "gated_linear",
    "linear",
    "made",
    "one_pass",
    "pack",
    "prepared",
    "row_scales",
    "summed",
    "unpack",
]


def linear(
    x_TI,
    weight_OI,
    row_scale_O=None,
    *,
    norm: Normed | Squares | None = None,
    residual_TO=None,
    overwrite: bool = False,
    later: bool = False,
):
    """norm(x) W^T + residual: (T, I) with (O, I) gives (T, O), all of one dtype; products are added in float32.

    x_TI: a tensor, or a tuple of two that lie side by side, (T, I1) and (T, I2) with I1 + I2 = I. ``norm``: x is
    RMS-normalised first. residual_TO: added to the product. All three are what a kernel does on its way; they change no number
    beyond rounding. overwrite: for inference, the result may take the residual's place, that of a single row excepted. later: it
    may be an ``Unsummed``, which x and the residual may be, too: the first norm that reads it makes the sum. ``Squares`` as norm:
    x is multiplied by the norm's weight already, and is still to be divided by its rms.

    ``weight_OI`` is a plain tensor, or with ``row_scale_O`` what ``pack`` made of one: the same numbers, whole multiples of a
    power of two a row, in eight bits each, which a single row gets through in half the time.
    """
    if norm is None and residual_TO is None and not later and type(x_TI) not in (tuple, Unsummed):  # microseconds: no checks
        return LINEAR(x_TI.device)(x_TI, weight_OI, row_scale_O)
    x_TI, norm, residual_TO = *read(x_TI, norm), summed(residual_TO)
    lead = _check(x_TI, weight_OI, norm)
    if residual_TO is not None and residual_TO.shape != (*lead, len(weight_OI)):
        raise ValueError(f"residual {tuple(residual_TO.shape)} does not fit the product {(*lead, len(weight_OI))}")
    device = (x_TI[0] if type(x_TI) is tuple else x_TI).device
    how = (overwrite, later) if overwrite or later else ()
    return LINEAR(device)(x_TI, weight_OI, row_scale_O, norm, residual_TO, *how)


def gated_linear(x_TI, weight_2FI, row_scale_2F=None, *, norm: Normed | None = None, adapter=None):
    """gelu(gate) * up with [gate ; up] = norm(x) W^T (+ B A norm(x)): (T, I) with (2 F, I) gives (T, F).

    GELU with the exact erf. ``adapter``: None, or (A (R, I), B (2 F, R), A's row scale, B's row scale), the low-rank correction
    of ``ops.adapter``. Differentiable, as is ``linear``, in everything that is not packed.
    """
    x_TI, norm = read(x_TI, norm)
    _check(x_TI, weight_2FI, norm)
    if len(weight_2FI) % 2:
        raise ValueError(f"a weight of {len(weight_2FI)} rows has no gate and up of equal size")
    device = (x_TI[0] if type(x_TI) is tuple else x_TI).device
    return GATED_LINEAR(device)(x_TI, weight_2FI, row_scale_2F, norm, adapter)


def gate(y_T2F):
    """gelu(gate) * up of rows [gate | up]: (T, 2 F) gives (T, F). What ``gated_linear`` does to a product made elsewhere."""
    if y_T2F.dim() != 2 or y_T2F.shape[1] % 2:
        raise ValueError(f"rows {tuple(y_T2F.shape)} have no gate and up of equal size")
    return GATE(y_T2F.device)(y_T2F)


def _check(x_TI, weight_OI, norm):
    """The axes of x before the last, when x, its norm and the weight fit together."""
    parts = x_TI if type(x_TI) is tuple else (x_TI,)
    lead, d_in = parts[0].shape[:-1], sum(part.shape[-1] for part in parts)
    if len(parts) > 2 or any(part.shape[:-1] != lead for part in parts) or d_in != weight_OI.shape[1]:
        shapes = " and ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(f"x {shapes} does not fit a weight {tuple(weight_OI.shape)}")
    if type(norm) is Normed and (norm.weight_I.shape != (d_in,) or d_in % norm.groups):
        raise ValueError(f"a norm of {tuple(norm.weight_I.shape)} in {norm.groups} groups does not fit rows of {d_in}")
    return lead


def can_pack(weight_OI: torch.Tensor) -> bool:
    """Whether ``pack`` takes this weight: a plain bfloat16 one on a CPU."""
    return weight_OI.dtype == torch.bfloat16 and no_cpu(weight_OI.device) is None
