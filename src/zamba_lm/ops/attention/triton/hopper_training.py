"""Attention with gradients on Hopper, for the heads of ``trio.py``: all sequences and heads in a launch each of three kernels.

Gradients come as one tensor of q, k and v, turned back already, as the product behind reads it. What rows of queries need, the
logarithm of their sum and delta = sum_d y dy, is laid out in blocks of 64 that begin anew with every sequence and are filled up
by rows that weigh nothing: so no kernel asks where a sequence ends.
"""

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from zamba_lm.ops.attention.triton.hopper import QUERIES, WIDTHS, aligned, hopper_prefill, in_two, kernels_of
from zamba_lm.ops.attention.triton.products import LOG2_E
from zamba_lm.ops.attention.triton.tiles import query_tiles
from zamba_lm.ops.gpu import launch
from zamba_lm.ops.packing import Packing, Rows
from zamba_lm.ops.rope.triton import rotate

BLOCK = 64  # rows of a group of warps
KEYS, STAGES = 128, 2  # keys of a program, blocks of queries on the way to it


@triton.jit
def statistics_kernel(
    y, dy, lse, numbers, tiles, T, blocks, H: tl.constexpr, D: tl.constexpr, PIECE: tl.constexpr, BLOCK: tl.constexpr
):
    """numbers (H, blocks, 2, BLOCK): log2 of a row's sum, and delta; inf and 0 behind a sequence's end. y, dy: (T, H, D),
    contiguous. A program: a tile of BLOCK queries of a head."""
    h, tile = tl.program_id(1), tiles + tl.program_id(0) * 4
    sequence, start, count, position = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    r = tl.arange(0, BLOCK)
    ok = r < count
    at = ((start + r).to(tl.int64)[:, None] * H + h) * D
    delta = tl.zeros((BLOCK,), tl.float32)
    for first in tl.static_range(0, D, PIECE):
        d = first + tl.arange(0, PIECE)[None, :]
        a = tl.load(y + at + d, mask=ok[:, None], other=0.0).to(tl.float32)
        delta += tl.sum(a * tl.load(dy + at + d, mask=ok[:, None], other=0.0).to(tl.float32), axis=1)
    to = numbers + (h * blocks + (start - position) // BLOCK + sequence + position // BLOCK) * 2 * BLOCK + r
    tl.store(to, tl.load(lse + h * T + start + r, mask=ok, other=float("inf")))
    tl.store(to + BLOCK, delta)


def statistics(y, dy, lse, packing: Packing):
    """What ``statistics_kernel`` writes. Block i of sequence s, whose first token is t: t // 64 + s + i."""
    T, H, D = y.shape
    blocks, tiles = T // BLOCK + len(packing), query_tiles(packing, BLOCK, y.device)
    numbers = torch.empty(H, blocks, 2, BLOCK, dtype=torch.float32, device=y.device)
    how = {"H": H, "D": D, "PIECE": 32, "BLOCK": BLOCK, "num_warps": 4}
    launch(statistics_kernel, (len(tiles), H), y, dy, lse, numbers, tiles, T, blocks, device=y.device, **how)
    return numbers


def key_tiles(lengths: tuple[int, ...], size: int) -> tuple[Rows]:
    """Rows (first key, number, block of its own queries, blocks from there to the sequence's end), the longest work first."""
    rows, start = [], 0
    for s, length in enumerate(lengths):
        block, end = start // BLOCK + s, start + length
        rows += [(i, min(size, end - i), block + (i - start) // BLOCK, -(-(end - i) // BLOCK)) for i in range(start, end, size)]
        start = end
    return (sorted(rows, key=lambda row: -row[3]),)


def hopper_attention(q_THd, k_THd, v_THd, scale: float, packing: Packing):
    """y (T, H, d) of sequences that start afresh."""
    return _Apart.apply(q_THd, k_THd, v_THd, scale, packing)


def hopper_self_attention(qkv_T3Hd, scale: float, packing: Packing, angles):
    """The same of one tensor, whose gradient is one; ``angles`` as of ``attention``."""
    cos, sin = angles if angles is not None else (None, None)
    return _Joined.apply(qkv_T3Hd, cos, sin, scale, packing)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, packing):
        return _forward(ctx, q, k, v, None, None, scale, packing)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return *_backward(ctx, dy).unbind(1), None, None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cos, sin, scale, packing):
        q, k, v = qkv.unbind(1)
        if cos is not None:
            q, k = rotate(qkv[:, :2].flatten(1, 2), cos, sin).chunk(2, dim=1)
        return _forward(ctx, q, k, v, cos, sin, scale, packing)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return _backward(ctx, dy), None, None, None, None


def _forward(ctx, q, k, v, cos, sin, scale, packing):
    q, k, v = (aligned(x) for x in (q, k, v))
    y, lse = hopper_prefill(q, k, v, scale, packing, with_lse=True)
    ctx.save_for_backward(q, k, v, y, lse, cos, sin)
    ctx.scale, ctx.packing = scale, packing
    return y


def _backward(ctx, dy):
    *given, cos, sin = ctx.saved_tensors
    return gradients(*given, aligned(dy.contiguous()), cos, sin, ctx.scale, ctx.packing)


def gradients(q, k, v, y, lse, dy, cos, sin, scale, packing):
    """Those of q, k and v as they were before they were turned, (T, 3, H, d)."""
    T, H, D = q.shape
    device, (a, b) = q.device, WIDTHS[D]
    numbers, found = statistics(y, dy, lse, packing), torch.empty(T, 3, H, D, dtype=q.dtype, device=device)
    turns = (q, q) if cos is None else (cos, sin)
    last = (found, *turns, numbers.shape[1], scale, scale * LOG2_E)
    shape = {"HEADS": H, "D": D, "A": a, "B": b, "TURN": cos is not None, "num_warps": 4, "device": device}
    of_keys, of_queries = kernels_of("trio_keys"), kernels_of("trio_queries")
    tiles = packing.tables(key_tiles, KEYS, device=device)[0]
    sources = [t for x in (q, k, v, dy) for t in in_two(x, BLOCK)]
    grid = len(tiles), H
    launch(of_keys.keys_kernel, grid, *sources, of_keys.numbers_of(numbers), tiles, *last, STAGES=STAGES, **shape)
    tiles = query_tiles(packing, QUERIES, device)
    sources[2:6] = [t for x in (k, v) for t in in_two(x, KEYS)]
    launch(of_queries.queries_kernel, (len(tiles), H), *sources, numbers, tiles, *last, **shape)
    return found
