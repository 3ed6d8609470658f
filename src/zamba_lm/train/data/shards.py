"""A set of documents on disk: entries end to end in flat files, a table of the documents, a manifest that says what it all is.

    SET/manifest.json             kind, tokenizer, and for every source its counts, its notes and its shards
    SET/tokenizer/                the tokenizer itself, with its chat template
    SET/NAME.train.ids            entries (encode.py), little-endian uint16 or uint32, nothing else
    SET/NAME.train.docs.npy       one row a document: tokens, targets, bytes of text, source
    SET/NAME.held_out.*           the same for what is held out

Bytes are those of the text, or of the words that are targets, in UTF-8. Pairs are laid down as prompt, chosen, rejected, without
marks; their table has the lengths of the first two.
"""

import errno
import hashlib
import json
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.text.whole import replacing, settle
from zamba_lm.train.data import encode

FORMAT = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"  # the folder of a set that holds the tokenizer that made it
SPLITS = ("train", "held_out")
DOCUMENT = np.dtype([("tokens", "<u4"), ("targets", "<u4"), ("bytes", "<u4"), ("source", "<u2")])
PAIR = np.dtype([*DOCUMENT.descr, ("prompt", "<u4"), ("chosen", "<u4")])


def table_of(kind: str) -> np.dtype:
    return PAIR if kind == "pairs" else DOCUMENT


def fingerprint(tokenizer: Tokenizer) -> dict:
    """What two tokenizers must share for the same text to become the same ids: size and hash.

    Hashed are the bytes of every id, which ids control (their names may differ: instruct models rename two), and how some
    text is split.
    """
    digest = hashlib.sha256()
    for index in range(tokenizer.vocab_size):
        digest.update(_token(tokenizer, index) + b"\0")
    digest.update(repr((sorted(tokenizer.special_ids), tokenizer.bos_id, tokenizer.eos_ids[:1])).encode())
    digest.update(repr(tokenizer.encode(PROBE, bos=False)).encode())
    return {"sha256": digest.hexdigest(), "vocab_size": tokenizer.vocab_size}


PROBE = "It's 3.14159,\tisn't it?  def f(x):\n    return x**2  # naïve façade, 中文 and 🙂 in antidisestablishmentarianism"


def _token(tokenizer: Tokenizer, index: int) -> bytes:
    if index in tokenizer.special_ids:
        return b"<control>"
    try:
        return tokenizer.token_bytes(index)
    except ZambaError:
        return b"<none>"  # a gap in the vocabulary


class Writer:
    """One shard while it is written: entries go to ``file`` at once, the table is kept until the end."""

    def __init__(self, name: str, split: str, file: BinaryIO, dtype: np.dtype, kind: str):
        self._file, self._dtype, self._kind = file, dtype.newbyteorder("<"), kind
        self._head, self._rows, self._crc, self._sources = {"name": name, "split": split}, [], 0, {}

    def add(self, document: encode.Document, source: str) -> None:
        """One document of a source, with the further columns of its table."""
        data = document.entries.astype(self._dtype, copy=False).tobytes()
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        origin = self._sources.setdefault(source, len(self._sources))
        self._rows.append((len(document.entries), document.targets, document.n_bytes, origin, *document.parts))

    @cached_property
    def table(self) -> np.ndarray:
        """A row a document, once all are there."""
        return np.array(self._rows, table_of(self._kind))

    def line(self) -> dict:
        """What the manifest says of the shard."""
        table = self.table
        sums = {key: int(table[key].sum(dtype=np.int64)) for key in ("tokens", "targets", "bytes")}
        return {**self._head, "documents": len(table), **sums, "crc32": self._crc, "sources": list(self._sources)}


@contextmanager
def writing(folder: Path, name: str, split: str, dtype: np.dtype, kind: str) -> Iterator[Writer]:
    """A shard to add documents to. At the end both files are on the disk and in their places; where writing fails, neither."""
    with replacing(folder / f"{name}.{split}.ids") as ids, replacing(folder / f"{name}.{split}.docs.npy") as docs:
        with ids.open("wb") as file:
            writer = Writer(name, split, file, dtype, kind)
            yield writer
            settle(file)
        with docs.open("wb") as file:
            np.save(file, writer.table)
            settle(file)


def read_manifest(folder: Path | str) -> dict:
    """The manifest of a set; ZambaError where there is none, or one of another format."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ZambaError(f"{folder} is no tokenised set (it has no {MANIFEST}): make one with zamba-lm data tokenise")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ZambaError(f"{path} is not valid JSON ({error}): tokenise the set again") from error
    if manifest.get("format") != FORMAT:
        raise ZambaError(f"{path} has format {manifest.get('format')}, this version reads {FORMAT}: tokenise the set again")
    return manifest


def holds(folder: Path | str, split: str, *, only: str = "*") -> bool:
    """Whether a set has anything of a split in shards whose name matches ``only``. ZambaError for a folder that is no set."""
    return any(fnmatchcase(line["name"], only) for line in _lines(read_manifest(folder), split))


def _lines(manifest: dict, split: str) -> list[dict]:
    return [line for source in manifest["sources"] for line in source["shards"] if line["split"] == split]


class Shards:
    """The documents of one split of a set, in the order of the manifest, read through memory maps."""

    def __init__(self, folder: Path, manifest: dict, split: str, lines: list[dict]):
        self.folder, self.split, self.kind, self.tokenizer = folder, split, manifest["kind"], manifest["tokenizer"]
        self.lines = lines
        self.dtype = np.dtype(manifest["dtype"])
        self.mark = encode.mark(self.dtype)
        self.arrays = [_entries(folder, line, self.dtype) for line in lines]
        tables = [_table(folder, line, self.kind) for line in lines]
        self.names = tuple(dict.fromkeys(name for line in lines for name in line["sources"]))
        self.table = np.concatenate(tables)
        self.lengths = self.table["tokens"].astype(np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])  # of documents, counted through all shards
        self.bounds = [0, *accumulate(map(len, self.arrays))]  # of shards, counted likewise
        own = [np.array([self.names.index(name) for name in line["sources"]]) for line in lines]
        self.source = np.concatenate([ids[table["source"]] for ids, table in zip(own, tables)])

    @staticmethod
    def open(folder: Path | str, split: str = "train", *, only: str = "*", tokenizer: Tokenizer | None = None) -> "Shards":
        """The documents of a split ("train" or "held_out"), of the shards whose name matches ``only``.

        Raises ZambaError for a folder that is no set, an empty choice, files that do not fit the manifest, and a ``tokenizer``
        other than the one that made the set.
        """
        folder, manifest = Path(folder), read_manifest(folder)
        if split not in SPLITS:
            raise ZambaError(f"unknown split {split!r}{nearest(split, SPLITS)}, expected train or held_out")
        every = _lines(manifest, split)
        lines = [line for line in every if fnmatchcase(line["name"], only)]
        if not lines:
            known = ", ".join(line["name"] for line in every[:8]) or "none"
            raise ZambaError(f"{folder} has no {split} shard {only!r}{nearest(only, [s['name'] for s in every])}; there: {known}")
        shards = Shards(folder, manifest, split, lines)
        if tokenizer is not None:
            shards.refuse_other(tokenizer)
        return shards

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"Shards({str(self.folder)!r}, {self.split!r}, {len(self)} documents, {self.tokens} tokens)"

    @property
    def tokens(self) -> int:
        return self.bounds[-1]

    @cached_property
    def digest(self) -> str:
        """Changes when the documents do."""
        told = [[line[key] for key in ("name", "split", "documents", "tokens", "crc32")] for line in self.lines]
        return hashlib.sha256(json.dumps([self.tokenizer["sha256"], told]).encode()).hexdigest()

    def read(self, start: int, length: int) -> np.ndarray:
        """Entries [start, start + length) of one document, a view of the file."""
        shard = bisect_right(self.bounds, start) - 1
        first = start - self.bounds[shard]
        return self.arrays[shard][first : first + length]

    def document(self, index: int) -> np.ndarray:
        """Entries of one document, a view of the file."""
        return self.read(int(self.starts[index]), int(self.lengths[index]))

    def refuse_other(self, tokenizer: Tokenizer) -> None:
        """Raise ZambaError unless this tokenizer writes the ids that stand here."""
        refuse_other(self.folder, self.tokenizer, tokenizer)

    def refuse_model(self, vocab_size: int) -> None:
        """Raise ZambaError for a model whose vocabulary lacks ids that stand here."""
        if vocab_size < self.tokenizer["vocab_size"]:
            raise ZambaError(
                f"the model knows {vocab_size} tokens, {self.folder} was made with {_named(self.tokenizer)}: tokenise the texts "
                "again with the model's tokenizer"
            )


def refuse_other(folder: Path | str, made_with: dict, tokenizer: Tokenizer) -> None:
    """Raise ZambaError unless this tokenizer writes the ids of the set ``folder``, whose manifest says ``made_with``."""
    given = fingerprint(tokenizer)
    if given["sha256"] != made_with["sha256"]:
        raise ZambaError(
            f"{folder} was made with the tokenizer {_named(made_with)}, not with this one, {_named(given)}: "
            "tokenise the texts again with the model's tokenizer"
        )


def _named(told: dict) -> str:
    return f"{told.get('name') or 'given'} ({told['vocab_size']} tokens, sha256 {told['sha256'][:12]})"


def _entries(folder: Path, line: dict, dtype: np.dtype) -> np.ndarray:
    path = folder / f"{line['name']}.{line['split']}.ids"
    there, expected = path.stat().st_size if path.is_file() else 0, line["tokens"] * dtype.itemsize
    if there != expected:
        raise ZambaError(f"{path} has {there} bytes, the manifest says {expected}: copy or tokenise it again")
    try:
        return np.asarray(np.memmap(path, dtype, "r"))  # a plain view: slicing a memmap costs ten times as much
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise ZambaError(f"every shard of {folder} is an open file, and there may be no more of them: raise ulimit -n") from error


def _table(folder: Path, line: dict, kind: str) -> np.ndarray:
    path = folder / f"{line['name']}.{line['split']}.docs.npy"
    try:
        table = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ZambaError(f"cannot read {path} ({error}): copy or tokenise it again") from error
    fits = table.dtype == table_of(kind) and len(table) == line["documents"]
    if not fits or int(table["tokens"].sum(dtype=np.int64)) != line["tokens"]:
        raise ZambaError(f"{path} does not fit the manifest's {line['documents']} documents: copy or tokenise it again")
    return table
