"""Where pieces of packed sequences lie: every sequence is cut from its own start, so no piece holds two of them."""

from functools import lru_cache

import torch

from zamba_lm.ops.packing import Packing, on_device


def pieces(packing: Packing, size: int, device: torch.device) -> torch.Tensor:
    """(sequence, first token, end of the sequence) of every piece of at most ``size`` tokens, (n, 3) int32."""
    return _pieces(packing.lengths, size, device)


def firsts(packing: Packing, size: int, device: torch.device) -> torch.Tensor:
    """Index of every sequence's first piece, and the number of pieces at the end, (S + 1,) int32."""
    return _firsts(packing.lengths, size, device)


@lru_cache(64)  # every layer asks for the same
def _pieces(lengths, size, device):
    rows, start = [], 0
    for s, n in enumerate(lengths):
        rows += [(s, t, start + n) for t in range(start, start + n, size)]
        start += n
    return on_device(rows, torch.int32, device)


@lru_cache(64)
def _firsts(lengths, size, device):
    counts = [0]
    for n in lengths:
        counts.append(counts[-1] - (-n // size))
    return on_device(counts, torch.int32, device)
