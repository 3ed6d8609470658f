"""The norm that a projection applies to its input."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from zamba_lm.ops.norm import norm as rms_norm


@dataclass(frozen=True, slots=True)
class Normed:
    """RMS normalisation with a weight (I,), each of ``groups`` equal parts of a row by its own rms; float32 inside.

    x may be float32 where the weight is narrower (a recurrence's output, say): it is rounded once, to the weight's dtype.
    """

    weight_I: torch.Tensor
    eps: float
    groups: int = 1

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """weight * x / rms(x), in the weight's dtype."""
        if self.groups == 1:
            return rms_norm(x_TI, self.weight_I, self.eps).to(self.weight_I.dtype)
        parts = x_TI.float().unflatten(-1, (self.groups, -1))
        return (F.rms_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2) * self.weight_I).to(self.weight_I.dtype)


def prepared(x_TI, norm: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
    """One tensor, normed: what the projection multiplies."""
    if type(x_TI) is tuple:
        x_TI = torch.cat(x_TI, dim=-1)
    return x_TI if norm is None else norm(x_TI)
