"""Launch configurations as data, by number of rows, for an H200. Every GPU takes them: they are about parallelism."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mamba2Config:
    tile: int  # numbers of the state a program holds at a time
    turns: int  # how many of these it does one after the other
    warps: int


# (up to this many rows, configuration), the last without end
MAMBA2 = ((8, Mamba2Config(tile=2048, turns=1, warps=2)), (None, Mamba2Config(tile=2048, turns=2, warps=2)))

MAMBA1_BY_HAND = 4  # rows up to which the products are part of the kernels
MAMBA1_LOW = (16, 512, 4)  # rows of x_proj and channels a program, warps
MAMBA1_TOKEN = (64, 8)  # channels a program, warps
MAMBA1_CONV = (512, 4)
MAMBA1_STATE = (128, 4)


def chosen(table, rows):
    return next(config for most, config in table if most is None or rows <= most)
