"""Where the keys and values of earlier tokens lie: pages of one pool, a table of pages a sequence, an age a sequence."""

from dataclasses import dataclass

import torch

from zamba_lm.ops.packing import Packing


@dataclass(frozen=True)
class KVCache:
    """Keys and values of one call to a shared block, in pages.

    Page ``pages_SM[s, m]`` holds tokens [m PAGE, (m + 1) PAGE) of sequence s. A cache with one row a sequence is the special case
    of one page each: ``pages_SM = [[0], [1], ...]``, PAGE = capacity. Entries of the table behind a sequence's last token may be
    anything. Two sequences may share full pages; the page that a sequence writes must be its own.
    """

    keys: torch.Tensor  # (n_pages, heads, PAGE, head_dim)
    values: torch.Tensor  # the same
    pages_SM: torch.Tensor  # int32, on the device; one table serves all calls
    past_S: torch.Tensor  # int32, on the device: tokens that each sequence already has
    past: tuple[int, ...] | None = None  # the same on the host; None: unknown there, and so are the lengths (a ``Frame``), or 1
    early: bool = False  # the table, the ages and the past entries are older than the running chain of dependent kernels

    @property
    def page(self) -> int:
        """Tokens of a page."""
        return self.keys.shape[2]

    @property
    def capacity(self) -> int:
        """Tokens that the table gives each sequence room for."""
        return self.pages_SM.shape[1] * self.page


def check_cache(cache: KVCache, q_THd: torch.Tensor, packing: Packing) -> None:
    """ValueError when the cache does not fit the new tokens of each sequence."""
    n, lengths, (_, heads, head_dim) = len(packing), packing.lengths, q_THd.shape
    if cache.keys.shape != cache.values.shape or cache.keys.dim() != 4 or cache.keys.shape[1::2] != (heads, head_dim):
        keys, values = tuple(cache.keys.shape), tuple(cache.values.shape)
        raise ValueError(f"keys {keys} and values {values} of the cache must be (pages, {heads}, page, {head_dim})")
    if len(cache.pages_SM) != n or len(cache.past_S) != n:
        raise ValueError(
            f"the cache holds {len(cache.pages_SM)} sequences with {len(cache.past_S)} ages, expected {n} for lengths {lengths}"
        )
    if cache.past is None:
        if q_THd.shape[0] != n and packing.known:
            raise ValueError(f"lengths {lengths} need the past on the host; without it every sequence has one new token")
    elif packing.known and max(new + past for new, past in zip(lengths, cache.past, strict=True)) > cache.capacity:
        raise ValueError(f"past {tuple(cache.past)} plus new {lengths} exceed the cache of {cache.capacity} tokens")
