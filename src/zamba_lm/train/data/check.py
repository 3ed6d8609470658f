"""A set looked over: what is in it, whether it is what its manifest says, and how its documents read."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data.rows import Rows, split
from zamba_lm.train.data.shards import SPLITS, Shards, holds

COUNTS = ("tokens", "targets", "bytes")


def both(folder: Path | str) -> list[Shards]:
    """The splits that a set has."""
    return [Shards.open(folder, split) for split in SPLITS if holds(folder, split)]


def by_source(shards: Shards) -> list[dict]:
    """Documents, tokens, targets and bytes of every source, the largest first."""
    rows = []
    for number, name in enumerate(shards.names):
        table = shards.table[shards.source == number]
        sums = {key: int(table[key].sum(dtype=np.int64)) for key in COUNTS}
        rows.append({"source": name, "split": shards.split, "documents": len(table), **sums})
    return sorted(rows, key=lambda row: -row["tokens"])


def packed(shards: Shards, row: int) -> dict:
    """What packing to rows of ``row`` tokens comes to in the first epoch."""
    rows = Rows(shards, row)
    cut = {"cut": rows.cut, "dropped": rows.dropped, "tokens_lost": rows.lost}
    return {"pack": rows.pack, "row": row, "rows": rows.count(), "waste": rows.waste(), "longer": rows.longer, **cut}


def check(shards: Shards, told: Callable[[str], None] = lambda name: None) -> None:
    """Read everything once. Raises ZambaError for a shard whose content is not what was written, or has ids of no token."""
    for line, array in zip(shards.lines, shards.arrays):
        told(line["name"])
        path, crc, top = shards.folder / f"{line['name']}.{line['split']}.ids", 0, 0
        for part in _parts(array):
            crc = zlib.crc32(part.tobytes(), crc)
            top = max(top, int((part & (shards.mark - 1)).max()))
        if crc != line["crc32"]:
            raise ZambaError(f"{path} has changed since it was written (checksum {crc}, not {line['crc32']}): tokenise it again")
        if top >= shards.tokenizer["vocab_size"]:
            raise ZambaError(f"{path} holds id {top}, and its tokenizer has {shards.tokenizer['vocab_size']} tokens")


def _parts(array: np.ndarray, size: int = 1 << 22) -> Iterator[np.ndarray]:
    return (array[at : at + size] for at in range(0, len(array), size))


def shown(shards: Shards, tokenizer: Tokenizer, index: int) -> str:
    """One document as text, with control tokens; what is learnt stands between « and »."""
    shards.refuse_other(tokenizer)
    entries = shards.document(index)
    if shards.kind == "pairs":
        row = shards.table[index]
        prompt, chosen, rejected = np.split(entries, np.cumsum([row["prompt"], row["chosen"]]))
        return f"{_text(tokenizer, prompt)}\nchosen: «{_text(tokenizer, chosen)}»\nrejected: «{_text(tokenizer, rejected)}»"
    ids, _ = split(entries, shards.mark)
    marked = entries >= shards.mark
    edges = [0, *(np.flatnonzero(marked[1:] != marked[:-1]) + 1).tolist(), len(ids)]
    pieces, before = [], np.array([], np.int64)
    for start, end in zip(edges, edges[1:]):
        text = tokenizer.decode(ids[start:end], skip_special=False, prompt_ids=before)
        pieces.append(f"«{text}»" if marked[start] else text)
        before = ids[:end]
    return "".join(pieces)


def _text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    return tokenizer.decode(ids, skip_special=False)
