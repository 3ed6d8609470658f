"""Launch configurations as data, by number of rows, for an H200. Every GPU takes them: they are about parallelism."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mamba2Config:
    tile: int  # numbers of the state a program holds
    warps: int


@dataclass(frozen=True)
class ProductConfig:
    columns: int  # of the result a program makes
    tile: int  # numbers of the sum at a time
    tiles: int  # of them a program
    warps: int


CONV = (256, 4, 2)  # channels a program, warps, rows a program; where the convolution is a kernel of its own
STATE = (4096, 2)  # bytes of a state a program holds, warps; behind such a convolution

MAMBA2_ALONE = 8  # rows up to which convolution and recurrence are one kernel
MAMBA2 = Mamba2Config(tile=2048, warps=2)

MAMBA1_BY_HAND = 4  # rows up to which the products are part of the kernels
MAMBA1_LOW = (16, 512, 4)  # rows of x_proj and channels a program, warps
MAMBA1_TOKEN = (64, 8)  # channels a program, warps
MAMBA1_PRODUCTS = 64  # rows up to which a kernel of our own multiplies, and not torch
MAMBA1_X = ProductConfig(columns=32, tile=128, tiles=2, warps=4)
MAMBA1_DT = ProductConfig(columns=64, tile=128, tiles=2, warps=4)
