"""What a pass over prompts reads, at addresses that do not change, so that the pass can be captured and replayed for others."""

from collections.abc import Sequence
from itertools import chain

import torch

from zamba_lm.model.batch import Batch
from zamba_lm.model.state import Memory, State
from zamba_lm.ops.attention import KVCache
from zamba_lm.ops.packing import Frame, Packing, overwrite

SEATS = (1, 16)  # sequences that a tray has room for
TOKENS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


WITH_A_PAST = 1024  # tokens up to which that goes for sequences that have been read in part


def tray_for(sequences: int, tokens: int, fresh: bool) -> tuple[int, int, bool] | None:
    """The smallest tray with room for so many: sequences, tokens, whether they are all fresh. None: more than that gains nothing,
    since reading takes the GPU longer than launching takes the host."""
    seats = next((n for n in SEATS if n >= sequences), None)
    room = next((n for n in TOKENS if n >= tokens and (fresh or n <= WITH_A_PAST)), None)
    return None if seats is None or room is None else (seats, room, fresh)


class Tray:
    """Ids of up to ``seats`` sequences that lie end to end, filled up with tokens that nobody reads, and where the memory of each
    is; for the model the state of a pass (see ``StateLike``).

    Kernels find lengths, ages and slots on the device (``Frame``). What is not filled is no sequence: it has no state to harm.
    ``fresh``: no sequence has a past, which attention likes to know.
    """

    def __init__(self, state: State, seats: int, tokens: int, fresh: bool = False):
        self.state, self.frame, device = state, Frame(seats, tokens), state.windows.device
        self.ids_T = torch.zeros(tokens, dtype=torch.long, device=device)
        self._places = torch.zeros(2, seats, dtype=torch.int32, device=device)
        self._slots_S, self._past_S = self._places
        self._past = (0,) * seats if fresh else None
        self._table: torch.Tensor | None = None

    @property
    def batch(self) -> Batch:
        return Batch(self.ids_T, self.frame)

    def fill(self, ids: Sequence[Sequence[int]], first: int) -> None:
        """Lay out the next ids of the sequences in slots ``first`` and following, whose memory has room for them."""
        slots, state, seats = range(first, first + len(ids)), self.state, len(self.frame)
        self.frame.fill([len(one) for one in ids])
        flat = list(chain.from_iterable(ids))
        overwrite(self.ids_T[: len(flat)], flat)
        nobody = [0] * (seats - len(ids))
        overwrite(self._places.view(-1), [*slots, *nobody, *(state.ages[slot] for slot in slots), *nobody])

    # what a pass asks for (see StateLike)

    def __len__(self) -> int:
        return len(self.frame)

    def begin(self, packing: Packing) -> None:
        kv = self.state.kv
        if kv.stores:
            self._table = kv.entry(0, 0, len(self.state))[2].index_select(0, self._slots_S)

    def positions(self, packing: Packing) -> torch.Tensor:
        """Worked out on the device, from starts and ages."""
        starts, token = packing.cu_seqlens(self.ids_T.device), torch.arange(len(self.ids_T), device=self.ids_T.device)
        sequence = torch.searchsorted(starts[1:], token, right=True).clamp_max(len(packing) - 1)
        return token - starts[sequence] + self._past_S[sequence]

    def layer(self, i: int) -> Memory:
        return Memory(self.state.windows[i], self.state.ssm[i], self._slots_S)

    def cache(self, call: int) -> KVCache:
        assert self._table is not None, "begin comes first"
        keys, values, _ = self.state.kv.entry(call, 0, len(self.state))
        return KVCache(keys, values, self._table, self._past_S, self._past)

    def advance(self, packing: Packing) -> None:
        """The host counts: it knows who was fed what."""
