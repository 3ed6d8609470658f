"""Adding up what the ranks made of their shares, once everybody has everybody's: the same bits on every rank.

A projection whose inputs are split gives each rank a summand of its output. Where a norm before it spans several ranks, each
norms by its own root mean square and sends that along with its summand: scaling is all that the right one changes, and it can be
done afterwards, so one exchange is enough.
"""

import torch
import torch.nn.functional as F

from zamba_lm.ops.gpu import lazy, no_triton

total_triton = lazy("zamba_lm.parallel.triton", "total_triton")
with_square_triton = lazy("zamba_lm.parallel.triton", "with_square_triton")
PAD = 8  # columns in whose multiples rows are laid out: 16 bytes of the narrowest dtype


def total_reference(parts_RTW, residual_TD, D, span, eps):
    parts = parts_RTW[..., :D].float()
    if span > 1:
        square_RT = parts_RTW[..., tail(D) :].view(torch.float32)[..., 0] + eps
        whole_RT = square_RT.unflatten(0, (-1, span)).mean(1).repeat_interleave(span, 0)
        parts = parts * (square_RT / whole_RT).sqrt()[..., None]
    y = parts[0] if residual_TD is None else residual_TD.float() + parts[0]
    for part in parts[1:]:
        y = y + part
    return y.to(parts_RTW.dtype)


def with_square_reference(part_TD, y_TI, z_TI):
    D = part_TD.shape[1]
    found = part_TD.new_zeros(len(part_TD), tail(D) + PAD)
    found[:, :D] = part_TD
    gated = y_TI.float() if z_TI is None else y_TI.float() * F.silu(z_TI.float())
    found[:, tail(D) :].view(torch.float32)[:, 0] = gated.square().mean(-1)
    return found


def total(parts_RTW, residual_TD=None, *, D: int, span: int = 1, eps: float = 0.0):
    """residual + the sum over ranks of their summands (T, D), the first D columns of ``parts_RTW``; float32 inside.

    ``span`` > 1: parts come from ``with_square``, and the inputs of ``span`` neighbouring ranks were to be normed together, with
    ``eps``; each is rescaled from the root mean square of its own to that of all of them.
    """
    if parts_RTW.shape[0] % span or (residual_TD is not None and residual_TD.shape != (parts_RTW.shape[1], D)):
        raise ValueError(f"parts {tuple(parts_RTW.shape)} do not fit spans of {span} ranks and rows of {D}")
    run = total_reference if no_triton(parts_RTW.device) else total_triton
    return run(parts_RTW, residual_TD, D, span, eps)


def with_square(part_TD, y_TI, z_TI=None):
    """Rows [part | mean square of y, or of y * SiLU(z), in float32], as ``total`` reads them."""
    run = with_square_reference if no_triton(part_TD.device) else with_square_triton
    return run(part_TD, y_TI, z_TI)


def tail(D: int) -> int:
    """Where the mean square stands in a row."""
    return -(-D // PAD) * PAD
