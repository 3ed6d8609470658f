"""Inputs as the scan kernels want them."""

from dataclasses import dataclass

import torch

from zamba_lm.ops.gpu import launch
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.scan.triton.forward import spread_kernel
from zamba_lm.ops.step.reference import NO_LIMIT

AHEAD = 64  # tokens that a kernel may load beyond those it has


@dataclass(frozen=True)
class Inputs:
    """Everything but B and C, channels side by side; what is not given is stood in for by what is never read."""

    x: torch.Tensor
    dt: torch.Tensor
    A: torch.Tensor
    D: torch.Tensor
    z: torch.Tensor
    dt_bias: torch.Tensor
    N: int
    packing: Packing
    raw: bool
    gated: bool
    low: float
    high: float

    @classmethod
    def of(cls, x, dt, A, D, z, dt_bias, packing, dt_limit):
        x, D = dense(x), D.contiguous()
        low, high = NO_LIMIT if dt_bias is None else dt_limit
        gate, bias = x if z is None else dense(z), D if dt_bias is None else dt_bias.contiguous()
        given = (dt_bias is not None, z is not None)
        return cls(x, dense(dt), A.contiguous(), D, gate, bias, A.shape[-1], packing, *given, float(low), float(high))

    @property
    def flags(self) -> dict[str, bool]:
        return {"RAW": self.raw, "LIMITED": (self.low, self.high) != NO_LIMIT, "GATE": self.gated}


def dense(value):
    """With neighbouring channels side by side."""
    return value if value.stride(-1) == 1 else value.contiguous()


def spread(B, C, tiles=None, tile: int = 0):
    """B and C in float32 side by side, each padded to a power of two: (T, H, 2 NP), or tile by tile, padded with zeros.

    AHEAD rows more may be read, for nothing.
    """
    T, H, N = B.shape
    B, C, NP = dense(B), dense(C), max(4, 1 << (N - 1).bit_length())
    rows = T if tiles is None else len(tiles) * tile
    maps = torch.empty(rows + AHEAD, H, 2 * NP, dtype=torch.float32, device=B.device)
    block = max(1, 1024 // NP)
    strides = (B.stride(0), B.stride(1), C.stride(0), C.stride(1))
    launch(
        spread_kernel, (-(-rows * H // block),), B, C, maps, maps if tiles is None else tiles, rows, H, N, *strides,
        NP=NP, BLOCK=block, TILE=tile, device=B.device,
    )  # fmt: skip
    return maps
