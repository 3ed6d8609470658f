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


@dataclass(frozen=True, slots=True)
class RingConfig:
    """``lines`` of the weight a tile, ``down`` of them at a time to different warps; ``stages`` tiles on their way."""

    lines: int
    warps: int
    stages: int
    down: int


TILE_BYTES = 80 << 10


@cache
def ring_config(width: int, gated: bool) -> RingConfig:
    """The configuration for a weight of 16-bit rows of ``width``: two tiles of about 80 KB, so that few barriers are met."""
    lines = max(2 if gated else 1, 1 << (max(1, TILE_BYTES // (2 * width)).bit_length() - 1))
    return RingConfig(lines, 8, 2, max(1, min(lines, 32) // 4))


@dataclass(frozen=True, slots=True)
class StreamsConfig:
    """``lines`` of the weight a program out of a tile of ``tile``, its columns in ``splits``; x in tiles of ``batch`` rows."""

    lines: int
    tile: int
    splits: int
    batch: int
    columns: int
    stages: int
    warps: int


STREAMS_BYTES = 100 << 10  # of shared memory a program: two share a multiprocessor


@cache
def streams_config(rows: int, width: int, batch: int, gated: bool, multiprocessors: int) -> StreamsConfig:
    """The configuration for ``batch`` rows of x and a weight (rows, width), rows of gate if gated: two programs each."""
    splits = 1
    while not gated and rows * splits < 64 * multiprocessors and splits < 4 and width >= 1024 * splits:  # a gate needs whole sums
        splits *= 2
    lines = min(128, 8 * -(-rows * splits // (16 * multiprocessors)))
    tile, n = 64 if lines <= 64 else 128, max(16, 1 << (batch - 1).bit_length())
    columns = 64 if gated or tile == 128 else 128
    stage = 2 * columns * (tile * (2 if gated else 1) + n)
    return StreamsConfig(lines, tile, splits, n, columns, max(3, STREAMS_BYTES // stage), 8 if tile == 128 else 4)
