"""Weights into a model and out of it, in every style of ``styles.py``.

Loading looks at a tensor in its file, where file and model agree, or reads it straight into its place in the parameters; saving
writes front to back. Beside the model, loading holds a few tensors where the dtype changes and else nothing, saving one.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from zamba_lm.model.checkpoint import ENTRY_FILES, open_checkpoint
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.config_write import to_dict
from zamba_lm.model.dtypes import as_dtype, dtype_name
from zamba_lm.model.int8rows import SCALE, is_rowwise, quantize
from zamba_lm.model.match import FLOATS, kept_dtype, match
from zamba_lm.model.names import Piece, hollow_shapes, pieces
from zamba_lm.model.parts import Linear
from zamba_lm.model.safefile import Pending, file_bytes, in_file_order, write_file
from zamba_lm.model.staging import Staging
from zamba_lm.ops.linear import row_scales

if TYPE_CHECKING:
    from zamba_lm.model.zamba import Zamba

MAX_SHARD_BYTES = 5_000_000_000
READERS = 4  # threads: while one waits for the disk another has the system find memory pages, which takes as long


# loading


def load_weights(model: "Zamba", folder: Path, *, also: Collection[str] = ()) -> dict[str, Tensor]:
    """Fill the parameters of ``model`` from a checkpoint folder of any style, in the dtype and on the device they have.
    ``also``: names of tensors beside the model's that the files may hold; those that they do are returned.

    On a CPU, large parameters that are stored as they are needed become private views of the file, which is then read when they
    are first used; the file may be replaced meanwhile, not overwritten in place. A_log, D and dt_bias become float32 where the
    file holds them so. Raises ZambaError when the weights do not fit the model, when tied copies differ, or when a file is
    missing or damaged; the model is then filled in part.
    """
    tensors = open_checkpoint(folder)
    beside = {name: tensors.pop(name) for name in also if name in tensors}
    found = match(model.config, tensors, folder)
    parameters = dict(model.named_parameters())
    dtype = parameters["embedding.weight"].dtype
    for one in found:
        parameter = parameters[one.piece.target]
        if parameter.dtype != one.dtype_in(dtype):  # one of the small vectors: for them alone the file decides
            parameter.data = torch.empty_like(parameter.data, dtype=one.dtype_in(dtype))
    copied = []
    for one in sorted(found, key=lambda one: (one.source.path, one.source.start)):
        parameter = parameters[one.piece.target]
        if (view := one.view_for(parameter.data)) is None:
            copied.append(one)
        else:
            parameter.data = view
    pool = ThreadPoolExecutor(READERS)
    try:
        list(pool.map(lambda one: one.place(parameters[one.piece.target].data), copied))  # raises what went wrong in a thread
    finally:
        pool.shutdown(cancel_futures=True)
    return {name: source.read() for name, source in beside.items()}


def stored_dtype(folder: Path) -> torch.dtype | None:
    """dtype of most numbers in a checkpoint, None when they are int8 rows or not floats at all."""
    numbers: dict[torch.dtype, int] = {}
    for source in open_checkpoint(folder).values():
        numbers[source.dtype] = numbers.get(source.dtype, 0) + torch.Size(source.shape).numel()
    most = max(numbers, key=lambda dtype: numbers[dtype], default=None)
    return most if most in FLOATS else None


# saving


@dataclass(frozen=True)
class Parameter:
    """One of our parameters, wherever it is: its dtype, and a function that gets it."""

    dtype: torch.dtype
    get: Callable[[], Tensor]


def save_weights(
    model: "Zamba",
    folder: Path,
    *,
    style: str = "hf",
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    int8_rows: bool = False,
) -> None:
    """Write config.json and safetensors of ``model`` to a folder.

    ``style``: hf (what transformers reads), fork, native or ours. ``dtype``: what tensors become (None: as it is).
    ``int8_rows``: matrices as int8 rows with scales, which only this project reads. Complete or not at all: see ``staging.py``.
    ZambaError for a style the family does not have, a folder that cannot be written and a disk that is or becomes full.
    """
    wanted = None if dtype is None else as_dtype(dtype)
    config_dtype = next(model.parameters()).dtype
    config = replace(model.config, dtype=dtype_name(wanted or config_dtype))
    parameters = {}
    for name, one in model.named_parameters():
        get = partial(_data, model, name) if _is_packed(one) else partial(getattr, one, "data")
        dtype_now = config_dtype if _is_packed(one) else one.dtype
        parameters[name] = Parameter(kept_dtype(name, dtype_now, wanted) if wanted else dtype_now, get)
    write_checkpoint(Path(folder), config, parameters, style=style, max_shard_bytes=max_shard_bytes, int8_rows=int8_rows)


def _is_packed(parameter: nn.Parameter) -> bool:
    """Is it packed in eight bits (model/pack.py)?"""
    return parameter.dtype == torch.int8


def _data(model: nn.Module, name: str) -> Tensor:
    return cast(Linear, model.get_submodule(name.rpartition(".")[0])).dense()


def write_checkpoint(
    folder: Path,
    config: ZambaConfig,
    parameters: Mapping[str, Parameter],
    *,
    style: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    int8_rows: bool = False,
    config_text: str | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """``save_weights`` for parameters that need not be in memory together. ``config_text``: another config.json that says the
    same of the model; ``extra``: tensors beside the model's."""
    text = config_text or json.dumps(to_dict(config, "hf" if style == "ours" else style), indent=2)
    tensors = list(_tensors(config, parameters, style, int8_rows))
    tensors += [Pending(name, one.dtype, tuple(one.shape), partial(_itself, one)) for name, one in (extra or {}).items()]
    shards = _shards(tensors, max_shard_bytes)
    files = {_file_name(number, len(shards)): in_file_order(shard) for number, shard in enumerate(shards, 1)}
    needed = len(text) + sum(map(file_bytes, files.values()))
    with Staging(folder, needed) as staging:
        for name, tensors in files.items():
            with staging.open(name) as file:
                write_file(file, tensors)
        if len(files) > 1:
            with staging.open(ENTRY_FILES[1]) as file:
                file.write(_index(files))
        with staging.open("config.json") as file:
            file.write(text.encode())
        mixable = len(files) > 1 and any((folder / name).exists() for name in files)  # an old index would name new shards too
        staging.commit(
            first_drop=[ENTRY_FILES[1]] if mixable else [],
            last=(ENTRY_FILES[1], "config.json"),
            then_drop=_old_files(folder, files),
        )


def _tensors(config: ZambaConfig, parameters: Mapping[str, Parameter], style: str, int8_rows: bool) -> Iterator[Pending]:
    """Every tensor of the file; tied ones once, under their first name."""
    latest = _Latest(parameters)
    for piece in pieces(config, style):
        name, part = piece.names[0], partial(latest.part, piece)
        if int8_rows and is_rowwise(piece.shape):
            yield Pending(name, torch.int8, piece.shape, partial(_codes, part))
            yield Pending(name + SCALE, torch.float32, piece.shape[:1], partial(_scales, part))
        else:
            yield Pending(name, parameters[piece.target].dtype, piece.shape, part)
    for name, shape in hollow_shapes(config, style).items():
        yield Pending(name, getattr(torch, config.dtype), shape, partial(torch.empty, shape))


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _codes(part: Callable[[], Tensor]) -> Tensor:
    return quantize(part())[0]


def _scales(part: Callable[[], Tensor]) -> Tensor:
    return row_scales(part())


class _Latest:
    """Cuts parameters into the tensors of a file; keeps the one got last, since q, k and v come from the same."""

    def __init__(self, parameters: Mapping[str, Parameter]):
        self.parameters, self.name, self.tensor = parameters, "", torch.empty(0)

    def part(self, piece: Piece) -> Tensor:
        if piece.target != self.name:
            self.tensor = torch.empty(0)  # let go of the old one first
            self.name, self.tensor = piece.target, self.parameters[piece.target].get()
        return piece.window(self.tensor).reshape(piece.shape)


def _shards(tensors: list[Pending], most: int) -> list[list[Pending]]:
    """Consecutive runs of at most ``most`` bytes, a larger tensor alone."""
    shards: list[list[Pending]] = []
    room = 0
    for tensor in tensors:
        if not shards or tensor.nbytes > room:
            shards.append([])
            room = most
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def _file_name(number: int, count: int) -> str:
    return ENTRY_FILES[0] if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _index(files: Mapping[str, list[Pending]]) -> bytes:
    total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    places = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2).encode()


def _old_files(folder: Path, files: Mapping[str, object]) -> list[str]:
    """Weight files of an earlier save that must not be taken for part of this one."""
    old = [name for name in ENTRY_FILES if (folder / name).exists()]
    old += [path.name for path in folder.glob("model-*-of-*.safetensors")]
    written = {*files, ENTRY_FILES[1]} if len(files) > 1 else {*files}
    return [name for name in old if name not in written]
