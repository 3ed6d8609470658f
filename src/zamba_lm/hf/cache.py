"""Our ``State`` behind the face that transformers' ``generate`` expects of a cache.

A recurrent state cannot be shortened as keys and values can. So this cache remembers what it has read, and while past is being
recorded (assisted generation asks for that) it keeps one copy of the states from not long ago: going back restores the copy, or
begins anew, and the columns from there on are read again together with the next ones. The result is that of never having read
what was taken back.
"""

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache

from zamba_lm.errors import ZambaError
from zamba_lm.hf.columns import Columns, Part
from zamba_lm.model.state import Snapshot, State
from zamba_lm.model.zamba import Zamba

LEAST_READ = 32  # columns from which a new copy of the states is worth a pass of its own


class ZambaCache(Cache):
    """What some rows have read, in columns (padding counts): ``get_seq_length`` of them. Empty until the first pass."""

    def __init__(self):
        super().__init__(layers=[])
        self.state: State | None = None
        self.recording = False
        self._columns = Columns()
        self._read = 0  # columns that the state has read: fewer than there are after going back
        self._copy: tuple[int, Snapshot] | None = None  # the states after so many columns

    def __repr__(self) -> str:
        return f"{type(self).__name__}({max(self.batch_size, 0)} rows of {len(self._columns)} columns)"

    def __len__(self) -> int:
        return 0 if self.state is None else self.state.spec.n_layers

    # what a pass does with it

    def take(self, zamba: Zamba, x: torch.Tensor, mask: torch.Tensor | None) -> Part:
        """Add new columns, ids (B, T) or embeddings (B, T, D); returns those to read: what was taken back before, then these."""
        if self.state is None:
            self.state = zamba.new_state(len(x))
        if len(self.state) != len(x):
            raise ZambaError(f"the cache holds {len(self.state)} rows and the input has {len(x)}; they must be equal")
        self._columns.append(x, mask)
        return self._columns.since(self._read, zamba.embedding)

    def untake(self, columns: int) -> None:
        """The last columns taken were not read: something was wrong with them."""
        self._columns.cut(len(self._columns) - columns)

    def certain(self, keep: int) -> int:
        """How many of the columns to read are worth reading first, to keep the states behind them; 0: none.

        ``keep``: so many of the last columns may be taken back, since somebody wants to see their results.
        """
        ahead = len(self._columns) - self._read - keep
        return ahead if self.recording and ahead >= LEAST_READ else 0

    def advance(self, columns: int, *, keep_states: bool = False) -> None:
        """Count columns as read, and keep the states behind them if asked."""
        self._read += columns
        if keep_states and self.state is not None:
            self._copy = self._read, self.state.snapshot()

    # what generate does with it

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return len(self._columns)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return len(self._columns) + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return len(self._columns) > 0

    def activate_past_recording(self) -> None:
        self.recording = True

    def is_recording_past(self, layer_idx: int = 0) -> bool:
        return self.recording

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last ``-tokens_to_remove`` columns. ZambaError for a positive number or more columns than there are."""
        left = len(self._columns) + tokens_to_remove
        if tokens_to_remove > 0 or left < 0:
            raise ZambaError(f"cannot crop {self} by {tokens_to_remove}, expected 0 to -{len(self._columns)}")
        if not tokens_to_remove:
            return
        self._columns.cut(left)
        if self._copy is not None and self._copy[0] > left:
            self._copy = None
        if self._read > left:
            self._go_back()

    def _go_back(self) -> None:
        """To the states that were kept, or to the beginning."""
        assert self.state is not None
        if self._copy is not None:
            self._read, snapshot = self._copy
            self.state.restore(snapshot)
        else:
            self._read = 0
            for slot in range(len(self.state)):
                self.state.reset(slot)

    def reset(self) -> None:
        self.crop(-len(self._columns))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices([row for row in range(self.batch_size) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor | Sequence[int]) -> None:
        rows = [int(row) for row in (indices.tolist() if isinstance(indices, torch.Tensor) else indices)]
        if self.state is None or rows == list(range(len(self.state))):
            return
        self.state = self.state.select(rows)
        self._columns.select(rows)
        if self._copy is not None:
            self._copy = self._copy[0], self._copy[1].select(rows)

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else len(self.state)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        return True
