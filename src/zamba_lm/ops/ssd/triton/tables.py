"""Where chunks and segments of packed sequences begin and end.

A chunk is what one matrix product sees, a segment a run of chunks that one program walks through in order. Both begin where a
sequence begins, so a sequence is cut in the same places whatever it is packed with.
"""

from functools import lru_cache

from zamba_lm.ops.packing import Rows


@lru_cache(maxsize=64)
def tables(lengths: tuple[int, ...], chunk: int, segment: int, every: int) -> tuple[Rows, Rows, Rows, Rows]:
    """``segment`` and ``every`` (states kept after so many tokens, or 0) are multiples of ``chunk``, all in tokens.

    Chunks (n, 2): first token, token behind the last. Segments (n, 6): first token, token behind the last, first chunk, sequence,
    place (1: first of its sequence, 2: last, 3: both), chunks of the sequence before it. Sequences (S, 2): first segment, number
    of segments. Kept (S, 1): the first row of a sequence in the states kept on the way.
    """
    chunks, segments, sequences, kept = [], [], [], []
    start = rows = 0
    for s, length in enumerate(lengths):
        end = start + length
        first = len(chunks)
        sequences.append((len(segments), -(-length // segment)))
        for begin in range(start, end, segment):
            place = (begin == start) + 2 * (begin + segment >= end)
            before = (begin - start) // chunk
            segments.append((begin, min(begin + segment, end), first + before, s, place, before))
        chunks += [(begin, min(begin + chunk, end)) for begin in range(start, end, chunk)]
        kept.append((rows,))
        rows += n_kept((length,), every)
        start = end
    return chunks, segments, sequences, kept


def n_kept(lengths: tuple[int, ...], every: int) -> int:
    """States kept on the way."""
    return sum(-(-length // every) for length in lengths) if every else 0
