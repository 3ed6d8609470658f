"""Sequences of different lengths laid end to end: where each one starts, on the host."""

from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Run:
    """Neighbouring sequences of one length, which an op may treat as one rectangular batch."""

    sequences: slice  # which sequences
    tokens: slice  # which packed tokens
    n: int
    length: int


class Packing:
    """Lengths of S sequences packed along one token axis of T = sum(lengths).

    Lengths are Python integers, so choosing shapes never waits for a device. ``runs`` groups neighbours of equal length; a plain
    batch and a decode step are one run, and ops loop over runs, so that no sequence can see another.
    """

    __slots__ = ("lengths", "total", "runs", "_starts")

    def __init__(self, lengths):
        self.lengths: tuple[int, ...] = tuple(int(n) for n in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(
                f"sequence lengths are {self.lengths[:20]}, expected at least one sequence and at least 1 token in each"
            )
        self.total: int = sum(self.lengths)
        self.runs: tuple[Run, ...] = tuple(_runs(self.lengths))
        self._starts: dict[torch.device, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"Packing({self.lengths})"

    def cu_seqlens(self, device=None) -> torch.Tensor:
        """Cumulative lengths (S + 1,), int32, starting at 0. Kept, since every layer asks for the same; not to be written to."""
        device = torch.device(device or "cpu")
        if device not in self._starts:
            self._starts[device] = on_device((0, *accumulate(self.lengths)), torch.int32, device)
        return self._starts[device]

    def positions(self, device=None) -> torch.Tensor:
        """Position (T,) of every token in its own sequence, int64."""
        return torch.cat([torch.arange(n, device=device) for n in self.lengths])

    def last(self, device=None) -> torch.Tensor:
        """Index of each sequence's last token (S,), int64."""
        return self.cu_seqlens(device)[1:].long() - 1


def on_device(values, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """A tensor of host numbers. On a GPU it arrives in the order of the stream, and the host does not wait for it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
    return torch.tensor(values, dtype=dtype, device=device)


def _runs(lengths: tuple[int, ...]):
    first = start = 0
    for i, length in enumerate(lengths):
        if i + 1 == len(lengths) or lengths[i + 1] != length:
            n = i + 1 - first
            yield Run(slice(first, i + 1), slice(start, start + n * length), n, length)
            first, start = i + 1, start + n * length


def over_runs(packing: Packing, rows, packed: tuple, states: tuple = ()):
    """Call ``rows(*packed_BT..., *states_B...)`` once a run and lay the results end to end.

    ``packed`` tensors (T, ...) are cut to (n, length, ...), ``states`` (S, ...) or None to (n, ...). ``rows`` returns a tuple:
    the first entry is packed again, the others are stacked along sequences.
    """
    results = []
    for run in packing.runs:
        cut = [x[run.tokens].unflatten(0, (run.n, run.length)) for x in packed]
        results.append(rows(*cut, *(None if s is None else s[run.sequences] for s in states)))
    if len(results) == 1:
        return (results[0][0].flatten(0, 1), *results[0][1:])
    y = torch.cat([r[0].flatten(0, 1) for r in results])
    return (y, *(torch.cat(parts) for parts in zip(*(r[1:] for r in results), strict=True)))
