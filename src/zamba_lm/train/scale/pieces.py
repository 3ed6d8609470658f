"""Tensors of which every device holds a piece (DTensor, as FSDP2 makes them): the piece, norms and work on the whole."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from zamba_lm.train.scale.shares import Share


def local(tensor: Tensor) -> Tensor:
    """What this device holds: a tensor's piece, or all of it. Writing to it writes to the tensor."""
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it on this device. Every device has to ask."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def norm(tensors: Sequence[Tensor], shares: Sequence["Share | None"] = ()) -> Tensor:
    """The 2-norm of all tensors together, a float32 scalar that is the same on every device. ``shares``: what of the whole ones
    they are, where ranks split them."""
    held = [_once(one, share) for one, share in zip(tensors, shares or [None] * len(tensors))]
    spread, split = next(filter(_is_spread, tensors), None), next(filter(None, shares), None)
    pieces = [part for one, mine in zip(tensors, held) if _is_spread(one) for part in mine]
    others = [part for one, mine in zip(tensors, held) if not _is_spread(one) for part in mine]
    if spread is None and split is None:
        return _norm(others)
    total = _norm(pieces).square() if pieces else torch.zeros((), device=tensors[0].device)
    if spread is not None:
        dist.all_reduce(total, group=group_of(cast(DTensor, spread)))
    total = total + _norm(others).square() if others else total
    if split is not None:
        dist.all_reduce(total, group=split.ranks.group)
    return total.sqrt()


def _is_spread(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def _once(tensor: Tensor, share: "Share | None") -> list[Tensor]:
    """What lies here; of what several ranks hold, on the first of them alone."""
    return [local(tensor)] if share is None else [chunk.numbers for chunk in share.chunks(tensor) if chunk.run.first]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([one.float() for one in torch._foreach_norm(list(tensors))]))


def group_of(tensor: DTensor) -> Any:
    """The devices that hold one copy of the tensor together."""
    dim = next(at for at, placement in enumerate(tensor.placements) if placement.is_shard())
    return tensor.device_mesh.get_group(dim)


def by_matrix(pieces_NRI: Tensor, like: DTensor, work: Callable[[Tensor], Tensor]) -> Tensor:
    """``work`` on whole matrices (n, O, I), of N matrices ``like`` one of which every device holds rows; returns my rows again.

    Every device does the work for its share of the matrices: rows go there and back, all to all.
    """
    group, (N, R, I) = group_of(like), pieces_NRI.shape  # noqa: E741
    size = dist.get_world_size(group)
    n, rows = -(-N // size), -(-like.shape[0] // size)
    sent = pieces_NRI.new_zeros(size * n, rows, I)
    sent[:N, :R] = pieces_NRI
    matrices_nOI = _exchanged(sent, group).view(size, n, rows, I).transpose(0, 1).reshape(n, size * rows, I)
    done = work(matrices_nOI[:, : like.shape[0]].contiguous())
    back = done.new_zeros(n, size * rows, I)
    back[:, : like.shape[0]] = done
    mine = _exchanged(back.view(n, size, rows, I).transpose(0, 1).reshape(size * n, rows, I), group)
    return mine[:N, :R]


def _exchanged(sent: Tensor, group: Any) -> Tensor:
    """The first of equal parts goes to the first device, and so on; what the devices sent me, in their order."""
    sent = sent.contiguous()
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent, group=group)
    return got
