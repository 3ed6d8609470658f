"""Shares of a gradient that programs left behind, added up in order and rounded to the weight's dtype, in one launch."""

import torch
import triton
import triton.language as tl

from zamba_lm.ops.gpu import cdiv, launch

COLUMNS = 32  # of a program: enough programs for narrow weights
ROWS = 128  # at a time


@triton.jit
def column_sums_kernel(shares, to, R, D, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, R, ROWS):
        at = (first + row).to(tl.int64) * D + column
        total += tl.load(shares + at, mask=(first + row < R) & (column < D), other=0.0)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    tl.store(to + column, tl.sum(total, 0).to(to.dtype.element_ty), mask=column < D)


def column_sums(shares_RD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(D,) in ``dtype``: the sum of float32 rows (R, D)."""
    R, D = shares_RD.shape
    to = torch.empty(D, dtype=dtype, device=shares_RD.device)
    grid = (cdiv(D, COLUMNS),)
    launch(column_sums_kernel, grid, shares_RD, to, R, D, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4, device=to.device)
    return to
