"""A model by name: find the folder, read the config, allocate on the device, fill."""

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.hub import resolve
from zamba_lm.model.checkpoint import read_json
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.dtypes import as_dtype
from zamba_lm.model.weights import load_weights, stored_dtype
from zamba_lm.model.zamba import Zamba
from zamba_lm.ops.gpu import wake


def load_model(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> Zamba:
    """A Zamba with its weights, ready to run, its parameters without gradients.

    ``name_or_path``: whatever ``hub.resolve`` takes. ``device`` "auto": the first GPU if there is one. ``dtype`` "auto": what
    the config says, otherwise what the file holds. ``overrides``: config fields to replace, such as ``{"max_positions":
    8192}``. Raises ZambaError for everything a user can mend: an unknown name, a config or weights that do not fit, a device
    that is not there or too small.
    """
    wake(target := as_device(device))
    folder = resolve(name_or_path, revision)
    config = override(read_config(folder), overrides or {})
    wanted = auto_dtype(folder, config) if dtype == "auto" else as_dtype(dtype)
    try:
        model = Zamba(config, device=target, dtype=wanted)
    except torch.OutOfMemoryError as error:
        need = config.weight_bytes(wanted) / 2**30
        raise ZambaError(f"{name_or_path} needs {need:.1f} GiB in {wanted}, more than {target} has free") from error
    load_weights(model, folder)
    return model.requires_grad_(False).eval()


def read_config(folder: Path) -> ZambaConfig:
    """The config of a checkpoint folder. ZambaError names the file and what is wrong in it."""
    path = folder / "config.json"
    raw = read_json(path)
    try:
        return ZambaConfig.from_hf(raw)
    except ZambaError as error:
        raise ZambaError(f"{path}: {error}") from error


def override(config: ZambaConfig, overrides: Mapping[str, Any]) -> ZambaConfig:
    """The config with some fields replaced. ZambaError for a field that is not there, and for a result that cannot be built."""
    known = [field.name for field in fields(config)]
    for name in overrides:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ZambaError(f"unknown config field {name!r} to override" + (f", did you mean {near[0]!r}?" if near else ""))
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
    try:
        return replace(config, **values)
    except TypeError as error:
        raise ZambaError(f"cannot override the config with {values}: {error}") from error


def as_device(device: str | torch.device) -> torch.device:
    """From "auto", a name or a device to a device that is there, otherwise ZambaError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ZambaError(f"unknown device {device!r}, expected auto, cpu, cuda or cuda:0") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ZambaError(f"device {device!r} asks for a GPU, and torch {torch.__version__} finds none; use cpu or auto")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ZambaError(f"device {device!r} does not exist, there are {torch.cuda.device_count()} GPUs, counted from 0")
    return found


def auto_dtype(folder: Path, config: ZambaConfig) -> torch.dtype:
    """What the config says, otherwise what the file holds."""
    raw = read_json(folder / "config.json")
    stated = raw.get("dtype") or raw.get("torch_dtype")
    return (None if stated else stored_dtype(folder)) or as_dtype(config.dtype)
