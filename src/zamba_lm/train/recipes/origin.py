"""Where a run's model comes from: a shape by name, or weights that are there already."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from zamba_lm.errors import ZambaError
from zamba_lm.hub import resolve
from zamba_lm.model.config import ZambaConfig
from zamba_lm.train.recipes.base import Language
from zamba_lm.train.recipes.shapes import shape
from zamba_lm.train.trainer import checkpoints

if TYPE_CHECKING:
    from zamba_lm.model.zamba import Zamba


def config_of(config: Language) -> ZambaConfig:
    """The shape that is trained."""
    if not config.start:
        return shape(config.model, config.shape)
    from zamba_lm.model.load import override, read_config

    return override(read_config(origin(config.start)), config.shape)


def origin(start: str) -> Path:
    """The folder of weights that ``start`` means: of a run its newest checkpoint, in float32; of a run of adapters,
    whose checkpoints hold no model, the one it was merged into."""
    path = Path(start)
    if path.is_dir() and not (path / "config.json").is_file():
        newest = checkpoints.newest(path)
        if newest and (newest / "config.json").is_file():
            return newest
        if (path / "model" / "config.json").is_file():
            return path / "model"
        if newest:
            raise ZambaError(f"start={start}: the run holds adapters alone: merge them into their model first (docs/tuning.md)")
        raise ZambaError(f"start={start}: the folder holds neither a checkpoint of a run nor a model")
    return resolve(start)


def weights_into(zamba: "Zamba", start: str) -> None:
    """Fill a model from ``start``. ZambaError names both shapes when they differ."""
    from zamba_lm.train.trainer.restore import fill

    folder = origin(start)
    if (folder / checkpoints.PIECES).is_dir():
        from zamba_lm.train.scale.stored import read_weights

        read_weights(zamba, folder, alone=True)
    else:
        fill(zamba, folder)


def loaded(folder: Path, *, device: Any, dtype: Any) -> "Zamba":
    """The model in a folder: a checkpoint in one piece or in many, or a finished one. dtype "auto": as it lies there."""
    from zamba_lm.model.load import load_model, read_config

    if not (folder / checkpoints.PIECES).is_dir():
        return load_model(folder, device=device, dtype=dtype)
    import torch

    from zamba_lm.model.zamba import Zamba

    zamba = Zamba(read_config(folder), device=device, dtype=torch.float32)
    weights_into(zamba, str(folder))
    return zamba if dtype == "auto" else zamba.to(dtype)
