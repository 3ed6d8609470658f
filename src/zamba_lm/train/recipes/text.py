"""From a recipe's ``data`` to rows for the trainer, and to what is measured on held-out text."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import Rows, Shards, bits_by_source
from zamba_lm.train.data.shards import holds
from zamba_lm.train.recipes.base import Data

if TYPE_CHECKING:
    from zamba_lm.model.zamba import Zamba


def rows(data: Data, row: int, tokenizer: Tokenizer, vocab_size: int) -> dict[str, Rows]:
    """Rows of ``row`` tokens of every source. ZambaError for a source that is not there or that another tokenizer made."""
    if not data.sources:
        raise ZambaError("data.sources names no text; give a tokenised set with --set data.sources.NAME=FOLDER")
    found = {}
    for name, where in data.sources.items():
        shards = opened(data, where, "train", tokenizer)
        shards.refuse_model(vocab_size)
        found[name] = Rows(shards, row, seed=data.seed)
        _tell_shortened(found[name])
    return found


def _tell_shortened(rows: Rows) -> None:
    """Warn of chats that do not fit into a row. Of texts everything is seen: what does not fit goes on in another row."""
    if rows.lost:
        warnings.warn(
            f"{rows.shards.folder}: of {len(rows.shards):,} documents {rows.cut:,} are cut to rows of {rows.row:,} tokens and "
            f"{rows.dropped:,} left out, whose first answer begins later; the longest has {rows.shards.lengths.max():,} tokens",
            stacklevel=2,
        )


def weights(data: Data) -> dict[str, float]:
    """Shares by source, which sum to 1. ZambaError for a weight without a source."""
    asked = data.weights or dict.fromkeys(data.sources, 1.0)
    for name in asked:
        if name not in data.sources:
            raise ZambaError(f"data.weights names {name!r}{nearest(name, data.sources)}, which is none of data.sources")
    total = sum(asked.values())
    if total <= 0 or min(asked.values()) < 0:
        raise ZambaError(f"data.weights are {asked}; expected shares of at least 0 with one above")
    return {name: share / total for name, share in asked.items()}


def held_out(data: Data, zamba: "Zamba", tokenizer: Tokenizer, row: int, most: int) -> dict[str, Callable[[], dict[str, float]]]:
    """Functions that measure bits per byte of every held-out source, in windows of ``row`` tokens.

    ``most``: bytes of text of each source that are measured; 0: all.
    """
    return {name: _measure(zamba, shards, row, most) for name, shards in _held_out_shards(data, tokenizer).items()}


def _held_out_shards(data: Data, tokenizer: Tokenizer) -> Mapping[str, Shards]:
    if data.held_out:
        return {name: opened(data, where, "held_out", tokenizer) for name, where in data.held_out.items()}
    return {name: opened(data, where, "held_out", tokenizer) for name, where in data.sources.items() if holds_out(data, where)}


def _measure(zamba: "Zamba", shards: Shards, row: int, most: int) -> Callable[[], dict[str, float]]:
    """Of the whole set, and of each source in it where there are several."""

    def measure() -> dict[str, float]:
        found = bits_by_source(zamba, shards, row=row, max_bytes=most or None)
        return {"": found["all"]} | (found["by_source"] if len(found["by_source"]) > 1 else {})

    return measure


def opened(data: Data, where: str, split: str, tokenizer: Tokenizer) -> Shards:
    """The shards of "FOLDER" or "FOLDER:PATTERN"."""
    folder, pattern = place(data, where)
    return Shards.open(folder, split, only=pattern, tokenizer=tokenizer)


def holds_out(data: Data, where: str) -> bool:
    """Whether anything of "FOLDER" or "FOLDER:PATTERN" is held out. ZambaError where there is no set."""
    folder, pattern = place(data, where)
    return holds(folder, "held_out", only=pattern)


def place(data: Data, where: str) -> tuple[Path, str]:
    folder, _, pattern = where.partition(":")
    return Path(data.folder) / folder, pattern or "*"
