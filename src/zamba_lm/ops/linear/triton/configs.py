"""Shipped configurations of the kernels, as data: nothing is tuned when a model runs."""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Config:
    """``rows`` of the weight a program (of each half, when gated), ``columns`` a tile."""

    rows: int
    columns: int
    warps: int


HELD = 80  # registers a thread spends on the weight
FEW_OUTPUTS = 5120  # up to here small programs: the next kernel's begin where they end
SMALL = 1 << 20  # numbers in a weight up to which a launch costs more than reading it: few programs

# (rows of the weight, width): measured to be as good as or better than the rule below, on an H200, 16 bits and no gate
SHIPPED = {
    (2560, 2560): Config(2, 256, 1),
    (2560, 10240): Config(1, 1024, 4),
    (15360, 5120): Config(8, 1024, 4),
    (32000, 2560): Config(8, 1024, 4),
}


@cache
def config(rows: int, width: int, dtype: torch.dtype, gated: bool) -> Config:
    """The configuration for a weight (rows, width): as many rows as fit the registers, a power of two."""
    if dtype.itemsize == 2 and not gated and (rows, width) in SHIPPED:
        return SHIPPED[rows, width]
    vector = 16 // dtype.itemsize  # numbers a thread loads at once, in four registers
    warps = 4 if width * dtype.itemsize <= 16384 else 8
    columns = min(32 * vector * warps, 1 << (width - 1).bit_length())
    held = 4 * -(-width // columns)
    fit = max(1, HELD // held // (2 if gated else 1))
    most = 16 if rows * width <= SMALL else 2 if rows <= FEW_OUTPUTS else 8
    return Config(min(most, 1 << (fit.bit_length() - 1)), columns, warps)


@dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """``half``: rows of gate and of up, ``batch``: rows of x a program, ``columns`` a tile, in ``stages`` buffers."""

    half: int
    batch: int
    columns: int
    stages: int


@cache
def skinny_config(batch: int, dtype: torch.dtype) -> SkinnyConfig:
    """The configuration for ``batch`` rows."""
    return SkinnyConfig(32, 16 if batch <= 16 else 32, 256 // dtype.itemsize, 4)
