"""Ranks that are threads of one process: quick to start, and as many as one likes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

import torch

from zamba_lm.parallel.group import Ranks

PATIENCE = 60


@dataclass(frozen=True)
class Thread(Ranks):
    table: list = field(default_factory=list, repr=False)
    barrier: Barrier | None = field(default=None, repr=False)

    def check(self, device):
        pass

    def gather(self, x):
        self.table[self.rank] = x.clone()
        self.barrier.wait(PATIENCE)
        found = torch.stack(self.table)
        self.barrier.wait(PATIENCE)
        return found

    def agree(self, device):
        pass


def together(size, work):
    """What ``work(ranks)`` returns on each of ``size`` ranks."""
    table, barrier = [None] * size, Barrier(size)

    def one(rank):
        try:
            return work(Thread(rank, size, None, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    broken = [f.exception() for f in futures if f.exception() is not None]
    for error in sorted(broken, key=lambda error: "Barrier" in type(error).__name__):
        raise error
    return [f.result() for f in futures]
