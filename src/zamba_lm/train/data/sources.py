"""Where records come from: files by name, by folder, by pattern; data sets of the hub; each one's records, one by one."""

import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.train.data import files

PARQUET = ".parquet"
HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(:(?P<split>[\w.\[\]:%-]+))?")  # owner/name[/config][:split]


@dataclass(frozen=True)
class Source:
    """One piece of work: a file, or one of the parts that a data set of the hub has."""

    name: str
    """Of the shard it becomes, unique within a set."""
    path: Path | None = None
    hub: str | None = None
    part: int = 0
    parts: int = 1

    def __str__(self) -> str:
        return str(self.path or f"{self.hub} part {self.part + 1} of {self.parts}")

    @property
    def size(self) -> int:
        """Bytes on disk; 0 for what comes over the network."""
        return self.path.stat().st_size if self.path else 0


class BadLine(Exception):
    """A line that holds no record; reading goes on after it."""


Read = tuple[str, dict | BadLine]


def find(names: Iterable[str | Path]) -> list[Source]:
    """Sources of files, folders, patterns and hub names, in the order given, files of a folder sorted.

    Raises ZambaError for a name that leads nowhere, a format that is not read here, and two files that would become one shard.
    """
    found: list[Source] = []
    for name in names:
        found += _find(str(name))
    return _distinct(found)


def records(source: Source, on_bytes: Callable[[int], None] | None = None) -> Iterator[Read]:
    """Where it stands ("line 7") and the record, for every line; BadLine in its place where a line is no JSON object.

    Raises files.Damaged at the broken place of a compressed file.
    """
    if source.path is None or source.path.suffix == PARQUET:
        yield from _table(source)
        return
    for number, line in files.lines(source.path, on_bytes):
        yield f"line {number}", _parse(line)


def _parse(line: bytes) -> dict | BadLine:
    if not line.strip():
        return BadLine("the line is empty")
    try:
        record = json.loads(line)
    except ValueError as error:  # no JSON, or no UTF-8
        return BadLine(f"not JSON: {error}")
    except RecursionError:
        return BadLine("not JSON that anybody means: nested too deeply")
    return record if isinstance(record, dict) else BadLine(f"a JSON {type(record).__name__}, expected an object")


def _find(name: str) -> list[Source]:
    path = Path(name).expanduser()
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if _known(p) and ".json" not in p.suffixes)  # where it is mostly not lines
    else:
        paths = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    if unknown := [p for p in paths if not _known(p)]:
        kinds = ", ".join((*files.LINES, PARQUET))
        raise ZambaError(f"{unknown[0]} is in no format that is read here: {kinds}, packed or not ({', '.join(files.PACKED)})")
    if paths:
        return [Source(_stem(p), p) for p in paths]
    if not path.exists() and (hub := HUB.fullmatch(name)) and not path.parent.is_dir():
        return _hub(name, hub)
    raise ZambaError(_nothing(name, path))


def _nothing(name: str, path: Path) -> str:
    if path.is_dir():
        return f"the folder {name} holds no file that ends in {', '.join((*files.LINES, PARQUET))}, compressed or not"
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return f"no file, folder or pattern {name}{nearest(path.name, siblings)}, and no data set of the hub (owner/name) either"


def _known(path: Path) -> bool:
    return path.suffix == PARQUET or Path(path.stem if path.suffix in files.PACKED else path.name).suffix in files.LINES


def _stem(path: Path) -> str:
    return Path(path.stem).stem if path.suffix in files.PACKED else path.stem


def _distinct(found: list[Source]) -> list[Source]:
    """Files of one name in several folders get the folder's name in front."""
    names = [s.name for s in found]
    renamed = [Source(f"{s.path.parent.name}-{s.name}", s.path) if s.path and names.count(s.name) > 1 else s for s in found]
    seen: dict[str, Source] = {}
    for source in renamed:
        if source.name in seen:
            both = f"{seen[source.name]} and {source}"
            raise ZambaError(f"{both} would become one shard {source.name}: tokenise them into two folders")
        seen[source.name] = source
    return renamed


# `datasets`: Parquet and the hub


def _load(source: Source):
    """A streaming data set; an extra of ours, so imported late."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ZambaError(f"{source} needs the package datasets: pip install 'zamba-lm[train]'") from error
    if source.path:
        try:
            return load_dataset("parquet", data_files=str(source.path), split="train", streaming=True)
        except (OSError, ValueError) as error:  # pyarrow's are both
            raise files.Damaged(str(error)) from error
    hub = HUB.fullmatch(source.hub)
    try:
        return load_dataset(hub["name"], hub["config"], split=hub["split"] or "train", streaming=True)
    except (OSError, ValueError) as error:  # what `datasets` raises for names, configs, splits, and for want of a network
        raise ZambaError(f"cannot open the data set {source.hub}: {error}") from error


def _hub(name: str, hub: re.Match) -> list[Source]:
    parts = _load(Source("", hub=name)).num_shards
    stem = re.sub(r"[^\w.-]+", "-", name)
    return [Source(f"{stem}-{part:05d}", hub=name, part=part, parts=parts) for part in range(parts)]


def _table(source: Source) -> Iterator[Read]:
    table = _load(source)
    if source.parts > 1:
        table = table.shard(source.parts, source.part)
    rows = iter(table)
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # pyarrow, fsspec, the network: each raises its own kinds
            raise files.Damaged(f"{type(error).__name__}: {error}") from error
        number += 1
        yield f"row {number}", row
