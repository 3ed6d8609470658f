"""Lines of a file, compressed or not, and what is left of a damaged one."""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from zamba_lm.errors import ZambaError

LINES = (".jsonl", ".json", ".ndjson")
PACKED = (".xz", ".gz", ".zst")
CHUNK = 1 << 20


class Damaged(Exception):
    """A compressed file that ends, or stops making sense, before its end; all whole lines before that were given out."""


def lines(path: Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line, without its line end; ``on_bytes`` hears how far into the file reading is.

    Raises Damaged where a compressed file is broken, after every line that can be read.
    """
    number, parts = 0, []
    with path.open("rb") as raw:
        for chunk in _chunks(path, raw):
            if on_bytes:
                on_bytes(raw.tell())
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                number += 1
                yield number, b"".join((*parts, line))
                parts = []
            parts.append(rest)
    if last := b"".join(parts):
        yield number + 1, last


def _chunks(path: Path, raw: BinaryIO) -> Iterator[bytes]:
    """The unpacked content, piece by piece."""
    if not path.stat().st_size:
        return  # nothing at all is no archive, and no broken one
    errors = (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile)
    try:
        unpacked = _unpacked(path, raw)
        while chunk := unpacked.read1(CHUNK):
            yield chunk
    except errors as error:
        raise Damaged(str(error)) from error


def _unpacked(path: Path, raw: BinaryIO):
    if path.suffix == ".xz":
        return lzma.open(raw)
    if path.suffix == ".gz":
        return gzip.open(raw)
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstandard(path, raw), CHUNK)
    return raw


class _Zstandard(io.RawIOBase):
    """Frames of zstandard one after another. The package's own reader takes a cut file for a whole one; this one tells."""

    def __init__(self, path: Path, raw: BinaryIO):
        try:
            import zstandard
        except ImportError as error:
            raise ZambaError(f"{path} needs the package zstandard: pip install zstandard") from error
        self._raw, self._new, self._error = raw, zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
        self._frame, self._ready, self._begun = self._new(), b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame.eof else b""
            packed = packed or self._raw.read(CHUNK >> 3)
            if not packed:
                if self._begun and not self._frame.eof:
                    raise EOFError("Compressed file ended before the end of a frame")
                return 0
            self._unpack(packed)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def _unpack(self, packed: bytes) -> None:
        if self._frame.eof:
            self._frame = self._new()
        self._begun = True
        try:
            self._ready = self._frame.decompress(packed)
        except self._error as error:
            raise EOFError(str(error)) from error
