"""What a model remembers of the sequences it has read: convolution windows, SSM states, keys and values."""

from dataclasses import dataclass

import torch

from zamba_lm.model.config import ZambaConfig

KV_STEP = 256  # tokens by which room for keys and values grows at the least


@dataclass(frozen=True)
class StateSpec:
    """Shapes and dtypes of one slot, from the config alone."""

    window: tuple[int, int]  # (K - 1, channels) a layer, model dtype
    ssm: tuple[int, int, int]  # (H, P, N) a layer, always float32
    kv: tuple[int, int]  # (heads, head_dim) a token, a call, a key or a value, model dtype
    n_layers: int
    n_calls: int

    @classmethod
    def of(cls, c: ZambaConfig) -> "StateSpec":
        return cls(
            (c.d_conv - 1, c.conv_dim), (c.n_ssm_heads, c.ssm_head_dim, c.d_state), (c.n_heads, c.head_dim), c.n_layers, c.n_calls
        )


class State:
    """Memory of ``len(state)`` sequences, one a slot. A pass over a batch continues slot s with sequence s and updates it in
    place.

    ``slots(start, stop)`` is a view of some slots that shares memory with the whole; ``lengths[s]`` counts the tokens slot s has
    read. Room for keys and values grows when needed.
    """

    def __init__(self, config: ZambaConfig, n: int, *, device=None, dtype=torch.float32):
        self.spec = spec = StateSpec.of(config)
        self.windows = torch.zeros(spec.n_layers, n, *spec.window, device=device, dtype=dtype)
        self.ssm = torch.zeros(spec.n_layers, n, *spec.ssm, device=device, dtype=torch.float32)
        heads, head_dim = spec.kv
        self.kv = [torch.zeros(2, n, heads, 0, head_dim, device=device, dtype=dtype) for _ in range(spec.n_calls)]
        self.ages = [0] * n
        self.start, self.stop = 0, n
        self.whole = self

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def lengths(self) -> list[int]:
        """Tokens each slot has read."""
        return self.whole.ages[self.start : self.stop]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole state that this is, or is a view of."""
        whole = self.whole
        return sum(t.nbytes for t in (whole.windows, whole.ssm, *whole.kv))

    def slots(self, start: int, stop: int) -> "State":
        """A view of slots [start, stop) sharing memory."""
        if not 0 <= start < stop <= len(self):
            raise IndexError(f"slots [{start}, {stop}) of a state with {len(self)}")
        view = object.__new__(State)
        view.spec, view.whole = self.spec, self.whole
        view.start, view.stop = self.start + start, self.start + stop
        view.windows, view.ssm = (t[:, view.start : view.stop] for t in (self.whole.windows, self.whole.ssm))
        return view

    def layer(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Window (S, K - 1, C) and SSM state (S, H, P, N) of layer i."""
        return self.windows[i], self.ssm[i]

    def cache(self, call: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (S, heads, capacity, head_dim) of one call."""
        keys, values = self.whole.kv[call][:, self.start : self.stop]
        return keys, values

    def reserve(self, new: tuple[int, ...]) -> None:
        """Make room for ``new[s]`` more tokens in slot s."""
        need = max((age + n for age, n in zip(self.lengths, new, strict=True)), default=0)
        whole = self.whole
        if whole.kv and need > whole.kv[0].shape[3]:
            room = max(need, whole.kv[0].shape[3] * 5 // 4)
            for call, old in enumerate(whole.kv):  # one call at a time, so that only one is held twice
                whole.kv[call] = _with_entries(old, -(-room // KV_STEP) * KV_STEP, dim=3)

    def advance(self, new: tuple[int, ...]) -> None:
        """Count ``new[s]`` tokens read by slot s."""
        for slot, n in enumerate(new, self.start):
            self.whole.ages[slot] += n

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

    def move(self, source: int, target: int) -> None:
        """Copy one slot over another."""
        source, target, whole = self._at(source), self._at(target), self.whole
        age = whole.ages[target] = whole.ages[source]
        whole.windows[:, target] = whole.windows[:, source]
        whole.ssm[:, target] = whole.ssm[:, source]
        for kv in whole.kv:
            kv[:, target, :, :age] = kv[:, source, :, :age]

    def resized(self, n: int) -> "State":
        """A whole state of ``n`` slots, of which the first are copies of these."""
        new = object.__new__(State)
        new.spec, new.whole, new.start, new.stop = self.spec, new, 0, n
        new.windows, new.ssm = (_with_entries(t, n, dim=1) for t in (self.windows, self.ssm))
        new.kv = [_with_entries(kv[:, self.start : self.stop], n, dim=1) for kv in self.whole.kv]
        new.ages = (self.lengths + [0] * n)[:n]
        return new

    def clone(self) -> "State":
        """A copy of these slots with memory of its own."""
        return self.resized(len(self))


def _with_entries(old: torch.Tensor, n: int, dim: int) -> torch.Tensor:
    """A copy with ``n`` entries along ``dim``: those there were, then zeros."""
    new = old.new_zeros(*old.shape[:dim], n, *old.shape[dim + 1 :])
    kept = min(n, old.shape[dim])
    new.narrow(dim, 0, kept).copy_(old.narrow(dim, 0, kept))
    return new
