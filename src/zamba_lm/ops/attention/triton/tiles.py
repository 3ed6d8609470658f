"""Where the query tiles of a packed batch lie: worked out on the host from lengths, once a pass, and kept on the device."""

from functools import lru_cache

import torch

from zamba_lm.ops.packing import Packing, Rows


def query_tiles(packing: Packing, size: int, device: torch.device) -> torch.Tensor:
    """Rows (sequence, first packed token, tokens, new tokens of the sequence before them), int32, the longest work first."""
    return packing.tables(tiles, size, device=device)[0]


@lru_cache(maxsize=32)
def tiles(lengths: tuple[int, ...], size: int) -> tuple[Rows]:
    rows, start = [], 0
    for s, length in enumerate(lengths):
        rows += [(s, start + i, min(size, length - i), i) for i in range(0, length, size)]
        start += length
    return (sorted(rows, key=lambda row: -(row[2] + row[3])),)
