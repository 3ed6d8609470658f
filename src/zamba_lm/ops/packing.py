"""Sequences of different lengths laid end to end: where each one starts, on the host."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

Rows = list[tuple[int, ...]]


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

    __slots__ = ("lengths", "total", "runs", "_kept")

    known = True  # whether the lengths are those of the sequences; see ``Frame``

    def __init__(self, lengths):
        self.lengths: tuple[int, ...] = tuple(int(n) for n in lengths)
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(
                f"sequence lengths are {self.lengths[:20]}, expected at least one sequence and at least 1 token in each"
            )
        self.total: int = sum(self.lengths)
        self.runs: tuple[Run, ...] = tuple(_runs(self.lengths))
        self._kept: dict = {}

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"Packing({self.lengths})"

    def cu_seqlens(self, device=None) -> torch.Tensor:
        """Cumulative lengths (S + 1,), int32, starting at 0. Kept, since every layer asks for the same; not to be written to."""
        return self.tables(_starts, device=device)[0].view(-1)

    def tables(self, make: Callable[..., tuple[Rows, ...]], *args, device=None) -> tuple[torch.Tensor, ...]:
        """The tables of whole numbers ``make(lengths, *args)``, rows of equal width each, as int32 tensors on the device. Kept;
        not to be written to."""
        return self.kept((make, args, torch.device(device or "cpu")), lambda: self._tables(make, args, device))

    def kept(self, key, make: Callable):
        """What ``make()`` returns, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _tables(self, make, args, device) -> tuple[torch.Tensor, ...]:
        return flat_tables(make(self.lengths, *args), device)[1]

    def positions(self, device=None) -> torch.Tensor:
        """Position (T,) of every token in its own sequence, int64."""
        starts, at = self.cu_seqlens(device), torch.arange(self.total, dtype=torch.int32, device=device)
        return (at - starts[torch.searchsorted(starts[1:], at, right=True)]).long()

    def last(self, device=None) -> torch.Tensor:
        """Index of each sequence's last token (S,), int64."""
        return self.cu_seqlens(device)[1:].long() - 1


class Frame(Packing):
    """Room for ``total`` tokens of up to S sequences, which of them there are is said anew before each pass, to the device alone
    (``fill``): what was captured with a frame serves any lengths that fit.

    ``lengths`` are such that no others need more rows in any table (one long sequence, else single tokens): what is planned for
    them is enough for all. Rows of tables that a pass does not need are zeros and sequences that it does not have are empty, so
    a kernel must do nothing for a row of zeros, an empty sequence, or a token behind the last sequence. Which rows of a result
    lie behind the last sequence, and what they hold, is nobody's business.
    """

    __slots__ = ("_now",)

    known = False

    def __init__(self, n: int, total: int):
        super().__init__((total - n + 1, *(1,) * (n - 1)))
        self._now = self.lengths

    def fill(self, lengths: Sequence[int]) -> None:
        """Be the packing of these lengths from now on."""
        if not 0 < len(lengths) <= len(self) or sum(lengths) > self.total or min(lengths) < 1:
            raise ValueError(
                f"{len(lengths)} sequences of {sum(lengths)} tokens do not fit a frame of {len(self)} and {self.total}"
            )
        self._now = (*lengths, *(0,) * (len(self) - len(lengths)))
        for (make, args, _), flat in self._kept.get(_FILLED, {}).items():
            overwrite(flat, _flat(self._padded(make, args)))

    def _tables(self, make, args, device):
        device = torch.device(device or "cpu")
        flat, tables = flat_tables(self._padded(make, args), device)
        self._kept.setdefault(_FILLED, {})[make, args, device] = flat
        return tables

    def _padded(self, make, args) -> tuple[Rows, ...]:
        """Today's tables, of the size of the largest there can be."""
        return tuple(
            [*now, *[(0,) * len(most[0])] * (len(most) - len(now))]
            for now, most in zip(make(self._now, *args), make(self.lengths, *args), strict=True)
        )


_FILLED = "tables to be filled anew"


def flat_tables(tables: tuple[Rows, ...], device) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """All tables in one tensor, which is one copy to the device, and each as a view of it."""
    with torch.inference_mode(False):  # kept for later passes, which may train
        flat = on_device(_flat(tables), torch.int32, device or "cpu")
        parts = flat.split([len(rows) * len(rows[0]) for rows in tables])
    return flat, tuple(part.view(len(rows), -1) for part, rows in zip(parts, tables, strict=True))


def _flat(tables: tuple[Rows, ...]) -> list[int]:
    return [n for rows in tables for row in rows for n in row]


def _starts(lengths: Sequence[int]) -> tuple[Rows]:
    return ([(n,) for n in (0, *accumulate(lengths))],)


def on_device(values, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """A tensor of host numbers. On a GPU it arrives in the order of the stream, and the host does not wait for it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
    return torch.tensor(values, dtype=dtype, device=device)


def overwrite(tensor: torch.Tensor, values: Iterable[int]) -> None:
    """Put host numbers into a tensor of int32 or int64, in the order of the stream; the host does not wait for it."""
    host = torch.frombuffer(array("q" if tensor.dtype == torch.int64 else "i", values), dtype=tensor.dtype)  # tensor() is slow
    tensor.copy_(host.pin_memory() if tensor.is_cuda else host, non_blocking=True)


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


# Memory that a pass continues: entry s of sequence s, or entry slots_S[s].


def check_entries(name: str, memory_SX, entry: tuple[int, ...], packing: Packing, slots_S, in_place: bool) -> None:
    """ValueError for memory that does not fit: one entry a sequence, or with slots any number."""
    if memory_SX is None and not in_place and slots_S is None:
        return
    if memory_SX is None or (slots_S is not None and not in_place):
        raise ValueError(f"slots and in_place speak of a given {name}, and slots of one that is continued in place")
    n = len(memory_SX) if slots_S is not None else len(packing)
    if memory_SX.shape != (n, *entry):
        raise ValueError(f"{name} is {tuple(memory_SX.shape)}, expected {(n, *entry)} for {packing}")
    if slots_S is not None and slots_S.shape != (len(packing),):
        raise ValueError(f"slots are {tuple(slots_S.shape)}, expected {(len(packing),)} for {packing}")
    if in_place and not memory_SX.is_contiguous():
        raise ValueError(f"{name} of strides {memory_SX.stride()} cannot be continued in place; it has to be contiguous")


def entries(memory_SX, slots_S):
    """The sequences' entries."""
    return memory_SX if slots_S is None else memory_SX[slots_S.long()]


def put_back(memory_SX, after_SX, slots_S):
    """Overwrite the sequences' entries; returns the memory."""
    return (
        memory_SX.copy_(after_SX) if slots_S is None else memory_SX.index_copy_(0, slots_S.long(), after_SX.to(memory_SX.dtype))
    )
