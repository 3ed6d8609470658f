"""The processes that share a model: who I am among them, the one thing they do together, which is to show what they have, and how
they part."""

import atexit
import gc
from dataclasses import dataclass, field
from datetime import timedelta
from os import environ
from typing import Any, Protocol
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from zamba_lm.errors import ZambaError

gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name since torch 2.13, and before
PATIENCE = timedelta(minutes=5)  # a rank that waits this long for another gives up, with an error
TORCHRUN = "torchrun --nproc-per-node 2 SCRIPT.py (or -m zamba_lm generate --parallel ...)"


@dataclass(frozen=True)
class Ranks:
    """``size`` processes of a torch.distributed group, of which this is number ``rank``."""

    rank: int
    size: int
    group: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, group: Any = None) -> "Ranks":
        """The ranks of a group, by default of all processes. ZambaError when there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ZambaError(
                f"there is no process group yet: call zamba_lm.parallel.join() first, in processes that {TORCHRUN!r} starts"
            )
        if dist.get_rank(group) < 0:
            raise ZambaError("this process does not belong to the group over which the model is to be split")
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    def check(self, device: torch.device) -> None:
        """ZambaError when tensors of this device cannot be sent."""
        if device.type == "cpu" and "nccl" in str(dist.get_backend(self.group)):
            raise ZambaError("the ranks talk through NCCL, which knows GPUs only, and the model is on the CPU; make a gloo group")

    def gather(self, x: Tensor) -> Tensor:
        """What every rank has, (size, *x.shape), in the order of ranks; the same bits on each of them."""
        x = x.contiguous()
        if self.size == 1:
            return x[None]
        found = torch.empty(self.size, *x.shape, dtype=x.dtype, device=x.device)
        gather_into(found.view(-1), x.view(-1), group=self.group)
        return found

    def agree(self, device: torch.device) -> None:
        """Give torch's own generator the same seed on every rank: requests without a seed draw theirs from it."""
        seed = torch.randint(2**63 - 1, (1,)).to(device)
        torch.manual_seed(int(self.gather(seed)[0]))


def join(device: str = "auto") -> tuple[Ranks, torch.device]:
    """Meet the other processes that torchrun started; my place among them, and the device that is mine.

    ``device``: "cuda" (NCCL, one GPU a process), "cpu" (gloo), or "auto" for the first that there is. Where a group has been made
    already, it is used. ZambaError where torchrun is missing, and where there are fewer GPUs than processes.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_available():
        raise ZambaError(f"device {device!r} asks for GPUs, and torch {torch.__version__} finds none; use cpu")
    if not dist.is_initialized() and not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        raise ZambaError(f"a model over several GPUs runs in several processes: start it with {TORCHRUN!r}")
    here = torch.device(kind, _local_rank()) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(here)
    if not dist.is_initialized():
        backend, bound = ("nccl", here) if kind == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=PATIENCE, device_id=bound)
    return Ranks.of(), here


def _local_rank() -> int:
    """Which GPU of this machine is mine."""
    local, there = int(environ.get("LOCAL_RANK", dist.get_rank() if dist.is_initialized() else 0)), torch.cuda.device_count()
    if local >= there:
        raise ZambaError(
            f"process {local} of this machine has no GPU of its own, there are {there}; start {there} processes at most"
        )
    return local


class HoldsGraphs(Protocol):
    """Whoever captures exchanges; ``reset`` drops all graphs."""

    def reset(self) -> None: ...


_holders: "WeakSet[HoldsGraphs]" = WeakSet()


def holds_graphs(holder: HoldsGraphs) -> None:
    """Have ``holder`` drop its graphs before this process parts from the others: NCCL waits for every graph that exchanges."""
    if not _holders:
        atexit.register(_let_go)
    _holders.add(holder)


def leave() -> None:
    """Part from the other processes, at the end of what they do together: every rank calls this. Models that are split answer
    nothing any more."""
    _let_go()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _let_go() -> None:
    """No graph is left. At the end of a process that has not called ``leave``, too: torch ends NCCL then."""
    for holder in list(_holders):
        holder.reset()
    _holders.clear()
    gc.collect()
