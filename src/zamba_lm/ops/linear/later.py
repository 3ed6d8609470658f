"""What a projection leaves to whoever reads it: its sum, to the norm behind it; half of a norm; or all of itself.

Each kernel of a decoding step waits some microseconds for the one in front. A norm reads every row anyway, and adds up on its way
what else would be a wait of its own; a convolution finds its input in the registers of the product that made it.
"""

from dataclasses import dataclass

import torch

from zamba_lm.ops.gpu import lazy
from zamba_lm.ops.linear.normed import Normed

_settled = lazy("zamba_lm.ops.linear.triton.settle", "settled")


@dataclass(frozen=True, slots=True)
class Squares:
    """What is left of a norm of rows that are multiplied by its weight already: to divide each by its rms, before a product or
    behind it. sums_TM: float32, sums of squares of parts of a row, which had ``width`` numbers."""

    sums_TM: torch.Tensor
    width: int
    eps: float

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """x / rms, in x's dtype."""
        return (x_TI.float() * self.scale_T1()).to(x_TI.dtype)

    def scale_T1(self) -> torch.Tensor:
        """1 / rms."""
        return torch.rsqrt(self.sums_TM.sum(-1, keepdim=True) / self.width + self.eps)


@dataclass(slots=True)
class Unsummed:
    """residual + the sum of parts (/ rms): a sum (T, O) of ``dtype`` that the first norm to read it makes on its way.

    parts_NTO: float32, or one part of the sum's dtype. Only kernels leave sums unmade, and only for inference.
    """

    parts_NTO: torch.Tensor
    residual_TO: torch.Tensor | None
    squares: Squares | None
    dtype: torch.dtype
    made_TO: torch.Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.parts_NTO.shape[1:]

    @property
    def device(self) -> torch.device:
        return self.parts_NTO.device

    def sum(self) -> torch.Tensor:
        """(T, O), made once."""
        if self.made_TO is None:
            total_TO = self.parts_NTO[0].float()
            for part_TO in self.parts_NTO[1:]:
                total_TO = total_TO + part_TO
            if self.squares is not None:
                total_TO = total_TO * self.squares.scale_T1()
            if self.residual_TO is not None:
                total_TO = total_TO + self.residual_TO
            self.made_TO = total_TO.to(self.dtype)
        return self.made_TO

    def normed(self, norm: Normed, *beside_TJ: torch.Tensor) -> torch.Tensor:
        """norm([sum | beside]) of a norm in one group, made with the sum."""
        self.made_TO, normed_TI = _settled(self, norm, *beside_TJ)
        return normed_TI


def summed(x):
    """A tensor as it is, of an ``Unsummed`` the sum."""
    return x.sum() if type(x) is Unsummed else x


def read(x_TI, norm):
    """What a projection is given, (x, norm), without sums that were left to it: where one is, this norm is done with it."""
    x, *beside = x_TI if type(x_TI) is tuple else (x_TI,)
    if type(x) is not Unsummed:
        return x_TI, norm
    if x.made_TO is None and type(norm) is Normed and norm.groups == 1:
        return x.normed(norm, *beside), None
    return (x.sum(), *beside) if beside else x.sum(), norm


@dataclass(frozen=True, slots=True)
class Unmade:
    """A projection ``linear(x, weight, row_scale, norm=norm)`` whose reader makes it, and may do more on the way.

    x_TI: a tensor or an ``Unsummed``.
    """

    x_TI: torch.Tensor | Unsummed
    weight_OI: torch.Tensor
    row_scale_O: torch.Tensor | None
    norm: Normed | None

    def __len__(self) -> int:
        return self.x_TI.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self.weight_OI)

    @property
    def device(self) -> torch.device:
        return self.weight_OI.device

    def made(self) -> torch.Tensor:
        """(T, O)."""
        from zamba_lm.ops.linear import linear

        return linear(self.x_TI, self.weight_OI, self.row_scale_O, norm=self.norm)


def made(h):
    """A tensor as it is, of an ``Unmade`` what it makes."""
    return h.made() if type(h) is Unmade else h
