"""A file is replaced whole or not at all, and what is written is on the disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the place of ``path`` at the end, and goes where writing fails."""
    beside = path.with_name(path.name + ".part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        with suppress(OSError):  # a name that cannot be written cannot be removed either
            beside.unlink(missing_ok=True)


def settle(file: IO) -> None:
    """What was written to ``file`` is on the disk now, not on its way there."""
    file.flush()
    os.fsync(file.fileno())
