"""A set as rows of one size: the same row for the same seed, epoch and index, on every machine."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import torch

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.train.data.packing import Cut, Whole, shuffled
from zamba_lm.train.data.shards import Shards

PACKING = {"cut": Cut, "whole": Whole}
LONGER = ("split", "turn", "drop")
IGNORED = -100  # the label of what is no target, as transformers has it
PADDING = 0  # the id that fills a row; nobody learns it

Item = dict[str, torch.Tensor | tuple[int, ...]]


class Rows:
    """Documents of a set packed into rows of ``row`` tokens, in another order every epoch.

    pack: "cut" (end to end; a document that does not fit goes on in the next row as a sequence of its own; what texts get) or
    "whole" (best fit; what chats get, which lose their question when they are cut).
    longer: what becomes of a document longer than a row when packing whole: "split" into rows (texts), cut after the last
    "turn" of the assistant that fits (chats; cut within the answer where not even the first one fits), or "drop".
    ``cut``, ``dropped`` and ``lost`` count such documents and the tokens that are never seen.
    """

    def __init__(
        self,
        shards: Shards,
        row: int = 2048,
        *,
        seed: int = 0,
        pack: str | None = None,
        longer: str | None = None,
        shuffle: bool = True,
    ):
        if shards.kind == "pairs":
            raise ZambaError(f"{shards.folder} holds preference pairs, which are no rows: recipes dpo and lora-dpo take them")
        if row < 2:
            raise ZambaError(f"row is {row}, expected at least 2 tokens")
        text = shards.kind == "text"
        self.shards, self.row, self.seed, self.shuffle = shards, row, seed, shuffle
        self.pack = _one_of("pack", pack or ("cut" if text else "whole"), tuple(PACKING))
        self.longer = _one_of("longer", longer or ("split" if text else "turn"), LONGER)
        self.cut = self.dropped = self.lost = 0
        self._starts, self._lengths = self._pieces()
        if not len(self._starts):
            least = int(shards.lengths.min())
            raise ZambaError(
                f"no document of {shards.folder} fits into a row of {row} tokens; the shortest has {least}: take longer rows"
            )
        self._plans: dict[int, tuple[Cut | Whole, np.ndarray]] = {}
        self._counts: dict[int, int] = {}

    @property
    def fingerprint(self) -> str:
        """Changes when any row would be another one."""
        told = [self.shards.digest, self.row, self.seed, self.pack, self.longer, self.shuffle]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def count(self, epoch: int = 0) -> int:
        """Rows of an epoch; packing whole, that depends a little on the order."""
        if epoch not in self._counts:
            self._plan(epoch)
        return self._counts[epoch]

    def waste(self, epoch: int = 0) -> float:
        """Share of an epoch's tokens that is padding."""
        return 1 - int(self._lengths.sum()) / (self.count(epoch) * self.row)

    def item(self, epoch: int, index: int) -> Item:
        """One row: ``input_ids`` and ``labels`` (row,) int64, ``lengths`` of its sequences, which sum to ``row``.

        Labels stand at their own token (the model shifts them); -100 where nothing is learnt: at what the user says, at the
        first token of every sequence, and in the padding, which is a sequence of its own at the end.
        """
        plan, order = self._plan(epoch)
        if not 0 <= index < plan.count:
            raise ZambaError(f"row {index} of epoch {epoch}: there are {plan.count}")
        entries, firsts, lengths, at = np.zeros(self.row, self.shards.dtype), [], [], 0
        for start, length in plan.segments(int(order[index])):
            entries[at : at + length] = self.shards.read(start, length)
            firsts.append(at)
            lengths.append(length)
            at += length
        ids, labels = split(entries, self.shards.mark)
        labels[firsts] = IGNORED
        if at < self.row:
            ids[at:], lengths = PADDING, [*lengths, self.row - at]
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), "lengths": tuple(lengths)}

    def epoch(self, epoch: int = 0) -> Iterator[Item]:
        """The rows of one epoch, once."""
        return (self.item(epoch, index) for index in range(self.count(epoch)))

    def _plan(self, epoch: int) -> tuple[Cut | Whole, np.ndarray]:
        if epoch not in self._plans:
            n = len(self._starts)
            order = shuffled(n, self.seed, epoch, "documents") if self.shuffle else np.arange(n)
            plan = PACKING[self.pack](self._starts[order], self._lengths[order], self.row)
            rows = shuffled(plan.count, self.seed, epoch, "rows") if self.shuffle else np.arange(plan.count)
            self._plans = {epoch: (plan, rows)}  # one epoch at a time is held
            self._counts[epoch] = plan.count
        return self._plans[epoch]

    # documents longer than a row

    def _pieces(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and lengths of what is packed: documents, or what is made of those longer than a row."""
        starts, lengths = self.shards.starts[:-1], self.shards.lengths
        fits = lengths <= self.row
        if self.pack == "cut" or fits.all():
            return starts, lengths
        made = [piece for index in np.flatnonzero(~fits).tolist() for piece in self._shorter(index)]
        more = np.array(made, np.int64).reshape(-1, 2)
        return np.concatenate([starts[fits], more[:, 0]]), np.concatenate([lengths[fits], more[:, 1]])

    def _shorter(self, index: int) -> list[tuple[int, int]]:
        start, length = int(self.shards.starts[index]), int(self.shards.lengths[index])
        if self.longer == "split":
            self.cut += 1
            return [(start + at, min(self.row, length - at)) for at in range(0, length, self.row)]
        kept = self._turns(start) if self.longer == "turn" else 0
        self.cut += bool(kept)
        self.dropped += not kept
        self.lost += length - kept
        return [(start, kept)] if kept else []

    def _turns(self, start: int) -> int:
        """Tokens of a row's length from ``start`` through the end of an assistant's turn; 0 where none begins in it."""
        targets = self.shards.read(start, self.row + 1) >= self.shards.mark
        ends = np.flatnonzero(targets[:-1] & ~targets[1:])
        if len(ends):
            return int(ends[-1]) + 1
        return self.row if targets[1:-1].any() else 0


def split(entries: np.ndarray, mark: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels, int64, of entries; -100 where the mark is missing."""
    ids = (entries & np.asarray(mark - 1, entries.dtype)).astype(np.int64)
    return ids, np.where(entries >= mark, ids, IGNORED)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ZambaError(f"{name} is {value!r}{nearest(str(value), known)}, expected one of {', '.join(known)}")
    return value
