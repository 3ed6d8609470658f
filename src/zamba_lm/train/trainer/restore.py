"""Weights of a checkpoint back into a model that is being trained, into the tensors it has."""

from dataclasses import fields
from pathlib import Path

import torch
from torch import nn

from zamba_lm.errors import ZambaError
from zamba_lm.model.checkpoint import open_checkpoint
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.load import read_config
from zamba_lm.model.match import match
from zamba_lm.model.zamba import Zamba

FREE = ("dtype", "long_context", "rope_theta", "max_positions")  # what may differ between a checkpoint and the run


def restore_weights(model: nn.Module, folder: Path) -> bool:
    """Fill ``model``, a wrapper around a Zamba, from a checkpoint folder; False if it is something else (adapters around one).

    ZambaError names both shapes when they differ.
    """
    zamba = getattr(model, "zamba", None)
    if not isinstance(zamba, Zamba) or not (folder / "config.json").is_file():
        return False
    fill(zamba, folder)
    return True


@torch.no_grad()
def fill(zamba: Zamba, folder: Path) -> None:
    """Copy a checkpoint into the parameters of ``zamba``, which keep their places in memory, dtypes and devices."""
    check_shape(read_config(folder), zamba.config, folder)
    parameters = dict(zamba.named_parameters())
    for one in match(zamba.config, open_checkpoint(folder), folder):
        one.place(parameters[one.piece.target].data)


def check_shape(found: ZambaConfig, wanted: ZambaConfig, folder: Path) -> None:
    """ZambaError when the parameters of two configs do not fit each other."""
    names = [field.name for field in fields(ZambaConfig) if field.name not in FREE]
    differ = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    if differ:
        here, there = (", ".join(f"{name} {getattr(config, name)}" for name in differ) for config in (found, wanted))
        raise ZambaError(f"{folder} holds another shape than this run: {here} there, {there} here")
