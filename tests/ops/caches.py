"""Caches for the tests of attention: memory full of NaN, so that reading what is nobody's shows."""

import torch

from zamba_lm.ops.attention import KVCache


def ints(values, device=None):
    return torch.tensor(values, dtype=torch.int32, device=device)


def rows(keys, values, past, *, host=True):
    """One row a sequence: each is one page."""
    table = torch.arange(len(past), dtype=torch.int32, device=keys.device)[:, None]
    return KVCache(keys, values, table, ints(past, keys.device), tuple(past) if host else None)


def empty(sequences, capacity, *, heads=2, width=8, dtype=torch.float32, device=None):
    """Keys and values of a cache full of NaN: what lies behind a sequence's end is anybody's."""
    return torch.full((2, sequences, heads, capacity, width), torch.nan, dtype=dtype, device=device).unbind(0)


def paged(before, totals, *, page, heads, width, dtype=torch.float32, device=None, host=True):
    """A pool with a few pages too many, dealt out at random, that holds ``before``: a pair (keys, values) of (past, heads, width)
    for each sequence. Sequence s has pages for ``totals[s]`` tokens; the table's other entries lie far outside the pool."""
    generator = torch.Generator().manual_seed(page + sum(totals))
    past, need = [len(k) for k, _ in before], [-(-total // page) for total in totals]
    order = torch.randperm(sum(need) + 3, generator=generator).tolist()
    table = [[order.pop() for _ in range(n)] + [2**30] * (max(need) + 1 - n) for n in need]
    keys, values = empty(sum(need) + 3, page, heads=heads, width=width, dtype=dtype, device=device)
    for s, pair in enumerate(before):
        for pool, given in zip((keys, values), pair, strict=True):
            for m, part in enumerate(given.split(page)):
                pool[table[s][m], :, : len(part)] = part.transpose(0, 1)
    return KVCache(keys, values, ints(table, device), ints(past, device), tuple(past) if host else None)


def content(cache, s, length):
    """Keys and values (length, heads, width) of sequence s as its pages hold them."""
    pages = cache.pages_SM[s, : -(-length // cache.page)].tolist()
    return tuple(torch.cat([pool[p] for p in pages], dim=1)[:, :length].transpose(0, 1) for pool in (cache.keys, cache.values))


def written(cache):
    """How many entries of the pool hold something."""
    return int((~cache.keys.isnan()).any(-1).any(1).sum())
