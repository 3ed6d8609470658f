"""Products on a CPU: few rows read the weight as it lies in its file, many multiply it widened to float32, a piece at a time."""

import torch
import torch.nn.functional as F

from zamba_lm.ops.linear.normed import prepared
from zamba_lm.ops.linear.reference import row_scales, unpack

FEW_ROWS = 8  # up to here the eight-bit kernel is bound by reading the weight; beyond, it takes as long again for each row
MANY_ROWS = 32  # from here the product in float32 is faster than in bfloat16, conversion of the weight included
PIECE = 256  # rows of a weight that each thread widens at a time: still near when it multiplies them
SMALLEST = 1 << 12  # numbers in a weight from which eight bits pay (of 16 x 384 a row takes 8 us, 28 in bfloat16)
COLUMNS = 16  # torch's eight-bit kernel reads so many at a time, past the end of rows that are no multiple of it

# Measured on AVX-512, whose bfloat16 products are no faster than float32's. AMX multiplies bfloat16 itself, and of other
# processors we know nothing. Asked once: torch.compile cannot ask.
WIDENS = torch.cpu._is_avx512_supported() and not torch.cpu._is_amx_tile_supported()


def no_cpu(device: torch.device) -> str | None:
    """Why these products cannot run on ``device``, or None when they can."""
    return None if device.type == "cpu" else "reads weights as CPUs do"


def pack(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A weight and its row scale: int8 codes (O, I) with (O,) where that loses nothing and pays, else the weight itself and None.

    It loses nothing where every row is whole multiples, at most 127, of a power of two, as int8 rows expand to. ``unpack`` gives
    the same numbers back.
    """
    weight_OI = weight_OI.detach()
    if weight_OI.numel() < SMALLEST or weight_OI.shape[1] % COLUMNS:
        return weight_OI, None
    for rows in (weight_OI[:2], weight_OI):  # two tell most weights apart, and the rest of a file need not be read yet
        scale = row_scales(rows)
        codes = rows.float() / scale[:, None]
        if not torch.equal(codes, codes.round()):
            return weight_OI, None
    return codes.to(torch.int8), scale.to(weight_OI.dtype)


def linear_cpu(x_TI, weight_OI, row_scale_O=None, norm=None, residual_TO=None, overwrite=False, later=False):
    if norm is not None or type(x_TI) is tuple:
        x_TI = prepared(x_TI, norm)
    y_TO = _multiply(x_TI, weight_OI, row_scale_O)
    return y_TO if residual_TO is None else residual_TO + y_TO


def _multiply(x_TI, weight_OI, row_scale_O):
    rows = x_TI.numel() // x_TI.shape[-1]
    if row_scale_O is not None and rows <= FEW_ROWS:
        y = torch._weight_int8pack_mm(x_TI.reshape(rows, -1), weight_OI, row_scale_O)
        return y.view(*x_TI.shape[:-1], -1)
    narrow = x_TI.dtype == torch.bfloat16 and (row_scale_O is not None or (rows >= MANY_ROWS and weight_OI.dtype == x_TI.dtype))
    if WIDENS and narrow and not (torch.is_grad_enabled() and (x_TI.requires_grad or weight_OI.requires_grad)):
        return _widened(x_TI, weight_OI, row_scale_O)
    return F.linear(x_TI, unpack(weight_OI, row_scale_O))


def _widened(x_TI, weight_OI, row_scale_O):
    """The product in float32, rounded once. Every thread has a part of the rows to itself, since threads that share a product
    wait for each other; the columns of x lie together, since the library multiplies a fifth faster so.
    """
    O, I = weight_OI.shape  # noqa: E741
    parts = min(torch.get_num_threads(), O)
    even, rows = O // parts * parts, O // parts
    x_IT = x_TI.reshape(-1, I).T.float().contiguous()
    y_TO = x_TI.new_empty(x_IT.shape[1], O)
    _parts_widened(x_IT, weight_OI[:even].unflatten(0, (parts, rows)), y_TO[:, :even].unflatten(1, (parts, rows)))
    if even < O:
        _parts_widened(x_IT, weight_OI[even:].unsqueeze(0), y_TO[:, even:].unsqueeze(1))
    return (y_TO if row_scale_O is None else y_TO.mul_(row_scale_O)).view(*x_TI.shape[:-1], O)


def _parts_widened(x_IT, weight_PRI, y_TPR):
    """``weight_PRI @ x_IT`` into ``y_TPR``, a piece of every part at a time."""
    P, R, I = weight_PRI.shape  # noqa: E741
    x_PIT = x_IT.expand(P, -1, -1)
    wide = x_IT.new_empty(P * min(PIECE, R) * I)
    for start in range(0, R, PIECE):
        weight_PSI = weight_PRI[:, start : start + PIECE]
        wide_PSI = wide[: weight_PSI.numel()].view(weight_PSI.shape).copy_(weight_PSI)
        y_TPR[:, :, start : start + PIECE] = torch.bmm(wide_PSI, x_PIT).permute(2, 0, 1)
