"""Bits per byte of held-out text: what a model pays to write it down, whatever its tokenizer."""

import math

import numpy as np
import torch

from zamba_lm.model.batch import Batch
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.xent import xent
from zamba_lm.train.stream import split_targets


@torch.inference_mode()
def bits_per_byte(model: Zamba, entries: np.ndarray, n_bytes: int, *, row: int = 2048, batch: int = 16) -> float:
    """Total -log2 p(text) / bytes, in windows of ``row`` tokens that each start afresh.

    Every token of the text and the end of every document is paid for; beginnings of documents are given.
    """
    count = (len(entries) - 1) // row
    entries = torch.from_numpy(entries.view(np.int16))
    rows = entries[: count * row + 1].unfold(0, row + 1, row)
    nats = sum(_nats(model, rows[i : i + batch]) for i in range(0, count, batch))
    if len(entries) - 1 > count * row:
        nats += _nats(model, entries[None, count * row :])
    return nats / math.log(2) / n_bytes


def _nats(model: Zamba, rows: torch.Tensor) -> float:
    ids, targets = split_targets(rows.to(model.device))
    return float(xent(model.hidden(Batch.rectangle(ids)), model.embedding.weight, targets.flatten()))
