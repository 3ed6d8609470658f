"""Three ways to a model over several ranks: from a finished one, from a checkpoint, at random. Each rank fills its own share."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zamba_lm.errors import ZambaError
from zamba_lm.hub import resolve
from zamba_lm.model.checkpoint import open_checkpoint
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.dtypes import as_dtype
from zamba_lm.model.init import init_mixer
from zamba_lm.model.load import auto_dtype, override, read_config
from zamba_lm.model.match import Found, match
from zamba_lm.model.names import parameter_shapes
from zamba_lm.model.parts import Linear, Norm
from zamba_lm.model.zamba import MIXERS, Zamba
from zamba_lm.parallel.group import Ranks, join
from zamba_lm.parallel.model import ParallelZamba
from zamba_lm.parallel.shard import cut


def tensor_parallel(model: Zamba, group: Any = None, *, ranks: Ranks | None = None) -> ParallelZamba:
    """My share of a finished model, on its device; the model stays as it is, and may be dropped.

    ``group``: the torch.distributed group over which it is split, None for all processes; ``ranks``: ranks of another making.
    Every rank has to call this with the same model. Per-call copies of ``merge_adapters`` are split too; packed weights are
    refused.
    """
    if any(isinstance(part, Linear) and part.row_scale is not None for part in model.modules()):
        raise ZambaError("the model's weights are packed for one processor: split it before pack_weights")
    new = ParallelZamba(model.config, ranks or Ranks.of(group), device=model.device, dtype=model.dtype)
    _fill(new, dict(model.named_parameters()).__getitem__)
    for mine, theirs in zip(new.layers, model.layers):
        if theirs.plan.hybrid:
            copies = {name: weight for name, weight in theirs.merged.items() if name != "link"}  # parts are added up before it
            mine.merged = {name: cut(name, weight, new.config).clone() for name, weight in copies.items()}
    return _met(new)


def load_parallel(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> ParallelZamba:
    """My share of a checkpoint, for processes that torchrun started (see ``join``); arguments as those of ``load_model``.

    Beside its share a rank holds one parameter at a time. Raises ZambaError for everything a user can mend.
    """
    ranks, here = join(device)
    folder = resolve(name_or_path, revision)
    config = override(read_config(folder), overrides or {})
    wanted = auto_dtype(folder, config) if dtype == "auto" else as_dtype(dtype)
    found: dict[str, list[Found]] = {}
    for one in match(config, open_checkpoint(folder), folder):
        found.setdefault(one.piece.target, []).append(one)
    shapes = parameter_shapes(config)

    def read(name: str) -> Tensor:
        whole = torch.empty(shapes[name], dtype=found[name][0].dtype_in(wanted))
        for one in found[name]:
            one.place(whole)
        return whole

    new = _allocated(config, ranks, here, wanted)
    _fill(new, read)
    return _met(new)


def random_parallel(
    config: ZambaConfig,
    seed: int = 0,
    *,
    group: Any = None,
    ranks: Ranks | None = None,
    device: Any = None,
    dtype: Any = None,
) -> ParallelZamba:
    """My share of ``Zamba(config).init_weights(seed)``, number for number, without ever having the whole."""
    new = _allocated(config, ranks or Ranks.of(group), torch.device(device or "cpu"), dtype)
    generator, shapes = torch.Generator(new.device).manual_seed(seed), parameter_shapes(config)

    def draw(name: str) -> Tensor:
        return torch.empty(shapes[name], device=new.device, dtype=new.dtype).normal_(0, config.init_std, generator=generator)

    with torch.no_grad():
        _fill(new, draw)
        for module in new.modules():
            if isinstance(module, Norm):
                module.weight.fill_(1)
        for name, part in _initial_mixers(new, config, generator):
            new.get_parameter(name).copy_(cut(name, part, new.config))
    return _met(new)


def _initial_mixers(new: ParallelZamba, config: ZambaConfig, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """What mixers begin with that is not normal, by name, one layer after the other."""
    mixer = MIXERS[config.family](config, device=new.device, dtype=new.dtype)
    matrices = {"in_proj.weight", "out_proj.weight", "conv_weight", "x_proj"}
    for i in range(config.n_layers):
        init_mixer(mixer, config, generator)
        yield from ((f"layers.{i}.mixer.{name}", p) for name, p in mixer.named_parameters() if name not in matrices)


def _allocated(config: ZambaConfig, ranks: Ranks, device: torch.device, dtype: Any) -> ParallelZamba:
    try:
        return ParallelZamba(config, ranks, device=device, dtype=dtype)
    except torch.OutOfMemoryError as error:
        need = config.weight_bytes(dtype) / ranks.size / 2**30
        raise ZambaError(f"about {need:.1f} GiB for each of {ranks.size} ranks are more than {device} has free") from error


@torch.no_grad()
def _fill(new: ParallelZamba, whole: Callable[[str], Tensor]) -> None:
    """Cut every parameter out of the whole model's, in order."""
    for name, parameter in new.named_parameters():
        share = cut(name, whole(name), new.config)
        if share.dtype != parameter.dtype:  # small vectors that stay float32
            parameter.data = torch.empty_like(parameter, dtype=share.dtype)
        parameter.copy_(share)


def _met(new: ParallelZamba) -> ParallelZamba:
    """All ranks are ready, and from now on draw the same seeds."""
    new.ranks.agree(new.device)
    return new
