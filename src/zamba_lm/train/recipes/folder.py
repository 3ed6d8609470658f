"""The run folder's ``recipe.json``: what was asked for, resolved, with the versions that ran it."""

import json
import platform
import sys
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.model.checkpoint import read_json
from zamba_lm.text.whole import replacing
from zamba_lm.train.recipes.base import Recipe, groups, need
from zamba_lm.train.recipes.resolve import from_dict

FILE = "recipe.json"
PACKAGES = ("zamba-lm", "torch", "triton", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "numpy")


def save(config: Recipe) -> None:
    """Write recipe.json into the run folder."""
    folder = Path(need(config.out, "out", "runs/first"))
    folder.mkdir(parents=True, exist_ok=True)
    told = {"recipe": config.name, "config": asdict(config), "versions": versions()}
    with replacing(folder / FILE) as beside:
        beside.write_text(json.dumps(told, indent=1) + "\n")


def saved(kind: type[Recipe], out: str) -> Recipe | None:
    """The config that a run folder was started with; None where there is none. ZambaError when another recipe owns it."""
    path = Path(need(out, "out", "runs/first")) / FILE
    if not path.is_file():
        return None
    try:
        told = read_json(path)
    except ZambaError as error:
        raise ZambaError(f"{error}; move the folder away, or restore the file") from error
    if told.get("recipe") != kind.name:
        raise ZambaError(f"{out} is a run of {told.get('recipe')}, not of {kind.name}; choose another with --set out=FOLDER")
    if not isinstance(told.get("config"), dict):
        raise ZambaError(f"{path} has no config, so it is damaged; move the folder away, or restore the file")
    return replace(from_dict(kind, told["config"]), out=out)


def changes(before: Recipe, after: Recipe) -> list[str]:
    """What differs, one line each."""
    old = {path: value for path, _, value in groups(before)}
    return [f"{path}: {old[path]} -> {value}" for path, _, value in groups(after) if value != old[path]]


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "machine": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
