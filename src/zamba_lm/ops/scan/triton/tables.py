"""Where pieces of packed sequences lie: every sequence is cut from its own start, so no piece holds two of them."""

from functools import lru_cache

import torch

from zamba_lm.ops.packing import Packing, Rows


def pieces(packing: Packing, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(sequence, first token, end of the sequence) of every piece of at most ``size`` tokens, (n, 3) int32; and the index of
    every sequence's first piece, with the number of pieces at the end, (S + 1,) int32."""
    table, first = packing.tables(tables, size, device=device)
    return table, first.view(-1)


@lru_cache(maxsize=64)
def tables(lengths: tuple[int, ...], size: int) -> tuple[Rows, Rows]:
    rows, counts, start = [], [(0,)], 0
    for s, n in enumerate(lengths):
        rows += [(s, t, start + n) for t in range(start, start + n, size)]
        counts.append((len(rows),))
        start += n
    return rows, counts
