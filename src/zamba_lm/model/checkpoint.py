"""The tensors of a checkpoint folder by name, whatever files they lie in. Headers are read, tensors only when asked for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.model.safefile import Stored, read_header

# where transformers keeps weights, best first; an index names the shards
ENTRY_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LONE = ("*.safetensors", "*.bin", "*.pt", "*.pth")  # otherwise a single file of one of these kinds


@dataclass(frozen=True)
class Loaded:
    """One tensor of a file that torch.save wrote, mapped and not yet read. Same face as ``Stored``."""

    path: Path
    tensor: Tensor
    start: int  # its place in the file's order

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def read(self) -> Tensor:
        return self.tensor

    def read_into(self, out: Tensor) -> None:
        out.copy_(self.tensor.reshape(out.shape))


Source = Stored | Loaded


def open_checkpoint(folder: Path) -> dict[str, Source]:
    """Every tensor of the folder, in the order of the files. ZambaError when there are no weights, or shards missing or
    damaged.
    """
    tensors: dict[str, Source] = {}
    for path in weight_files(folder):
        for name, source in _read(path).items():
            if name in tensors:
                raise ZambaError(f"{folder} holds {name!r} twice, in {tensors[name].path.name} and in {path.name}")
            tensors[name] = source
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, all present. ZambaError when none are found, or some of those that the index names are
    not.
    """
    for name in ENTRY_FILES:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    for pattern in _LONE:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found
        if found:
            raise ZambaError(f"{folder} holds {len(found)} {pattern} files and no index that says which belong together")
    raise ZambaError(f"no weights in {folder}: expected {ENTRY_FILES[0]}, {ENTRY_FILES[1]} or one *.pt or *.bin file")


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ZambaError(f"{index} is damaged: expected a weight_map from tensor names to files")
    names = sorted(set(places.values()))
    if strange := [name for name in names if name != Path(name).name]:
        raise ZambaError(f"{index} names {strange[0]!r}, expected plain file names in the same folder")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise ZambaError(f"{index.parent} lacks {len(missing)} of {len(names)} shards that its index names: {', '.join(missing)}")
    return [index.parent / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. ZambaError names the file and what is wrong with it."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise ZambaError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ZambaError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ZambaError(f"{path} holds a JSON {type(found).__name__}, expected an object")
    return found


def _read(path: Path) -> Mapping[str, Source]:
    return read_header(path) if path.suffix == ".safetensors" else _read_pickle(path)


def _read_pickle(path: Path) -> dict[str, Loaded]:
    """Tensors of a torch.save file, mapped where the format allows it. Nothing but tensors and plain containers is ever
    unpickled.
    """
    try:
        found = _load(path)
    except Exception as error:  # torch raises a dozen kinds on damaged files
        raise ZambaError(
            f"{path} is damaged or holds more than tensors; other objects could run code and are not loaded"
        ) from error
    while isinstance(found, dict) and isinstance(inner := found.get("model", found.get("state_dict")), dict):
        found = inner
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ZambaError(f"{path} holds {type(found).__name__}, expected tensors by name")
    tensors = [(name, tensor) for name, tensor in found.items() if isinstance(tensor, Tensor) and tensor.layout == torch.strided]
    return {name: Loaded(path, tensor.detach(), place) for place, (name, tensor) in enumerate(tensors)}


def _load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6 cannot be mapped
