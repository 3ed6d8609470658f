"""The rows of a captured decoding step: everything it reads and writes lies here, at addresses that do not change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from zamba_lm.engine.request import SamplingParams
from zamba_lm.engine.sequence import Sequence
from zamba_lm.model.state import Memory, State
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.attention import KVCache
from zamba_lm.ops.opening import opening
from zamba_lm.ops.packing import Packing, on_device
from zamba_lm.ops.sample import Settings, greedy, sample

PLAIN, SAMPLED, PENALISED = "plain", "sampled", "penalised"  # what choosing a token takes


class Rows:
    """Row r decodes the sequence of slot r. The last slot is spare: rows that nobody needs work on it, and nobody reads it.

    What a step changes (newest ids, ages, counters of random numbers) it changes on the device; the host writes a row only when
    a sequence sits down in it.
    """

    def __init__(self, state: State, vocab_size: int):
        self.state, n, device = state, len(state), state.windows.device
        self.spare, self.vocab_size = n - 1, vocab_size
        self.ids_S = torch.zeros(n, dtype=torch.long, device=device)
        self.past_S = torch.zeros(n, dtype=torch.int32, device=device)
        self.slots_S = torch.full((n,), self.spare, dtype=torch.int32, device=device)
        self.grows_S = torch.zeros(n, dtype=torch.int32, device=device)  # 1 for rows in use, else 0
        self.settings = Settings.empty(n, device)
        self._all_S = torch.arange(n, dtype=torch.int32, device=device)
        self.seen_SV: Tensor | None = None
        self.params: list[SamplingParams | None] = [None] * n
        self.occupied = 0
        state.slots(self.spare, n).reserve((1,))

    @classmethod
    def like(cls, old: "Rows | None", state: State, model: Zamba) -> "Rows":
        """Rows for ``state``, which take over what sits in ``old``."""
        new = cls(state, model.config.vocab_size)
        if old is not None:
            kept = min(len(old), len(new)) - 1
            if old.seen_SV is not None:
                new._see()
            for mine, theirs in zip(new._tensors(), old._tensors(), strict=True):
                if mine is not new.slots_S and mine is not new.grows_S:
                    mine[:kept] = theirs[:kept]
            new.params[:kept] = old.params[:kept]
        return new

    def __len__(self) -> int:
        return len(self.ids_S)

    def seat(self, row: int, sequence: Sequence) -> None:
        """A sequence whose prompt has been read sits down in a row."""
        params = self.params[row] = sequence.request.params
        self.past_S[row : row + 1] = on_device([sequence.read], torch.int32, self.past_S.device)
        self.settings.put(row, **chosen_by(params), seed=sequence.seed, drawn=sequence.n_new)
        if params.repetition_penalty != 1:
            self._see()[row] = False
            self._see()[row, on_device(sequence.ids, torch.long, self.ids_S.device)] = True

    def occupy(self, n: int) -> None:
        """The first ``n`` rows decode from now on, the others work on the spare slot."""
        if n != self.occupied:
            self.occupied = n
            slots = [row if row < n else self.spare for row in range(len(self))]
            self.slots_S.copy_(on_device(slots, torch.int32, self.slots_S.device))
            self.grows_S.copy_(on_device([int(row < n) for row in range(len(self))], torch.int32, self.grows_S.device))

    def move(self, source: int, target: int) -> None:
        """Put one row in another's place."""
        for tensor in self._tensors():
            if tensor is not self.slots_S and tensor is not self.grows_S:
                tensor[target] = tensor[source]
        self.params[target] = self.params[source]

    def kind(self, n: int) -> str:
        """What it takes to choose a token for the first ``n`` rows."""
        return way([p for p in self.params[:n] if p is not None])

    def choose(self, start: int, stop: int, logits_SV: Tensor, kind: str | None = None) -> None:
        """Choose the next token of rows [start, stop) from their logits."""
        kind, ids_S = kind or self.kind(stop), self.ids_S[start:stop]
        if kind == PLAIN:
            greedy(logits_SV, ids_S)
        else:
            sample(logits_SV, self.settings, ids_S, self._see() if kind == PENALISED else None, self._all_S[start:stop])

    def view(self, n: int) -> "RowsView":
        return RowsView(self, n)

    @contextmanager
    def vacant(self) -> Iterator[None]:
        """Inside, every row works on the spare slot; afterwards all is as it was."""
        before = [(tensor, tensor.clone()) for tensor in self._tensors()]
        self.slots_S.fill_(self.spare)
        self.grows_S.zero_()
        self.past_S.zero_()
        yield
        for tensor, was in before:
            tensor.copy_(was)

    def _see(self) -> Tensor:
        if self.seen_SV is None:
            self.seen_SV = torch.zeros(len(self), self.vocab_size, dtype=torch.bool, device=self.ids_S.device)
        return self.seen_SV

    def _tensors(self) -> list[Tensor]:
        found = [self.ids_S, self.past_S, self.slots_S, self.grows_S, self.settings.words_n5]
        return found if self.seen_SV is None else [*found, self.seen_SV]


def way(params: list[SamplingParams]) -> str:
    """What it takes to choose tokens for sequences that ask for these."""
    if any(p.repetition_penalty != 1 for p in params):
        return PENALISED
    return PLAIN if all(p.greedy for p in params) else SAMPLED


def chosen_by(params: SamplingParams) -> dict[str, float]:
    """The numbers of ``params`` that a choice depends on."""
    return {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}


class RowsView:
    """The first ``n`` rows as the memory of a pass (see ``StateLike``): one new token each, ages known to the device alone."""

    def __init__(self, rows: Rows, n: int):
        self._rows, self._n = rows, n
        self._slots_S = rows.slots_S[:n]
        self._pages_SM: Tensor | None = None
        self._past_S: Tensor | None = None

    def __len__(self) -> int:
        return self._n

    def open(self, embedding_VD: Tensor) -> Tensor:
        """Begin a step: the rows' newest tokens, embedded (S, D). One that could not be chosen (-1, logits that are no numbers)
        counts as 0 here. Ages are those of the next step from here on, on the device; this one works with a copy."""
        rows, n = self._rows, self._n
        kv = rows.state.kv
        table_nM = kv.entry(0, 0, len(rows))[2] if kv.stores else rows.slots_S[:, None][:, :0]
        how = rows.ids_S[:n], embedding_VD, table_nM, self._slots_S, rows.past_S[:n], rows.grows_S[:n]
        x_SD, self._pages_SM, self._past_S = opening(*how)
        return x_SD

    def begin(self, packing: Packing) -> None:
        assert self._past_S is not None, "open comes first"

    def positions(self, packing: Packing) -> Tensor:
        assert self._past_S is not None, "open comes first"
        return self._past_S.long()

    def layer(self, i: int) -> Memory:
        state = self._rows.state
        return Memory(state.windows[i], state.ssm[i], self._slots_S, early=True)

    def cache(self, call: int) -> KVCache:
        assert self._pages_SM is not None and self._past_S is not None, "open comes first"
        keys, values, _ = self._rows.state.kv.entry(call, 0, len(self._rows))
        return KVCache(keys, values, self._pages_SM, self._past_S, None, early=True)

    def advance(self, packing: Packing) -> None:
        """Ages have grown in ``open``."""
