"""Sums over the GPUs of one machine in a single kernel: each writes its summand into the others' memory, and reads theirs.

A decoding step sums a few kilobytes some seventy times. Through a collective that takes three launches, and most of the time goes
into waiting. Here every number travels beside a count of the exchange it belongs to, in one word of 64 bits: whoever finds the
right count has the number too, and nothing else needs to be agreed upon. Two copies of the inbox take turns, which is enough:
nobody gets two exchanges ahead, since each waits for the others' numbers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.ops.gpu import lazy, no_triton

ROWS = 64  # more go through a collective, which moves large blocks at twice the rate: half of a word is a count
BLOCK = 512  # numbers a program sends, and one word more for a mean square
SLOT = BLOCK + 16

direct_total = lazy("zamba_lm.parallel.triton_direct", "direct_total")


@dataclass(frozen=True)
class Direct:
    """Inboxes that all ranks can write into."""

    rank: int
    size: int
    width: int
    inbox: Tensor  # int64 (2, size, programs, SLOT), mine
    addresses: Tensor  # int64 (size,): where everybody's inbox lies in my address space
    counts: Tensor  # int32 (programs,): exchanges so far
    handle: Any  # keeps the mapping alive

    @classmethod
    def open(cls, rank: int, size: int, group: Any, width: int, device: torch.device) -> "Direct":
        """Make inboxes for rows of ``width`` and show them to the other ranks. ZambaError where GPUs cannot reach each other."""
        import torch.distributed as dist

        if reason := no_triton(device):
            raise ZambaError(f"GPUs cannot write to each other from {device}: {reason}")
        try:
            import torch.distributed._symmetric_memory as symmetric

            programs = ROWS * -(-width // BLOCK)
            inbox = symmetric.empty(2 * size * programs * SLOT, dtype=torch.int64, device=device)
            handle = symmetric.rendezvous(inbox, dist.group.WORLD if group is None else group)
            addresses = torch.tensor([int(p) for p in handle.buffer_ptrs], dtype=torch.int64, device=device)
        except Exception as error:
            raise ZambaError(f"GPUs cannot write into each other's memory here: {str(error)[:200]}") from error
        inbox.zero_()
        torch.cuda.synchronize(device)
        dist.barrier(group)
        counts = torch.zeros(programs, dtype=torch.int32, device=device)
        return cls(rank, size, width, inbox, addresses, counts, handle)

    def takes(self, part_TD: Tensor) -> bool:
        return len(part_TD) <= ROWS and part_TD.shape[1] == self.width

    def total(self, part_TD, residual_TD=None, *, y_TI=None, z_TI=None, span: int = 1, eps: float = 0.0):
        """residual + the sum of everybody's part, as ``total`` of what ``with_square`` made of them (y given) or of the parts."""
        return direct_total(self, part_TD, residual_TD, y_TI, z_TI, span, eps)
