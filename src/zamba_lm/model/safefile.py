"""safetensors files: read and checked tensor by tensor, written front to back.

The format is eight bytes of header length, a JSON header (name -> dtype, shape, byte range), then the tensors' bytes. It is
read here and not through the safetensors package for three reasons that were measured or met: bytes go from the file straight
into the parameter (mapping the file costs a second pass and doubles the resident memory), a checkpoint can be written without
holding it in memory, and a damaged file is reported with its name and the sizes that disagree.
"""

import ctypes
import json
import math
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from zamba_lm.errors import ZambaError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the format


@dataclass(frozen=True)
class Stored:
    """One tensor in a safetensors file: its dtype, shape and byte range [start, stop)."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> Tensor:
        """The tensor, in new memory. ZambaError when the file cannot be read or has become shorter."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(out)
        return out

    def map(self) -> Tensor:
        """The tensor as a private view of the file: read when it is looked at, never written back. The file must keep its bytes.

        ZambaError when the file cannot be read or has become shorter.
        """
        first = self.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        try:
            with open(self.path, "rb") as file:
                view = mmap.mmap(file.fileno(), self.stop - first, access=mmap.ACCESS_COPY, offset=first)
        except (OSError, ValueError) as error:
            raise ZambaError(f"cannot map bytes {self.start} to {self.stop} of {self.path}: {error}") from error
        return torch.frombuffer(view, dtype=self.dtype, count=math.prod(self.shape), offset=self.start - first).view(self.shape)

    def read_into(self, out: Tensor) -> None:
        """Fill ``out``, a contiguous CPU tensor of this dtype and number of elements."""
        target = raw_bytes(out)
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.start)
                done = 0
                while done < len(target) and (got := file.readinto(target[done:])):
                    done += got
        except OSError as error:
            raise ZambaError(f"cannot read {self.path}: {error.strerror}") from error
        if done < len(target):
            size = self.path.stat().st_size
            raise ZambaError(f"{self.path} became shorter while it was read: {self.stop} bytes expected, {size} found")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, writable, sharing its memory. Valid while the tensor lives."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B") if size else memoryview(bytearray())


# reading


def read_header(path: Path) -> dict[str, Stored]:
    """Every tensor of a file by name, in the order of its bytes. ZambaError for a file that is cut short or damaged."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise ZambaError(
                    f"{path} is not a safetensors file or is cut short: {size} bytes, header of {length} bytes announced"
                )
            text = file.read(length)
    except OSError as error:
        raise ZambaError(f"cannot read {path}: {error.strerror}") from error
    stored = [_stored(path, 8 + length, name, entry) for name, entry in _entries(path, text)]
    found = dict(sorted(((name, one) for name, one in stored), key=lambda item: (item[1].start, item[1].stop)))
    _check_ranges(path, found, 8 + length, size)
    return found


def _entries(path: Path, text: bytes) -> list[tuple[str, object]]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ZambaError(f"{path} is damaged: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise ZambaError(f"{path} is damaged: its header is not a JSON object")
    header.pop("__metadata__", None)
    return list(header.items())


def _stored(path: Path, base: int, name: str, entry: object) -> tuple[str, Stored]:
    """Check one entry of the header; ``base`` is where the tensors' bytes begin."""
    try:
        dtype, shape = DTYPES[entry["dtype"]], entry["shape"]  # type: ignore[index]
        start, stop = entry["data_offsets"]  # type: ignore[index]
        fine = all(type(number) is int and 0 <= number < 2**62 for number in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        fine = False
    if not fine or stop - start != math.prod(shape) * dtype.itemsize:
        raise ZambaError(f"{path} is damaged: the header entry of {name!r} makes no sense: {str(entry)[:200]}")
    return name, Stored(path, dtype, tuple(shape), base + start, base + stop)


def _check_ranges(path: Path, found: dict[str, Stored], start: int, size: int) -> None:
    """The tensors must fill the file without gaps or overlaps."""
    for name, stored in found.items():
        if stored.start != start:
            raise ZambaError(f"{path} is damaged: {name!r} begins at byte {stored.start}, expected {start}")
        start = stored.stop
    if start != size:
        state = "cut short" if size < start else "longer than its header says"
        raise ZambaError(f"{path} is {state}: {start} bytes expected, {size} found; fetch or save it again")


# writing


@dataclass(frozen=True)
class Pending:
    """A tensor yet to be written: what the header must know, and a function that makes it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def in_file_order(tensors: Iterable[Pending]) -> list[Pending]:
    """Widest dtype first, so that every tensor begins at a multiple of its item size, as readers that map the file expect."""
    return sorted(tensors, key=lambda pending: -pending.dtype.itemsize)


def write_file(file: BinaryIO, tensors: list[Pending]) -> None:
    """Write a safetensors file; memory: one tensor at a time. Leaves OSError (a full disk) to the caller."""
    header = _header(tensors)
    file.write(len(header).to_bytes(8, "little") + header)
    for pending in tensors:
        tensor = pending.make().detach().to("cpu", pending.dtype).reshape(pending.shape).contiguous()
        file.write(raw_bytes(tensor))


def file_bytes(tensors: list[Pending]) -> int:
    """Size of the file that ``write_file`` would write."""
    return 8 + len(_header(tensors)) + sum(pending.nbytes for pending in tensors)


def _header(tensors: list[Pending]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for this mark
    start = 0
    for pending in tensors:
        stop = start + pending.nbytes
        header[pending.name] = {"dtype": _NAMES[pending.dtype], "shape": pending.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)
