"""Launch configurations, by head width rounded up to a power of two. Measured on an H200; nothing is tuned at run time."""

import torch

# decode: rows of a tile, channels of a piece of it, warps, depth of the pipeline, programs that share one multiprocessor, tiles
# to fetch before waiting, whether the first tile comes before the loop
DECODE = {
    16: {"tokens": 64, "channels": 16, "warps": 4, "stages": 3, "residents": 2, "ahead": 1, "peel": True},
    32: {"tokens": 64, "channels": 32, "warps": 4, "stages": 3, "residents": 2, "ahead": 1, "peel": True},
    64: {"tokens": 64, "channels": 64, "warps": 4, "stages": 3, "residents": 2, "ahead": 1, "peel": True},
    128: {"tokens": 64, "channels": 128, "warps": 4, "stages": 3, "residents": 2, "ahead": 1, "peel": True},
    256: {"tokens": 32, "channels": 256, "warps": 4, "stages": 3, "residents": 2, "ahead": 1, "peel": True},
    512: {"tokens": 16, "channels": 512, "warps": 4, "stages": 3, "residents": 2, "ahead": 1, "peel": True},
}
UNSPLIT = {160: {"channels": 32, "stages": 4, "peel": False}}  # by head width itself: where heads are so many that none is split


def decode_config(head_dim: int, width: int, itemsize: int, cache, pairs: int, multiprocessors: int) -> dict:
    """How to decode ``pairs`` heads of all sequences from ``cache``; ``width`` is ``head_dim`` rounded up."""
    config = dict(DECODE[width])
    config["splits"] = splits_for(pairs, multiprocessors, config["residents"])
    if config["splits"] == 1:
        config.update(UNSPLIT.get(head_dim, {}))
    if itemsize == 4:
        config["tokens"] //= 2
    config["tokens"] = in_page(config["tokens"], cache)
    return config


def in_page(tokens: int, cache) -> int:
    """The largest power of two up to ``tokens`` that never crosses from one page into the next."""
    if cache.pages_SM.shape[1] == 1:
        return tokens
    while cache.page % tokens:
        tokens //= 2
    return tokens


def splits_for(pairs: int, multiprocessors: int, residents: int) -> int:
    """Into how many parts to cut each sequence's past: a power of two that fills the GPU's last wave by 85 % or nearly so."""
    slots = multiprocessors * residents
    best, filled = 1, 0.0
    for splits in (1, 2, 4, 8, 16, 32):
        waves = pairs * splits / slots
        share = waves / -(-pairs * splits // slots)
        if share > filled + 0.02:
            best, filled = splits, share
        if filled >= 0.85:
            break
    return best


# prefill: queries and keys of a tile, warps, depth of the pipeline, programs that share a head's output, copy engine or not;
# by the channels that the two powers of two of `prefill.halves` hold
PREFILL = {
    64: {"queries": 128, "keys": 64, "warps": 4, "stages": 3, "tma": True},
    128: {"queries": 128, "keys": 64, "warps": 8, "stages": 3, "tma": True},
    192: {"queries": 128, "keys": 64, "warps": 8, "stages": 2, "tma": True},
    256: {"queries": 128, "keys": 64, "warps": 8, "stages": 2, "tma": True},
    512: {"queries": 128, "keys": 32, "warps": 8, "stages": 2, "parts": 2, "tma": True},
}
PAGED = {128: {"keys": 128}, 192: {"stages": 3}, 256: {"stages": 3}, 512: {"stages": 3}}  # a page's number comes a step ahead
PREFILL_F32 = {"queries": 32, "keys": 32, "warps": 4, "stages": 1, "tma": False}


def prefill_config(held: int, dtype: torch.dtype, cache) -> dict:
    """How to prefill heads that take ``held`` channels of a program."""
    if dtype == torch.float32:
        config = dict(PREFILL_F32)
    else:
        nearest = min(n for n in PREFILL if n >= held)
        config = PREFILL[nearest] | (PAGED.get(nearest, {}) if cache is not None else {})
    if cache is not None:
        config["keys"] = in_page(config["keys"], cache)
    return config
