"""From the rectangles that transformers passes around to sequences laid end to end, and back.

Padding is left out before the model and put back after it, on whichever side it was, so that no op ever sees any.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.ops.packing import Packing, on_device


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a rectangle (B, T) lie in a pass.

    ``lengths``: tokens of each sequence, end to end. ``counts``: tokens of each row, 0 where a row is all padding; None where
    a row may hold several sequences. ``kept`` (N,): which of the B * T places hold tokens; None: all. ``places`` (B, T): for
    every place the token whose result stands there; None: its own. A place of padding repeats the last token before it (the
    first one after it where there is none), so that the last column of a row padded on the right speaks for its text.
    """

    shape: tuple[int, int]
    lengths: tuple[int, ...]
    counts: tuple[int, ...] | None
    kept: torch.Tensor | None = None
    places: torch.Tensor | None = None

    @property
    def packing(self) -> Packing:
        return Packing(self.lengths)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Stretches [start, stop) of neighbouring rows that have tokens."""
        counts = self.counts or ()
        starts = [row for row, n in enumerate(counts) if n and (row == 0 or not counts[row - 1])]
        stops = [row + 1 for row, n in enumerate(counts) if n and (row + 1 == len(counts) or not counts[row + 1])]
        return list(zip(starts, stops))

    def pack(self, x_BT: torch.Tensor) -> torch.Tensor:
        """(B, T, ...) to (N, ...)."""
        flat = x_BT.flatten(0, 1)
        return flat if self.kept is None else flat[self.kept]

    def unpack(self, x_N: torch.Tensor) -> torch.Tensor:
        """(N, ...) to (B, T, ...)."""
        return x_N.unflatten(0, self.shape) if self.places is None else x_N[self.places]

    def tail(self, columns: int, device: torch.device) -> "Layout":
        """The same pass, of which only the last columns are looked at."""
        B, T = self.shape
        if columns == T:
            return self
        places = self.places
        if places is None:
            places = torch.arange(B * T, device=device).view(B, T)
        return replace(self, shape=(B, columns), places=places[:, T - columns :])

    def columns(self, x_N: torch.Tensor, keep: int | torch.Tensor | None) -> torch.Tensor:
        """(N, ...) to (B, K, ...) of some columns: the last ``keep``, or those of an index tensor; 0 or None for all."""
        if keep is None or (isinstance(keep, int) and keep == 0):
            return self.unpack(x_N)
        if isinstance(keep, int):
            keep = slice(-keep, None)
        return self.unpack(x_N)[:, keep] if self.places is None else x_N[self.places[:, keep]]


def layout(
    shape: tuple[int, int],
    *,
    mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    lengths: Sequence[int] | None = None,
) -> Layout:
    """How to read a rectangle: in sequences of ``lengths`` laid end to end over its rows, without what ``mask`` (B, >= T; the
    last T columns count) leaves out, in a new sequence wherever ``position_ids`` do not go on. ZambaError for what does not
    fit."""
    B, T = shape
    if not B * T:
        raise ZambaError(f"the input has shape {shape}, expected at least one row and one token")
    if lengths is not None:
        return _by_lengths(shape, lengths, mask)
    if mask is not None:
        mask = _own_columns(mask, shape)
    full = Layout(shape, (T,) * B, (T,) * B)
    found = full if mask is None else _by_mask(shape, mask)
    return found if position_ids is None or T == 1 else _split(found, position_ids)


def cumulative(cu_seqlens: Sequence[int] | torch.Tensor) -> list[int]:
    """Lengths from cumulative lengths, which start at 0."""
    ends = cu_seqlens.tolist() if isinstance(cu_seqlens, torch.Tensor) else list(cu_seqlens)
    return [int(b - a) for a, b in zip(ends, ends[1:])]


def _by_lengths(shape, lengths, mask) -> Layout:
    lengths = tuple(int(n) for n in lengths)
    if not lengths or min(lengths) < 1 or sum(lengths) != shape[0] * shape[1]:
        raise ZambaError(
            f"lengths are {lengths[:8]}{'...' if len(lengths) > 8 else ''}, {sum(lengths)} tokens in all; expected lengths of at "
            f"least 1 that add up to the {shape[0]} x {shape[1]} tokens of the input"
        )
    if mask is not None and not bool(mask.all()):
        raise ZambaError("lengths say where sequences lie and attention_mask leaves tokens out: give one of them")
    counts = lengths if len(lengths) == shape[0] and set(lengths) == {shape[1]} else None
    return Layout(shape, lengths, counts)


def _own_columns(mask: torch.Tensor, shape) -> torch.Tensor:
    if mask.dim() != 2 or len(mask) != shape[0] or mask.shape[1] < shape[1]:
        raise ZambaError(
            f"attention_mask has shape {tuple(mask.shape)}, expected ({shape[0]}, {shape[1]}) or the cache's columns too"
        )
    return mask[:, mask.shape[1] - shape[1] :] != 0


def _by_mask(shape, mask: torch.Tensor) -> Layout:
    counts = tuple(mask.sum(1).tolist())
    if min(counts) == shape[1]:
        return Layout(shape, counts, counts)
    starts = on_device(list(accumulate(counts, initial=0))[:-1], torch.long, mask.device)
    places = starts[:, None] + (mask.cumsum(1) - 1).clamp(min=0)
    lengths = tuple(n for n in counts if n)
    if not lengths:
        raise ZambaError("attention_mask leaves out every token of the input")
    return Layout(shape, lengths, counts, mask.flatten().nonzero()[:, 0], places.clamp(max=sum(counts) - 1))


def _split(found: Layout, position_ids: torch.Tensor) -> Layout:
    """Begin another sequence wherever positions within a row do not ascend by one."""
    if position_ids.dim() != 2 or position_ids.shape[1] != found.shape[1] or len(position_ids) not in (1, found.shape[0]):
        raise ZambaError(f"position_ids have shape {tuple(position_ids.shape)}, expected {found.shape}")
    positions = found.pack(position_ids.expand(found.shape))
    breaks = ((positions[1:] - positions[:-1]) != 1).nonzero()[:, 0] + 1
    ends = set(accumulate(found.lengths))
    borders = sorted(ends | set(breaks.tolist()))
    if len(borders) == len(ends):
        return found
    lengths = tuple(b - a for a, b in zip([0, *borders], borders))
    return Layout(found.shape, lengths, None, found.kept, found.places)
