"""Launch configurations as data, by number of rows, for an H200. Every GPU takes them: they are about parallelism."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mamba2Config:
    tile: int  # numbers of the state a program holds
    warps: int


MAMBA2_ALONE = 8  # rows up to which convolution and recurrence are one kernel
MAMBA2 = Mamba2Config(tile=2048, warps=2)
MAMBA2_STATE = (32, 4)  # channels of a head a program, warps

MAMBA1_BY_HAND = 4  # rows up to which the products are part of the kernels
MAMBA1_LOW = (16, 512, 4)  # rows of x_proj and channels a program, warps
MAMBA1_TOKEN = (64, 8)  # channels a program, warps
MAMBA1_CONV = (512, 4)
MAMBA1_STATE = (128, 4)
