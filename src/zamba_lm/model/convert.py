"""One checkpoint folder into another: any style to any style, another dtype, int8 rows to plain and back."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.hub import resolve
from zamba_lm.model.checkpoint import ENTRY_FILES, open_checkpoint
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.dtypes import as_dtype, dtype_name
from zamba_lm.model.load import read_config
from zamba_lm.model.match import Found, match
from zamba_lm.model.names import parameter_shapes
from zamba_lm.model.weights import Parameter, write_checkpoint
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.text.whole import replacing

# what a folder holds beside config and weights, copied as it is
COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def convert(
    src: str | Path, dst: str | Path, *, style: str = "hf", dtype: str | torch.dtype = "same", revision: str | None = None
) -> Path:
    """Write the checkpoint ``src`` (whatever ``hub.resolve`` takes) to the folder ``dst`` and return it.

    ``style``: hf, fork, native or ours. ``dtype``: "same" (int8 rows become what the config says), a floating-point dtype, or
    "int8" for int8 rows. The tokenizer and the generation config come along. Memory: one parameter. ZambaError when ``dst``
    holds anything but an earlier checkpoint, and for whatever is wrong with ``src``; ``dst`` is then as it was.
    """
    source, target = resolve(src, revision), Path(dst)
    _refuse_overwriting(source, target)
    config = read_config(source)
    wanted = None if dtype in ("same", "int8") else as_dtype(dtype)
    parameters = _read_parameters(config, source, wanted)
    config = replace(config, dtype=dtype_name(wanted or parameters["embedding.weight"].dtype))
    tokenizer = _packaged_tokenizer(source, config)
    write_checkpoint(target, config, parameters, style=style, int8_rows=dtype == "int8")
    _copy_companions(source, target)
    if tokenizer:
        tokenizer.save(target)
    return target


def _refuse_overwriting(source: Path, target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise ZambaError(f"{target} is a file; give a folder to write to")
    if target.exists() and target.resolve() == source.resolve():
        raise ZambaError(f"{target} is the checkpoint itself; give another folder to write to")
    if target.is_dir() and any(target.iterdir()) and not _is_checkpoint(target):
        raise ZambaError(f"{target} is not empty and holds no checkpoint of ours to replace; give a new or empty folder")


def _is_checkpoint(folder: Path) -> bool:
    """Does the folder hold a Zamba's config and weights, as an earlier conversion would have left them?"""
    try:
        read_config(folder)
    except ZambaError:
        return False
    return any((folder / name).is_file() for name in ENTRY_FILES)


def _copy_companions(source: Path, target: Path) -> None:
    """Each is whole or absent. A source that brings any replaces all: those of an earlier conversion belong to another model."""
    theirs = [name for name in COMPANIONS if (source / name).is_file()]
    for name in COMPANIONS if theirs else ():
        try:
            if name in theirs:
                with replacing(target / name) as beside:
                    shutil.copyfile(source / name, beside)
            else:
                (target / name).unlink(missing_ok=True)
        except OSError as error:
            raise ZambaError(f"cannot copy {name} to {target}: {error.strerror}") from error


def _packaged_tokenizer(source: Path, config: ZambaConfig) -> Tokenizer | None:
    """The package's tokenizer, named as the source names its tokens, for a source that relies on it: others cannot know of it."""
    own = any((source / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    fits = config.vocab_size == Tokenizer.mistral().vocab_size
    return Tokenizer.load(source) if fits and not own else None


def _read_parameters(config: ZambaConfig, folder: Path, dtype: torch.dtype | None = None) -> dict[str, Parameter]:
    """Our parameters from a checkpoint folder, each read when it is asked for. ``dtype`` None: as the file has them, int8 rows
    in the dtype of the config.
    """
    parts: dict[str, list[Found]] = {}
    for one in match(config, open_checkpoint(folder), folder):
        parts.setdefault(one.piece.target, []).append(one)
    shapes = parameter_shapes(config)
    return {target: _parameter(config, shapes[target], found, dtype) for target, found in parts.items()}


def _parameter(config: ZambaConfig, shape: tuple[int, ...], found: list[Found], dtype: torch.dtype | None) -> Parameter:
    own = getattr(torch, config.dtype) if found[0].scale else found[0].source.dtype
    wanted = found[0].dtype_in(dtype) if dtype else own
    return Parameter(wanted, partial(_assemble, shape, found, wanted))


def _assemble(shape: tuple[int, ...], found: list[Found], dtype: torch.dtype) -> Tensor:
    parameter = torch.empty(shape, dtype=dtype)
    for one in found:
        one.place(parameter)
    return parameter
