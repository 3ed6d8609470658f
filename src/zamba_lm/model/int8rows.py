"""Weights in 8 bits a number: each row of a matrix as int8 with one scale. A way to store a model.

Tensor ``X`` int8 (rows, columns) with ``X.row_scale`` (rows,) float stands for ``X * row_scale[:, None]``; loading multiplies
out, and on a CPU ``pack_weights`` finds the eight bits again.
"""

import torch
from torch import Tensor

from zamba_lm.ops.linear import row_scales

SCALE = ".row_scale"
_FEWEST_COLUMNS = 64  # shorter rows stay as they are: their scales would cost too much


def is_rowwise(shape: tuple[int, ...]) -> bool:
    """Is a tensor of this shape stored as int8 rows?"""
    return len(shape) == 2 and shape[1] >= _FEWEST_COLUMNS


def quantize(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) float -> int8 of the same shape and scales (rows,) float32; the error of a number is at most half its
    scale.

    Scales are powers of two: what the rows expand to is then exact in bfloat16, so that an expanded model can be packed into
    the same eight bits again (``ops.linear.pack``), and plain exports are the shipped numbers.
    """
    scale = row_scales(tensor)
    return (tensor.float() / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def expand(tensor: Tensor, scale: Tensor) -> Tensor:
    """What int8 rows stand for, float32."""
    return tensor.float() * scale.float()[:, None]
