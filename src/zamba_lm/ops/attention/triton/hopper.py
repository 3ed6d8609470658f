"""Many new tokens a sequence on Hopper: which calls the kernels of ``trio.py`` and ``tall.py`` take, and how they run."""

from functools import cache
from importlib import import_module
from typing import Any

import torch
import triton

from zamba_lm.ops.attention.triton.products import LOG2_E
from zamba_lm.ops.attention.triton.tiles import query_tiles
from zamba_lm.ops.gpu import capability, launch
from zamba_lm.ops.linear.triton.few import GLUON, HOPPER

WIDTHS = {160: (128, 32)}  # heads: channels in two powers of two
WIDEST_TRIO, WIDEST_TALL, TALL_KEYS = 256, 512, 64  # channels of a head, keys of a block
LONG = 2560  # tokens of a sequence, past included, from where on the kernel of ``tall.py`` beats that of ``wide.py``
QUERIES, KEYS, STAGES = 128, 128, 2  # of a program, of a block, blocks on the way
FEWEST = 1024  # tokens, from where on the kernel is worth compiling, which takes three times as long as any other


def suits_hopper(q_THd, cache) -> bool:
    """Whether ``hopper_prefill`` takes so many queries, such heads and such pages here."""
    return cache is not None and cache.page % KEYS == 0 and trio_takes(q_THd)


def trio_takes(q_THd) -> bool:
    """Whether the kernels of ``trio.py`` and ``trio_keys.py`` run here, and take so many tokens and such heads."""
    fits = len(q_THd) >= FEWEST and q_THd.shape[2] in WIDTHS and q_THd.dtype.itemsize == 2
    return fits and capability(q_THd.device) == HOPPER and triton.__version__.startswith(GLUON)


def hopper_prefill(q_THd, k_THd, v_THd, scale, packing, cache=None, *, with_lse=False):
    """y (T, H, d), and with ``with_lse`` also log2 of each row's sum (H, T) float32. Rotation and append are done already: with a
    cache, keys and values are read from the pages alone."""
    T, H, D = q_THd.shape
    q = aligned(q_THd)
    tiles = query_tiles(packing, QUERIES, q.device)
    y = torch.empty(T, H, D, dtype=q.dtype, device=q.device)
    lse = torch.empty(H, T, dtype=torch.float32, device=q.device) if with_lse else y
    if cache is None:
        sources, pages, past = [t for x in (k_THd, v_THd) for t in in_two(aligned(x), KEYS)], tiles, tiles
    else:
        of_pages = [pool.view(-1, 1, D) for pool in (cache.keys, cache.values)]
        sources, pages, past = [t for x in of_pages for t in in_two(x, KEYS)], cache.pages_SM, cache.past_S
    a, b = WIDTHS[D]
    launch(
        kernels_of("trio").trio_kernel,
        (len(tiles) * H,),
        *(*in_two(q, QUERIES // 2), *sources, pages, past, tiles, y, lse, len(tiles), T, pages.stride(0)),
        *(1 if cache is None else cache.page, scale * LOG2_E),
        HEADS=H,
        D=D,
        A=a,
        B=b,
        BN=KEYS,
        STAGES=STAGES,
        PAGED=cache is not None,
        LSE=with_lse,
        num_warps=4,
        device=q.device,
    )
    return (y, lse) if with_lse else y


def aligned(x_THd):
    """x as the copy engine reads it: heads side by side in rows that begin at multiples of 16 bytes."""
    whole = x_THd.stride(1) == x_THd.shape[2] and x_THd.stride(0) % 8 == 0 and x_THd.data_ptr() % 16 == 0
    return x_THd if whole else x_THd.clone(memory_format=torch.contiguous_format)


def in_two(x_THd, rows: int) -> list:
    """What the copy engine reads of x: tiles of ``rows`` rows, for each of the two pieces of a head's channels."""
    T, H, D = x_THd.shape
    return [kernels_of("trio").tiles_of(x_THd, (T, H * D), x_THd.stride(0), rows, wide) for wide in WIDTHS[D]]


def suits_tall(q_THd, k_THd, v_THd, packing, cache=None, past=None) -> bool:
    """Whether ``tall_prefill`` takes such heads here, keys and values where they lie, and is faster than ``wide.py``."""
    D = q_THd.shape[2]
    if not (WIDEST_TRIO < D <= WIDEST_TALL and D % 8 == 0 and q_THd.dtype.itemsize == 2 and len(q_THd) >= FEWEST):
        return False
    if packing.known and max(map(sum, zip(packing.lengths, past or (0,) * len(packing), strict=True))) < LONG:
        return False
    if capability(q_THd.device) != HOPPER or not triton.__version__.startswith(GLUON):
        return False
    if cache is not None:
        return cache.page % TALL_KEYS == 0
    return all(x.stride(1) == D and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0 for x in (k_THd, v_THd))


def tall_prefill(q_THd, k_THd, v_THd, scale, packing, cache=None, *, with_lse=False):
    """As ``prefill.prefill``: y (T, H, d), and with ``with_lse`` also log2 of each row's sum (H, T) float32."""
    T, H, D = q_THd.shape
    tiles, slots_of = query_tiles(packing, QUERIES, q_THd.device), kernels_of("tall").slots_of
    y = torch.empty(T, H, D, dtype=q_THd.dtype, device=q_THd.device)
    lse = torch.empty(H, T, dtype=torch.float32, device=q_THd.device) if with_lse else y
    if cache is None:
        sources, pages, past = [slots_of(x, (T, H * D), x.stride(0)) for x in (k_THd, v_THd)], tiles, tiles
    else:
        rows = cache.keys.shape[0] * H * cache.page
        sources, pages, past = [slots_of(x, (rows, D), D) for x in (cache.keys, cache.values)], cache.pages_SM, cache.past_S
    launch(
        kernels_of("tall").tall_kernel,
        (2 * len(tiles) * H,),
        *(q_THd, *sources, pages, past, tiles, y, lse, len(tiles), T, pages.stride(0)),
        *(1 if cache is None else cache.page, scale * LOG2_E, *q_THd.stride()[:2]),
        HEADS=H,
        D=D,
        PAGED=cache is not None,
        LSE=with_lse,
        num_warps=4,
        device=q_THd.device,
    )
    return (y, lse) if with_lse else y


@cache
def kernels_of(name: str) -> Any:
    """A module of kernels in Gluon, imported when one runs: another Triton may not have what it imports."""
    return import_module(f"zamba_lm.ops.attention.triton.{name}")
