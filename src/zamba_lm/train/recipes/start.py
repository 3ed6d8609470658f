"""The beginning of every run: settings resolved, or those of the run that goes on; what they mean, told."""

import os
from typing import Any

from zamba_lm.errors import ZambaError
from zamba_lm.train.recipes import folder, recipe
from zamba_lm.train.recipes.base import Recipe, groups, need
from zamba_lm.train.recipes.resolve import resolve


def prepare(name: str, pairs: list[str], *, resume: bool, write: bool) -> tuple[Recipe, list[str]]:
    """The config of recipe ``name`` and notes about it; with ``write`` the run folder gets its recipe.json.

    With ``resume`` the settings are those of the run folder, and ``pairs`` change them; a note says each change.
    """
    module = recipe(name)
    asked = resolve(module.Config(), module.PRESETS, pairs)
    before = folder.saved(module.Config, asked.out) if resume else None
    if before and asked.preset not in ("", before.preset):
        raise ZambaError(f"{asked.out} was started with preset {before.preset!r}, not {asked.preset!r}; leave the preset out")
    config = resolve(before, {before.preset: before}, pairs) if before else asked
    notes = folder.changes(before, config) if before else []
    if write:
        need(config.out, "out", "runs/first")
        if os.environ.get("RANK", "0") == "0":
            _refuse_used(config, resume)
            folder.save(config)
    return config, [f"changed: {note}" for note in notes]


def _refuse_used(config: Recipe, resume: bool) -> None:
    """A folder with checkpoints keeps its recipe.json until it is resumed."""
    from pathlib import Path

    from zamba_lm.train.trainer import checkpoints

    newest = checkpoints.newest(Path(config.out)) if Path(config.out).is_dir() else None
    if newest and not resume:
        raise ZambaError(f"{config.out} holds {newest.name} already; go on from it with --resume, or choose another folder")


def described(name: str, config: Any) -> str:
    """Every field with its value, and the plan of the memory."""
    lines = [f"{path} = {value}" for path, _, value in groups(config)]
    return "\n".join([f"recipe {name}", *lines, "", recipe(name).plan(config)])
