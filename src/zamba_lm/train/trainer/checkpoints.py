"""Checkpoint folders of a run: written beside, flushed to the disk, then renamed, so that one that has its name is whole.

A folder called ``checkpoint-N`` is complete at any moment, also after ``kill -9`` or a power cut. What was being written is
called ``.saving-checkpoint-N``, what was being removed ``.removing-checkpoint-N``; ``sweep`` takes both away.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zamba_lm.errors import ZambaError

STATE = "sturdy.json"  # what is remembered beside the files that Trainer writes
PIECES = "pieces"  # a folder of tensors that were written by the processes that held them (train/scale)
SAVING, REMOVING = ".saving-", ".removing-"
_NAME = re.compile(r"checkpoint-(\d+)")
_FULL = ("No space left", "PytorchStreamWriter", "I/O error", "File too large", "quota exceeded", "iostream error")


def name_of(step: int) -> str:
    return f"checkpoint-{step}"


def found(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    steps = {int(m[1]): path for path in run.glob("checkpoint-*") if (m := _NAME.fullmatch(path.name)) and path.is_dir()}
    return [steps[step] for step in sorted(steps)]


def newest(run: Path) -> Path | None:
    return found(run)[-1] if found(run) else None


def step_of(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ZambaError(f"{checkpoint} is no checkpoint of a run; expected a folder called checkpoint-STEP")
    return int(match[1])


def staged(run: Path, step: int) -> Path:
    """The folder to write into."""
    return run / (SAVING + name_of(step))


def commit(run: Path, step: int) -> Path:
    """Give a written folder its name, once all of it is on the disk."""
    flush(staged(run, step))
    target = run / name_of(step)
    staged(run, step).rename(target)
    flush_one(run)
    return target


def sweep(run: Path) -> list[str]:
    """Take away what was interrupted; returns the names."""
    torn = [path for start in (SAVING, REMOVING) for path in run.glob(start + "*")]
    for path in torn:
        shutil.rmtree(path)
    return [path.name for path in torn]


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` (0: keep all). A removal that is interrupted leaves nothing that looks complete."""
    for path in found(run)[:-keep] if keep else []:
        doomed = run / (REMOVING + path.name)
        path.rename(doomed)
        shutil.rmtree(doomed)


def flush(folder: Path) -> None:
    """Everything below ``folder`` onto the disk, files before the folders that name them."""
    for where, _, files in os.walk(folder, topdown=False):
        for file in files:
            flush_one(Path(where) / file)
        flush_one(Path(where))


def flush_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_trouble(what: str, folder: Path) -> Iterator[None]:
    """Every way in which writers say that the disk is full or broken becomes one ZambaError; other errors pass."""
    try:
        yield
    except (OSError, RuntimeError, ZambaError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise ZambaError(f"cannot save {what} in {folder.parent}: {reason} ({_free(folder.parent)} free there)") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise ZambaError(f"cannot save {what} in {folder.parent}: {error} ({_free(folder.parent)} free there)") from error


def _reason(error: Exception) -> str | None:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, ZambaError) or any(words in str(error) for words in _FULL):
        return str(error).splitlines()[0]
    return None


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB"
