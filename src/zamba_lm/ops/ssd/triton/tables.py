"""Where chunks and segments of packed sequences begin and end: small int32 tensors on the device, made once a packing.

A chunk is what one matrix product sees, a segment a run of chunks that one program walks through in order. Both begin where a
sequence begins, so a sequence is cut in the same places whatever it is packed with.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch

from zamba_lm.ops.packing import on_device


@dataclass(frozen=True)
class Tables:
    """``chunks`` (n, 2): first token, token behind the last.

    ``segments`` (n, 6): first token, token behind the last, first chunk, sequence, place (1: first of its sequence, 2: last,
    3: both), chunks of the sequence before it. ``sequences`` (S, 2): first segment, number of segments. ``kept`` (S,): the first
    row of a sequence in the states kept on the way.
    """

    chunks: torch.Tensor
    segments: torch.Tensor
    sequences: torch.Tensor
    kept: torch.Tensor
    n_kept: int


@lru_cache(maxsize=64)
def tables(lengths: tuple[int, ...], chunk: int, segment: int, every: int, device: torch.device) -> Tables:
    """``segment`` and ``every`` (states kept after so many tokens, or 0) are multiples of ``chunk``, all in tokens."""
    chunks, segments, sequences, kept = [], [], [], [0]
    start = 0
    for s, length in enumerate(lengths):
        end = start + length
        first = len(chunks)
        sequences.append((len(segments), -(-length // segment)))
        for begin in range(start, end, segment):
            place = (begin == start) + 2 * (begin + segment >= end)
            before = (begin - start) // chunk
            segments.append((begin, min(begin + segment, end), first + before, s, place, before))
        chunks += [(begin, min(begin + chunk, end)) for begin in range(start, end, chunk)]
        kept.append(kept[-1] + (-(-length // every) if every else 0))
        start = end
    flat = [*chain(*chunks), *chain(*segments), *chain(*sequences), *kept[:-1]]
    sizes = [2 * len(chunks), 6 * len(segments), 2 * len(sequences), len(lengths)]
    with torch.inference_mode(False):  # kept for later calls, which may train
        parts = on_device(flat, torch.int32, device).split(sizes)  # one copy
    return Tables(parts[0].view(-1, 2), parts[1].view(-1, 6), parts[2].view(-1, 2), parts[3], kept[-1])
