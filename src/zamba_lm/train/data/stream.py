"""Rows for a trainer: each rank its own, and a place that belongs to what was consumed, not to what was fetched ahead."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch.utils.data import IterableDataset, get_worker_info

from zamba_lm.errors import ZambaError
from zamba_lm.train.data.mixture import Mixture, Position
from zamba_lm.train.data.rows import Item


class Stream(IterableDataset):
    """A mixture as an endless data set: of every ``world`` rows in a line, rank ``rank`` gets its one.

    For a plain ``DataLoader(stream, batch_size=b, collate_fn=collate)``; nothing else may divide it among ranks again (accelerate
    would). Step after step all ranks together consume the stream's rows in their order, whatever their number, so that a run can
    go on with another number of them. With workers there would be several streams: ZambaError.
    """

    def __init__(self, mixture: Mixture, *, rank: int = 0, world: int = 1):
        if not 0 <= rank < world:
            raise ZambaError(f"rank {rank} of {world}: ranks count from 0")
        self.mixture, self.rank, self.world = mixture, rank, world
        self._base: Position = copy.deepcopy(mixture.position)

    def __iter__(self) -> Iterator[Item]:
        if get_worker_info() is not None:
            raise ZambaError("num_workers must be 0: a batch takes milliseconds here, and workers would each begin anew")
        while True:
            mine = [self.mixture.advance() for _ in range(self.world)][self.rank]
            yield self.mixture.item(*mine)

    @property
    def rows(self) -> int:
        """Rows that all ranks together have been given so far, this run or an earlier one."""
        return self.mixture.rows

    def state_dict(self, rows: int | None = None) -> dict:
        """The place after ``rows`` rows of all ranks since the very beginning; None: after all that were given out.

        A trainer passes what it has consumed, since loaders fetch ahead. Places before that of an earlier call are forgotten.
        """
        rows = self.rows if rows is None else rows
        if not self._base.rows <= rows <= self.rows:
            raise ZambaError(f"asked for the place after {rows} rows; known are those from {self._base.rows} to {self.rows}")
        while self._base.rows < rows:
            self.mixture.advance(self._base)
        return self.mixture.state_dict(self._base)

    def load_state_dict(self, state: Mapping) -> None:
        """Go on from there, with this number of ranks. Raises ZambaError as ``Mixture.load_state_dict`` does."""
        self.mixture.load_state_dict(state)
        self._base = copy.deepcopy(self.mixture.position)


def collate(items: Sequence[Item]) -> Item:
    """Rows as a batch: ``input_ids`` and ``labels`` (B, row) int64, ``lengths`` of all sequences, row by row."""
    tensors = {key: torch.stack([item[key] for item in items]) for key in ("input_ids", "labels")}
    return {**tensors, "lengths": tuple(chain.from_iterable(item["lengths"] for item in items))}
