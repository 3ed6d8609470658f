"""New files for a folder: written beside the old ones, put in place together when all are complete.

A kill or a full disk while writing leaves the old files as they were. While finished files are put in place (renames, some
milliseconds) a kill leaves old or new, or at worst a folder without an index, which is said when it is read: never a mixture.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from zamba_lm.errors import ZambaError
from zamba_lm.text.whole import settle

_MARK = ".saving-"  # unfinished files are called so; what a killed save left behind goes with the next one


class Staging:
    """``with Staging(folder, needed) as staging``: open files, then ``commit``; unfinished ones go when the block is left.

    ``needed`` is the number of bytes about to be written. Raises ZambaError when they do not fit, when the folder cannot be
    made or written, or when the disk fills up meanwhile; a folder made for nothing is removed again.
    """

    def __init__(self, folder: Path, needed: int):
        self.folder, self.needed = folder, needed
        self._made = [path for path in (folder, *folder.parents) if not path.exists()]
        self._names: list[str] = []

    def __enter__(self) -> "Staging":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear()
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._trouble(error) from error
        if self.needed > free:
            self._unmake()
            raise self._full(free)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        trouble = self._trouble(error) if isinstance(error, OSError) else None  # while the disk is still full
        self._clear()
        self._unmake()
        if trouble:
            raise trouble from error

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        """A new file, to be called ``name`` after ``commit``. When the block is left it is on the disk, not on its way there."""
        self._names.append(name)
        with open(self.folder / (_MARK + name), "wb") as file:
            yield file
            settle(file)

    def commit(self, *, first_drop: Iterable[str] = (), last: Iterable[str] = (), then_drop: Iterable[str] = ()) -> None:
        """Put every file in place, those of ``last`` (the index, the config) after the files they speak of. Old files are removed
        before or after: before, where an old one would speak of new ones.
        """
        final = set(last)
        self._drop(first_drop)
        for name in sorted(self._names, key=lambda name: name in final):
            os.replace(self.folder / (_MARK + name), self.folder / name)
        self._drop(then_drop)

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _clear(self) -> None:
        for path in self.folder.glob(_MARK + "*"):
            path.unlink(missing_ok=True)

    def _unmake(self) -> None:
        for path in self._made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _trouble(self, error: OSError) -> ZambaError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return self._full(shutil.disk_usage(self.folder).free)
        return ZambaError(f"cannot write to {self.folder}: {error.strerror or error}")

    def _full(self, free: int) -> ZambaError:
        return ZambaError(
            f"not enough space in {self.folder}: {self.needed} bytes needed, {free} free; nothing was changed there"
        )
