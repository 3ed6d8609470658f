"""Which devices hold a copy of the model together, and which of them hold the same of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes.base import Scale

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    from zamba_lm.parallel.group import Ranks

SHARD = ("none", "fsdp")
KEEP = ("none", "blocks", "all")


def check(scale: Scale) -> None:
    """ZambaError for settings that no number of devices can have."""
    if scale.shard not in SHARD:
        beside = "; for tensor parallel set scale.tensor to a number of devices" if scale.shard.startswith("t") else ""
        raise ZambaError(f"scale.shard is {scale.shard!r}, expected one of {', '.join(SHARD)}{beside}")
    if scale.keep not in KEEP:
        raise ZambaError(f"scale.keep is {scale.keep!r}, expected one of {', '.join(KEEP)}")
    for name in ("replicas", "tensor"):
        if getattr(scale, name) < 1:
            raise ZambaError(f"scale.{name} is {getattr(scale, name)}, expected at least 1")


def refuse(config: Any, *, nf4: bool, layers: bool) -> None:
    """ZambaError where a recipe is asked for what it cannot: four-bit weights in pieces, to split ``layers``, or with Muon."""
    check(config.scale)
    if config.scale.tensor > 1 and config.optim.name == "muon":
        raise ZambaError("muon needs whole matrices, and scale.tensor cuts them: set optim.name=adamw, or scale.shard=fsdp")
    if nf4 and config.scale.shard != "none":
        raise ZambaError(
            f"four-bit weights lie whole on each device, and scale.shard is {config.scale.shard}: leave it none, adapters are "
            "averaged over the devices all the same"
        )
    if not layers and config.scale.tensor > 1:
        raise ZambaError(
            f"scale.tensor={config.scale.tensor} is there for pretrain, anneal, long-context and sft; {config.name} spreads its "
            "model with scale.shard=fsdp"
        )


def readers(scale: Scale, processes: int) -> int:
    """Groups of processes that read rows of their own. ZambaError where scale.tensor does not divide the processes."""
    if processes % scale.tensor:
        raise ZambaError(
            f"scale.tensor is {scale.tensor}, which does not divide the number of processes, {processes}: start a multiple of "
            f"{scale.tensor} (torchrun --nproc-per-node), or set scale.tensor=1"
        )
    return processes // scale.tensor


def pieces_of(scale: Scale, processes: int) -> int:
    """Devices over which FSDP spreads one copy of the model, or of a rank's share of it. ZambaError when the copies do not
    divide the devices."""
    count = readers(scale, processes)
    if scale.shard == "none" or count == 1:
        return 1
    if count % scale.replicas or scale.replicas == count:
        beside = " for each share of the layers" if scale.tensor > 1 else ""
        raise ZambaError(
            f"scale.replicas is {scale.replicas} and there are {count} processes{beside}: each copy needs the same number of "
            "them, two at least; for whole models set scale.shard=none"
        )
    return count // scale.replicas


@dataclass(frozen=True)
class Places:
    """This process among all. Processes that split layers between them are neighbours."""

    pieces: "DeviceMesh | None"  # over which FSDP2 spreads, copies first; None: it does not
    data: Any  # the group of those that hold what I hold or pieces of it, and read other rows; None: nobody else does
    count: int  # of them
    tensor: "Ranks | None"  # those with whom I split layers


def places_of(scale: Scale, device: "torch.device") -> Places | None:
    """None where one process is alone."""
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    from zamba_lm.parallel.group import Ranks

    world = dist.get_world_size()
    count, pieces = readers(scale, world), pieces_of(scale, world)
    spread = None
    if pieces > 1:
        names = ("copies", "pieces", "tensor")
        mesh = init_device_mesh(device.type, (count // pieces, pieces, scale.tensor), mesh_dim_names=names)
        spread = mesh["pieces"] if count == pieces else mesh["copies", "pieces"]
    both = init_device_mesh(device.type, (count, scale.tensor), mesh_dim_names=("data", "tensor"))
    tensor = Ranks.of(both.get_group("tensor")) if scale.tensor > 1 else None
    return Places(spread, both.get_group("data") if count > 1 else None, count, tensor)
