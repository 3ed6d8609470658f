"""The beginning of every run: settings resolved, or those of the run that goes on; what they mean, told."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes import folder, recipe
from zamba_lm.train.recipes.base import Recipe, groups, need
from zamba_lm.train.recipes.resolve import resolve


def prepare(name: str, pairs: list[str], *, resume: bool, write: bool) -> tuple[Recipe, list[str]]:
    """The config of recipe ``name`` and notes about it; with ``write`` the run folder gets its recipe.json.

    With ``resume`` the settings are those of the run folder, and ``pairs`` change them; a note says each change,
    or that there is no run yet.
    """
    module = recipe(name)
    asked = resolve(module.Config(), module.PRESETS, pairs)
    before = folder.saved(module.Config, asked.out) if resume else None
    if before and asked.preset not in ("", before.preset):
        raise ZambaError(f"{asked.out} was started with preset {before.preset!r}, not {asked.preset!r}; leave the preset out")
    config = resolve(before, {before.preset: before}, pairs) if before else asked
    notes = [f"changed: {note}" for note in folder.changes(before, config)] if before else []
    if resume and not before:
        notes = [f"there is no run in {asked.out} yet: --resume begins one, with the settings given here"]
    if write:
        _write(config, resume)
    return config, notes


@contextmanager
def started(name: str, pairs: list[str], *, resume: bool) -> Iterator[tuple[Recipe, list[str]]]:
    """``prepare`` for the run that goes on inside. Where that is refused before it has come to a new checkpoint, the folder gets
    the recipe.json back that it had: settings that nothing can be done with shall not be those of the next ``--resume``."""
    config, notes = prepare(name, pairs, resume=resume, write=False)
    file = Path(need(config.out, "out", "runs/first")) / folder.FILE
    before, newest = file.read_bytes() if file.is_file() else None, _newest(config)
    _write(config, resume)
    try:
        yield config, notes
    except ZambaError:
        if before is not None and _newest(config) == newest and _first():
            file.write_bytes(before)
        raise


def _write(config: Recipe, resume: bool) -> None:
    need(config.out, "out", "runs/first")
    if not _first():
        return
    newest = _newest(config)
    if newest and not resume:
        raise ZambaError(f"{config.out} holds {newest.name} already; go on from it with --resume, or choose another folder")
    folder.save(config)


def _first() -> bool:
    """Whether this is the first of torchrun's processes."""
    return os.environ.get("RANK", "0") == "0"


def _newest(config: Recipe) -> Path | None:
    from zamba_lm.train.trainer import checkpoints

    return checkpoints.newest(Path(config.out)) if Path(config.out).is_dir() else None


def described(name: str, config: Any) -> str:
    """Every field with its value, and the plan of the memory."""
    lines = [f"{path} = {value}" for path, _, value in groups(config)]
    return "\n".join([f"recipe {name}", *lines, "", recipe(name).plan(config)])
