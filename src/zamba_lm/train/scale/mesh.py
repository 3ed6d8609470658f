"""Which devices hold a copy of the model together."""

from typing import TYPE_CHECKING, Any

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes.base import Scale

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

SHARD = ("none", "fsdp")
KEEP = ("none", "blocks", "all")


def check(scale: Scale) -> None:
    """ZambaError for settings that no number of devices can have."""
    if scale.shard not in SHARD:
        beside = "; tensor parallel is there for inference alone (zamba_lm.parallel)" if scale.shard.startswith("t") else ""
        raise ZambaError(f"scale.shard is {scale.shard!r}, expected one of {', '.join(SHARD)}{beside}")
    if scale.keep not in KEEP:
        raise ZambaError(f"scale.keep is {scale.keep!r}, expected one of {', '.join(KEEP)}")
    if scale.replicas < 1:
        raise ZambaError(f"scale.replicas is {scale.replicas}, expected at least 1")


def refuse(config: Any) -> None:
    """ZambaError where a recipe cannot spread its model and is asked to."""
    scale = config.scale
    check(scale)
    if scale.shard != "none":
        raise ZambaError(
            f"scale.shard={scale.shard} is there for pretrain, anneal, long-context and sft; {config.name} has the whole model "
            "on each device: leave scale.shard=none"
        )


def pieces_of(scale: Scale, processes: int) -> int:
    """Devices that hold one copy of the model together. ZambaError when the copies do not divide the devices."""
    if scale.shard == "none" or processes == 1:
        return 1
    if processes % scale.replicas or scale.replicas == processes:
        raise ZambaError(
            f"scale.replicas is {scale.replicas} and there are {processes} processes: each copy needs the same number of them, "
            "two at least; for whole models set scale.shard=none"
        )
    return processes // scale.replicas


def mesh_of(scale: Scale, device: "torch.device") -> "DeviceMesh | None":
    """The processes in rows, a copy of the model each; None where one process is alone."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    pieces = pieces_of(scale, dist.get_world_size())
    if scale.replicas == 1:
        return init_device_mesh(device.type, (pieces,), mesh_dim_names=("pieces",))
    return init_device_mesh(device.type, (scale.replicas, pieces), mesh_dim_names=("copies", "pieces"))
