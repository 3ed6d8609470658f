"""Chats and preference pairs as `datasets` tables, the form in which TRL's trainers take their data."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from zamba_lm.errors import ZambaError
from zamba_lm.text.whole import replacing
from zamba_lm.train.data import sources
from zamba_lm.train.data.job import Options, Tally, meanings
from zamba_lm.train.data.rows import IGNORED, split
from zamba_lm.train.data.shards import Shards


def chats(shards: Shards, *, longest: int | None = None):
    """``{"input_ids", "labels"}`` of every document, unpacked; labels are -100 at all that is no target.

    longest: leave out documents of more tokens.
    """
    if shards.kind == "pairs":
        raise ZambaError(f"{shards.folder} holds preference pairs: use pairs() instead of chats()")
    kept = _kept(shards, longest)
    ids, labels = split(_entries(shards, kept), shards.mark)
    ends = np.cumsum(shards.lengths[kept])
    labels[ends - shards.lengths[kept]] = IGNORED
    return _table({"input_ids": (ids, ends), "labels": (labels, ends)})


def pairs(shards: Shards, *, longest: int | None = None):
    """``{"prompt_ids", "chosen_ids", "rejected_ids"}`` of every pair; answers end with the token that ends a turn.

    longest: leave out pairs whose prompt and longer answer have more tokens.
    """
    if shards.kind != "pairs":
        raise ZambaError(f"{shards.folder} holds documents of kind {shards.kind}, not preference pairs")
    prompt, chosen = (shards.table[key].astype(np.int64) for key in ("prompt", "chosen"))
    whole = prompt + np.maximum(chosen, shards.lengths - prompt - chosen)
    kept = np.flatnonzero(whole <= (longest or whole.max()))
    if not len(kept):
        raise ZambaError(f"no pair of {shards.folder} has {longest} tokens or fewer; the shortest has {whole.min()}")
    ids = split(_entries(shards, kept), shards.mark)[0]
    total, prompt, chosen = shards.lengths[kept], prompt[kept], chosen[kept]
    part = _parts(total, prompt, chosen)
    sizes = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": total - prompt - chosen}
    return _table({name: (ids[part == number], np.cumsum(size)) for number, (name, size) in enumerate(sizes.items())})


def pair_messages(names: Iterable[str | Path], *, options: Options | None = None):
    """``{"prompt", "chosen", "rejected"}`` as lists of messages, for TRL to tokenise itself; from files or hub names."""
    from datasets import Dataset

    options, tally = options or Options(kind="pairs"), Tally()
    found = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for source in sources.find(names)
        for _, pair, _ in meanings(source, options, tally)
    ]
    if not found:
        raise ZambaError(f"no preference pair in {', '.join(map(str, names))}")
    return Dataset.from_list(found)


def write_pairs(path: Path | str, found: Iterable[Mapping]) -> int:
    """Write pairs (``prompt``, ``chosen``, ``rejected``, perhaps ``source``) as JSONL that tokenise reads; returns how many."""
    path, count = Path(path), 0
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        for pair in found:
            file.write(json.dumps(dict(pair), ensure_ascii=False) + "\n")
            count += 1
    return count


def _kept(shards: Shards, longest: int | None) -> np.ndarray:
    kept = np.flatnonzero(shards.lengths <= (longest or shards.lengths.max()))
    if not len(kept):
        raise ZambaError(f"no document of {shards.folder} has {longest} tokens or fewer; the shortest has {shards.lengths.min()}")
    return kept


def _entries(shards: Shards, kept: np.ndarray) -> np.ndarray:
    return np.concatenate([shards.document(index) for index in kept.tolist()])


def _parts(total: np.ndarray, prompt: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """For every token of pairs end to end: 0 in a prompt, 1 in a chosen, 2 in a rejected answer."""
    sizes = np.stack([prompt, chosen, total - prompt - chosen], axis=1)
    return np.repeat(np.tile([0, 1, 2], len(total)), sizes.ravel())


def _table(columns: dict[str, tuple[np.ndarray, np.ndarray]]):
    """Lists of int32 from their elements end to end and where each list ends: no Python number is made on the way."""
    import pyarrow
    from datasets import Dataset

    large = any(len(flat) >= 2**31 for flat, _ in columns.values())
    kind, offset = (pyarrow.LargeListArray, np.int64) if large else (pyarrow.ListArray, np.int32)
    arrays = {
        name: kind.from_arrays(np.concatenate([[0], ends]).astype(offset), pyarrow.array(flat.astype(np.int32)))
        for name, (flat, ends) in columns.items()
    }
    return Dataset(pyarrow.table(arrays))
