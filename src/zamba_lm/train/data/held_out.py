"""Bits per byte of held-out documents, source by source: what a model pays to write them down, whatever its tokenizer."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.packing import Packing
from zamba_lm.ops.xent import xent
from zamba_lm.train.data.rows import split
from zamba_lm.train.data.shards import Shards


@torch.inference_mode()
def bits_by_source(
    model: Zamba, shards: Shards, *, row: int = 2048, batch: int = 16, max_bytes: int | None = None
) -> dict[str, float | dict[str, float]]:
    """``{"all": bits per byte, "by_source": {name: bits per byte}}`` of the documents of ``shards``.

    Every target is paid for exactly once, the end of a document included; a document longer than ``row`` tokens is read in
    windows that start afresh, each given the token before it. In chats only what the assistant says is paid for, and only those
    bytes count. max_bytes: of each source, only its first documents, as many as hold so many bytes. ``batch`` rows' worth of
    tokens go through the model at a time.
    """
    if shards.kind == "pairs":
        raise ZambaError(f"{shards.folder} holds preference pairs; bits per byte are of texts and chats")
    shards.refuse_model(model.config.vocab_size)
    nats, sizes = {}, {}
    for number, name in enumerate(shards.names):
        documents = _first(shards, np.flatnonzero(shards.source == number), max_bytes)
        windows = [window for index in documents for window in _windows(shards.document(index), row)]
        nats[name] = math.fsum(_nats(model, group, shards.mark) for group in _groups(windows, row * batch))
        sizes[name] = int(shards.table["bytes"][documents].sum(dtype=np.int64))
    bits = {name: nats[name] / math.log(2) / sizes[name] for name in sorted(nats, key=sizes.get, reverse=True) if sizes[name]}
    return {"all": math.fsum(nats.values()) / math.log(2) / sum(sizes.values()), "by_source": bits}


def _first(shards: Shards, documents: np.ndarray, max_bytes: int | None) -> list[int]:
    if max_bytes is None:
        return documents.tolist()
    before = np.cumsum(shards.table["bytes"][documents], dtype=np.int64) - shards.table["bytes"][documents]
    return documents[before < max_bytes].tolist()


def _windows(entries: np.ndarray, row: int) -> Iterator[np.ndarray]:
    """Stretches of up to ``row + 1`` entries, each beginning with the last of the one before."""
    return (entries[at : at + row + 1] for at in range(0, len(entries) - 1, row))


def _groups(windows: list[np.ndarray], tokens: int) -> Iterator[list[np.ndarray]]:
    """Windows of like lengths together, up to so many tokens."""
    group, held = [], 0
    for window in sorted(windows, key=len, reverse=True):
        if group and held + len(window) - 1 > tokens:
            yield group
            group, held = [], 0
        group.append(window)
        held += len(window) - 1
    if group:
        yield group


def _nats(model: Zamba, windows: list[np.ndarray], mark: int) -> float:
    ids, labels = zip(*(split(window, mark) for window in windows))
    ids_T, targets_T = (
        torch.from_numpy(np.concatenate(parts)).to(model.device) for parts in ([i[:-1] for i in ids], [t[1:] for t in labels])
    )
    batch = Batch(ids_T, Packing([len(window) - 1 for window in windows]))
    return float(xent(model.hidden(batch), model.embedding.weight, targets_T))
