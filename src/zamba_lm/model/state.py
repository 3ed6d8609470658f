"""What a model remembers of the sequences it has read: convolution windows, SSM states, keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import torch

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.kv import Pages, Stretches, with_entries
from zamba_lm.ops.attention import KVCache
from zamba_lm.ops.packing import Packing, on_device


@dataclass(frozen=True)
class StateSpec:
    """Shapes and dtypes of one slot, from the config alone."""

    window: tuple[int, int]  # (K - 1, channels) a layer, model dtype
    ssm: tuple[int, int, int]  # (H, P, N) a layer, float32 unless asked otherwise
    kv: tuple[int, int]  # (heads, head_dim) a token, a call, a key or a value, model dtype
    n_layers: int
    n_calls: int

    @classmethod
    def of(cls, c: ZambaConfig) -> "StateSpec":
        return cls(
            (c.d_conv - 1, c.conv_dim), (c.n_ssm_heads, c.ssm_head_dim, c.d_state), (c.n_heads, c.head_dim), c.n_layers, c.n_calls
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """What one layer remembers: windows (n, K - 1, C) and SSM states (n, H, P, N). Sequence s of a pass has entry s, or entry
    ``slots[s]`` where there is a list of slots (int32, on the device). ``early``: see ``ops.step.mamba2_step``."""

    window: torch.Tensor
    ssm: torch.Tensor
    slots: torch.Tensor | None = None
    early: bool = False


def carried(memory: Memory | None) -> tuple[torch.Tensor | None, torch.Tensor | None, dict[str, Any]]:
    """The convolution's window, the state, and how ``conv`` and the recurrences go on with them in place; of None, nothing."""
    if memory is None:
        return None, None, {}
    return memory.window, memory.ssm, {"slots_S": memory.slots, "in_place": True}


@dataclass(frozen=True)
class Snapshot:
    """What ``State.restore`` takes: windows, SSM states, and how many tokens had been read."""

    windows: torch.Tensor
    ssm: torch.Tensor
    ages: tuple[int, ...]

    def select(self, slots: Sequence[int]) -> "Snapshot":
        """Of some slots, in any order."""
        rows = list(slots)
        return Snapshot(self.windows[:, rows], self.ssm[:, rows], tuple(self.ages[slot] for slot in rows))


class StateLike(Protocol):
    """What a pass needs of a memory, asked for in this order."""

    def __len__(self) -> int: ...

    def begin(self, packing: Packing) -> None:
        """Make room for the new tokens of a pass."""

    def positions(self, packing: Packing) -> torch.Tensor:
        """Position (T,) of every new token in its own sequence, counted from 0."""

    def layer(self, i: int) -> Memory:
        """Windows and SSM states of layer i."""

    def cache(self, call: int) -> KVCache:
        """Keys and values of one call."""

    def advance(self, packing: Packing) -> None:
        """Count the tokens of a pass as read."""


class State:
    """Memory of ``len(state)`` sequences, one a slot. A pass over a batch continues slot s with sequence s and updates it in
    place.

    ``slots(start, stop)`` is a view of some slots that shares memory with the whole; ``lengths[s]`` counts the tokens slot s has
    read. Room for keys and values grows when needed: in pages on a GPU, in one stretch a slot elsewhere, or as ``paged`` says.
    ``version`` counts how often tensors of the whole have moved.
    """

    def __init__(self, config: ZambaConfig, n: int, *, device=None, dtype=torch.float32, ssm_dtype=torch.float32, paged=None):
        self.spec = spec = StateSpec.of(config)
        self.windows = torch.zeros(spec.n_layers, n, *spec.window, device=device, dtype=dtype)
        self.ssm = torch.zeros(spec.n_layers, n, *spec.ssm, device=device, dtype=ssm_dtype)
        kind = Pages if (self.windows.is_cuda if paged is None else paged) else Stretches
        self.kv = kind(spec.n_calls, n, *spec.kv, device=device, dtype=dtype)
        self.ages = [0] * n
        self.start, self.stop = 0, n
        self.whole = self
        self._moved = 0
        self._past: tuple[tuple[int, ...], torch.Tensor] | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def lengths(self) -> list[int]:
        """Tokens each slot has read."""
        return self.whole.ages[self.start : self.stop]

    @property
    def version(self) -> int:
        return self.whole._moved + self.whole.kv.version

    @property
    def nbytes(self) -> int:
        """Bytes of the whole state that this is, or is a view of."""
        whole = self.whole
        return sum(t.nbytes for t in (whole.windows, whole.ssm, *whole.kv.stores))

    def slots(self, start: int, stop: int) -> "State":
        """A view of slots [start, stop) sharing memory."""
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"slots [{start}, {stop}) of a state with {len(self)}")
        view = object.__new__(State)
        view.spec, view.whole, view._past = self.spec, self.whole, None
        view.start, view.stop = self.start + start, self.start + stop
        view.windows, view.ssm = (t[:, view.start : view.stop] for t in (self.whole.windows, self.whole.ssm))
        return view

    # what a pass asks for (see StateLike)

    def begin(self, packing: Packing) -> None:
        """Make room for the new tokens of a pass and remember how old the sequences were before it."""
        ages = tuple(self.lengths)
        self.reserve(tuple(age + n for age, n in zip(ages, packing.lengths, strict=True)))
        self._past = ages, on_device(ages, torch.int32, self.windows.device)

    def positions(self, packing: Packing) -> torch.Tensor:
        """Position (T,) of every new token in its own sequence, counted from 0."""
        assert self._past is not None, "begin comes first"
        new = (range(age, age + n) for age, n in zip(self._past[0], packing.lengths, strict=True))
        return on_device(list(chain.from_iterable(new)), torch.long, self.windows.device)

    def layer(self, i: int) -> Memory:
        """Window and SSM state of layer i."""
        return Memory(self.windows[i], self.ssm[i])

    def cache(self, call: int) -> KVCache:
        """Keys and values of one call."""
        assert self._past is not None, "begin comes first"
        keys, values, table = self.whole.kv.entry(call, self.start, self.stop)
        return KVCache(keys, values, table, self._past[1], self._past[0])

    def advance(self, packing: Packing) -> None:
        """Count the tokens of a pass as read."""
        for slot, n in enumerate(packing.lengths, self.start):
            self.whole.ages[slot] += n

    # what an owner of slots does with them

    def reserve(self, totals: tuple[int, ...]) -> None:
        """Make room for keys and values of ``totals[s]`` tokens in slot s."""
        self.whole.kv.reserve(dict(enumerate(totals, self.start)))

    def _at(self, slot: int) -> int:
        """Place in the whole of a slot of this view. IndexError outside of it, where the slots of others lie."""
        if not 0 <= slot < len(self):
            raise IndexError(f"slot {slot} of a state with {len(self)}")
        return self.start + slot

    def reset(self, slot: int) -> None:
        """Empty one slot."""
        at = self._at(slot)
        self.whole.windows[:, at] = 0
        self.whole.ssm[:, at] = 0
        self.whole.ages[at] = 0
        self.whole.kv.release(at)

    def move(self, source: int, target: int) -> None:
        """Put one slot in another's place. The source is to be ``reset`` before it is used again."""
        source, target, whole = self._at(source), self._at(target), self.whole
        if source == target:
            return
        age = whole.ages[target] = whole.ages[source]
        whole.windows[:, target] = whole.windows[:, source]
        whole.ssm[:, target] = whole.ssm[:, source]
        whole.kv.move(source, target, age)

    def resize(self, n: int) -> None:
        """Have ``n`` slots in this whole state: the first of those there were, then empty ones. Views made before are void."""
        assert self.whole is self, "only a whole state has another number of slots"
        windows, ssm = (with_entries(t, n, dim=1) for t in (self.windows, self.ssm))
        self.kv.resize(n)
        self.windows, self.ssm = windows, ssm
        self.ages = (self.ages + [0] * n)[:n]
        self.stop = n
        self._moved += 1

    def snapshot(self) -> "Snapshot":
        """A copy of what changes with every token. Keys and values only grow, and need none."""
        return Snapshot(self.windows.clone(), self.ssm.clone(), tuple(self.lengths))

    def restore(self, snapshot: "Snapshot") -> None:
        """Be as when the snapshot of these slots was taken. Valid while no slot has been reset or moved since."""
        self.windows.copy_(snapshot.windows)
        self.ssm.copy_(snapshot.ssm)
        self.whole.ages[self.start : self.stop] = snapshot.ages

    def clone(self) -> "State":
        """A copy of these slots with memory of its own."""
        return self.select(range(len(self)))

    def select(self, slots: Sequence[int]) -> "State":
        """A copy of some slots in any order, repeats allowed, with memory of its own. IndexError for a slot that is not there."""
        at = [self._at(slot) for slot in slots]
        index = on_device(at, torch.long, self.windows.device)
        new = object.__new__(State)
        new.spec, new.whole, new.start, new.stop, new._moved, new._past = self.spec, new, 0, len(at), 0, None
        new.windows, new.ssm = (t.index_select(1, index) for t in (self.whole.windows, self.whole.ssm))
        new.ages = [self.whole.ages[slot] for slot in at]
        new.kv = self.whole.kv.copy(at, index)
        return new
