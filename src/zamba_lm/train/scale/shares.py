"""What a rank holds of a parameter that is split over ranks (tensor parallel), by places in the whole one.

FSDP2 may have cut the share once more, by rows, over devices that hold the same one. Norms and checkpoints ask what of the whole
parameter lies here, and want every number of it once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from zamba_lm.model.names import parameter_shapes
from zamba_lm.model.zamba import Zamba
from zamba_lm.parallel.group import Ranks
from zamba_lm.parallel.shard import Shard, place


class Run(NamedTuple):
    """A stretch of the whole parameter; several ranks may hold the same one."""

    start: int
    stop: int
    first: bool  # no rank before me holds it
    alone: bool  # no other rank does


class Chunk(NamedTuple):
    """A block of numbers that lie here, and where they stand in the whole parameter."""

    offsets: tuple[int, ...]
    numbers: Tensor  # a view
    run: Run


@dataclass(frozen=True)
class Share:
    """Runs of a parameter of ``size`` along ``dim``, in the order in which they lie in the share."""

    size: tuple[int, ...]
    dim: int
    runs: tuple[Run, ...]
    ranks: Ranks

    @classmethod
    def of(cls, name: str, size: tuple[int, ...], shard: Shard, ranks: Ranks) -> "Share":
        dim, mine = _ranges(name, size, shard)
        every = [_ranges(name, size, Shard(shard.whole, rank, shard.size))[1] for rank in range(shard.size)]
        holders = [[rank for rank, theirs in enumerate(every) if run in theirs] for run in mine]
        runs = (Run(*run, first=who[0] == shard.rank, alone=len(who) == 1) for run, who in zip(mine, holders))
        return cls(size, dim, tuple(runs), ranks)

    @property
    def whole(self) -> bool:
        """Whether every rank holds all of it."""
        run = self.runs[0]
        return run.stop - run.start == self.size[self.dim]

    def chunks(self, tensor: Tensor) -> Iterator[Chunk]:
        """Of a tensor that is laid out as the share is, or of a piece of it, what lies here."""
        offsets, numbers = _box(tensor)
        low, high, at = offsets[self.dim], offsets[self.dim] + numbers.shape[self.dim], 0
        for run in self.runs:
            begin, end = max(at, low), min(at + run.stop - run.start, high)
            if begin < end and numbers.numel():
                where = (*offsets[: self.dim], run.start + begin - at, *offsets[self.dim + 1 :])
                yield Chunk(where, numbers.narrow(self.dim, begin - low, end - begin), run)
            at += run.stop - run.start

    def gathered(self, name: str, tensor: Tensor, shard: Shard) -> Tensor:
        """The whole parameter, from everybody's ``tensor`` (no pieces); every rank has to ask."""
        if self.whole:
            return tensor
        whole = tensor.new_empty(self.size)
        for rank, theirs in enumerate(self.ranks.gather(tensor)):
            ranges = _ranges(name, self.size, Shard(shard.whole, rank, shard.size))[1]
            parts = theirs.split([stop - start for start, stop in ranges], self.dim)
            for (start, stop), part in zip(ranges, parts):
                whole.narrow(self.dim, start, stop - start).copy_(part)
        return whole


def _ranges(name: str, size: tuple[int, ...], shard: Shard) -> tuple[int, tuple[tuple[int, int], ...]]:
    return place(name, shard) or (0, ((0, size[0]),))


def _box(tensor: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Where what lies here begins in the share, and the numbers."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.dim(), tensor.detach()
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offsets), tensor.detach().to_local()


def mark(zamba: Zamba, shard: Shard, ranks: Ranks) -> None:
    """Note on every parameter of a split model which share of the whole one it is."""
    shapes = parameter_shapes(shard.whole)
    for name, p in zamba.named_parameters():
        p.share = Share.of(name, tuple(shapes[name]), shard, ranks)  # type: ignore[attr-defined]


def share_of(p: Tensor) -> Share | None:
    """None where the model is not split."""
    return getattr(p, "share", None)
