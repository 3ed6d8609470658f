"""Where the query tiles of a packed batch lie: worked out on the host from lengths, once a pass, and kept on the device."""

from functools import lru_cache

import torch

from zamba_lm.ops.packing import on_device


@lru_cache(maxsize=32)  # the calls of one pass ask for the same one
def query_tiles(lengths: tuple[int, ...], past: tuple[int, ...], size: int, device: torch.device) -> torch.Tensor:
    """Rows (sequence, first packed token, tokens, position of the first in its sequence), int32, the longest work first."""
    rows, start = [], 0
    for s, (length, before) in enumerate(zip(lengths, past, strict=True)):
        rows += [(s, start + i, min(size, length - i), before + i) for i in range(0, length, size)]
        start += length
    rows.sort(key=lambda row: -(row[2] + row[3]))
    return on_device(rows, torch.int32, device)
