"""Checkpoints in pieces (torch.distributed.checkpoint): every process writes what it holds, any number of processes reads it.

The folder ``pieces`` of a checkpoint holds weights ("model.NAME") and the optimizer's state ("optim.KEY.NAME") under the names of
the model's parameters, independent of how they were spread. ``.metadata`` in it is written last, when all pieces are there.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.dtypes import dtype_name
from zamba_lm.model.load import read_config
from zamba_lm.model.weights import Parameter, write_checkpoint
from zamba_lm.model.zamba import Zamba
from zamba_lm.train.optim import Optimizer
from zamba_lm.train.scale.planners import Reading, Writing
from zamba_lm.train.scale.shares import Share, share_of
from zamba_lm.train.trainer.checkpoints import PIECES, SAVING, disk_trouble
from zamba_lm.train.trainer.restore import check_shape

# what it says when one process reads or writes for itself, as intended
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


def in_pieces(checkpoint: Path) -> bool:
    """Whether a checkpoint is one of these."""
    return (checkpoint / PIECES).is_dir()


def weights(zamba: Zamba) -> dict[str, Tensor]:
    """A model's parameters as they lie in a checkpoint."""
    return {f"model.{name}": p.detach() for name, p in zamba.named_parameters()}


def moments(zamba: Zamba, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state, begun where it is not there yet."""
    names = {p: name for name, p in zamba.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            found |= {f"optim.{key}.{names[p]}": one for key, one in optimizer.start(group, p).items()}
    return found


def shares(zamba: Zamba) -> dict[str, Share]:
    """Which share of the whole parameter each of a model's is, by its name; none where layers are not split over ranks."""
    return {name: share for name, p in zamba.named_parameters() if (share := share_of(p))}


def whole_config(zamba: Zamba) -> ZambaConfig:
    """The shape of a model of which this rank may hold a share."""
    return getattr(zamba.config, "whole", zamba.config)


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Settings of the optimizer's groups, which learning rate among them."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


# reading


def read_weights(zamba: Zamba, checkpoint: Path, *, group: Any = None, alone: bool = False) -> None:
    """Fill the parameters of a model, spread or not. ``alone``: each process reads for itself; else all of ``group`` do together.

    ZambaError for a checkpoint of another shape or a damaged one.
    """
    check_shape(read_config(checkpoint), whole_config(zamba), checkpoint)
    _read(weights(zamba), shares(zamba), checkpoint, group, alone)


def read_moments(zamba: Zamba, optimizer: Optimizer, checkpoint: Path, *, group: Any = None) -> None:
    """Fill an optimizer's state."""
    _read(moments(zamba, optimizer), shares(zamba), checkpoint, group, alone=False)


@torch.no_grad()
def _read(tensors: dict[str, Tensor], shares: dict[str, Share], checkpoint: Path, group: Any, alone: bool) -> None:
    folder = checkpoint / PIECES
    if not (folder / ".metadata").is_file():
        raise ZambaError(f"{folder} lacks .metadata: the checkpoint is not complete; move {checkpoint} away")
    try:
        dcp.load(tensors, checkpoint_id=folder, planner=Reading(shares), process_group=group, no_dist=alone)
    except (Exception, dcp.CheckpointException) as error:  # which is no Exception
        raise ZambaError(f"{folder} is damaged or of another run: {_reason(error)}; move {checkpoint} away") from error


def _reason(error: BaseException) -> str:
    inner = next(iter(getattr(error, "failures", {}).values()), (error,))[0]
    return str(inner).splitlines()[0] if str(inner) else type(inner).__name__


# writing


def write_whole(config: ZambaConfig, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """A model of gathered tensors, by our names, in the style transformers reads."""
    parameters = {name: Parameter(one.dtype, partial(_itself, one)) for name, one in tensors.items()}
    write_checkpoint(folder, replace(config, dtype=dtype_name(dtype)), parameters, style="hf")


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class Saving:
    """Pieces on their way to the disk. They are copied when this is made; training may go on at once.

    ``then`` is called in one of the process's threads when everything of every process is on the disk.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        folder: Path,
        group: Any,
        then: Callable[[], ZambaError | None],
        shares: dict[str, Share] | None = None,
    ):
        self._folder, self._then, self._done = folder, then, Event()
        self._failed: ZambaError | None = None
        writer = dcp.FileSystemWriter(folder / PIECES)
        future: Any = dcp.async_save(tensors, storage_writer=writer, planner=Writing(shares or {}), process_group=group)
        future.add_done_callback(self._finish)

    def _finish(self, future: Future) -> None:
        try:
            with disk_trouble(self._folder.name.removeprefix(SAVING), self._folder):
                _result(future)
            self._failed = self._then()
        except ZambaError as error:
            self._failed = error
        except BaseException as error:
            self._failed = ZambaError(f"cannot save {self._folder.name.removeprefix(SAVING)}: {_reason(error)}")
        finally:
            self._done.set()

    def wait(self) -> ZambaError | None:
        """What went wrong in this process, once it is over."""
        self._done.wait()
        return self._failed


def _result(future: Future) -> None:
    """The error that a process met first, as itself."""
    try:
        future.result()
    except dcp.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def quiet_group() -> Any:
    """A group of all processes for what goes on beside training; None where there is one process alone."""
    return dist.new_group(backend="gloo") if dist.is_initialized() else None
