"""One source to its shards: what a worker process does."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import encode, files, sources, words
from zamba_lm.train.data.records import KINDS, Chat, Pair, Text, held_out, read
from zamba_lm.train.data.shards import SPLITS, writing

BATCH = 512  # texts encoded at a time,
LETTERS = 1 << 22  # or as many as have so many letters together
EXAMPLES = 3  # of bad lines that are told


@dataclass(frozen=True)
class Options:
    """How records become documents. All of it is written into the manifest, and a set is made with one choice only."""

    kind: str = "auto"
    """text, chat or pairs; auto takes what the first record is."""
    hold_out: tuple[str, ...] = ()
    """Patterns of shard names that are held out as a whole, such as "pretrain-15*"."""
    share: float = 0.0
    """Of the other documents, this share is held out too, chosen by a hash of the text (of the first question, in chats)."""
    bad_lines: str = "error"
    """error, or skip: pass over lines that hold no record, and count them."""
    damaged: str = "keep"
    """keep what can be read of a broken archive, or error."""
    clean: tuple[str, ...] = ()
    """Sources (the field of that name) whose documents with crude words are left out, save in files held out as a whole."""
    text_field: str = "text"
    source_field: str = "source"

    def __post_init__(self):
        for name, known in (("kind", ("auto", *KINDS)), ("bad_lines", ("error", "skip")), ("damaged", ("keep", "error"))):
            value = getattr(self, name)
            if value not in known:
                raise ZambaError(f"{name} is {value!r}{nearest(str(value), known)}, expected one of {', '.join(known)}")
        if not 0 <= self.share < 1:
            raise ZambaError(f"share is {self.share}, expected the part that is held out, at least 0 and less than 1")


@dataclass
class Tally:
    """What happened to the records of a source."""

    records: int = 0
    skipped: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def bad(self, where: str, why: str, options: Options) -> None:
        if options.bad_lines == "error":
            raise ZambaError(f"{where}: {why} (bad_lines=skip, or --bad-lines skip, passes over such lines and counts them)")
        self.skipped["bad lines"] += 1
        if self.skipped["bad lines"] <= EXAMPLES:
            self.notes.append(f"skipped {where}: {why}")


def run(
    source: sources.Source, out: Path, tokenizer: Tokenizer, options: Options, on_bytes: Callable[[int], None] | None = None
) -> dict:
    """Write the shards of one source; returns its entry of the manifest. Nothing is left behind where it fails."""
    tally, writers = Tally(), {}
    dtype = encode.dtype_for(tokenizer.vocab_size)
    kind = None
    with ExitStack() as opened:
        for meaning, origin, document in _documents(meanings(source, options, tally, on_bytes), tokenizer, options, tally):
            kind, split = meaning.kind, _split(source, meaning, options)
            if split not in writers:
                writers[split] = opened.enter_context(writing(out, source.name, split, dtype, kind))
            writers[split].add(document, origin)
    lines = [writers[split].line() for split in SPLITS if split in writers]
    told = {"source": source.path.name if source.path else str(source), "size": source.size, "kind": kind}
    return {**told, "records": tally.records, "skipped": dict(tally.skipped), "notes": tally.notes, "shards": lines}


Meaning = tuple[str, Text | Chat | Pair, str]  # where it stands, what it says, where it comes from


def meanings(source: sources.Source, options: Options, tally: Tally, on_bytes=None) -> Iterator[Meaning]:
    """Records that say something, all of one kind; the others are counted or, if so chosen, raise."""
    kind = None if options.kind == "auto" else options.kind
    clean = not _as_a_whole(source, options)
    for place, record in _whole(source, options, tally, on_bytes):
        where = f"{source} {place}"
        tally.records += 1
        try:
            if isinstance(record, sources.BadLine):
                raise ZambaError(str(record))
            meaning = read(record, text_field=options.text_field)
            kind = kind or meaning.kind
            if meaning.kind != kind:
                raise ZambaError(f"a record of kind {meaning.kind} in a set of kind {kind}")
        except ZambaError as error:
            tally.bad(where, str(error), options)
            continue
        origin = str(record.get(options.source_field) or source.name)
        if clean and origin in options.clean and words.crude(meaning.words()):
            tally.skipped["crude words"] += 1
        else:
            yield where, meaning, origin


def _whole(source: sources.Source, options: Options, tally: Tally, on_bytes) -> Iterator[sources.Read]:
    """Records up to the end, or up to where a damaged file can be read."""
    try:
        yield from sources.records(source, on_bytes)
    except files.Damaged as error:
        what = f"{source} is damaged: {tally.records} records can be read before it breaks off ({error})"
        if options.damaged == "error":
            raise ZambaError(f"{what}; fetch it again, or take those with damaged=keep") from error
        tally.notes.append(what)


def _documents(found: Iterator[Meaning], tokenizer: Tokenizer, options: Options, tally: Tally) -> Iterator[tuple]:
    """Meaning, origin and tokens of each record, in order; texts are encoded many at a time."""
    waiting: list[Meaning] = []
    letters = 0
    for where, meaning, origin in found:
        if meaning.kind == "text":
            waiting.append((where, meaning, origin))
            letters += len(meaning.text)
            if len(waiting) == BATCH or letters > LETTERS:
                yield from _encoded(waiting, tokenizer)
                waiting, letters = [], 0
            continue
        try:
            yield meaning, origin, encode.document(tokenizer, meaning)
        except ZambaError as error:
            tally.bad(where, str(error), options)
    yield from _encoded(waiting, tokenizer)


def _encoded(waiting: list[Meaning], tokenizer: Tokenizer) -> Iterator[tuple]:
    documents = encode.documents(tokenizer, [meaning for _, meaning, _ in waiting])
    return ((meaning, origin, document) for (_, meaning, origin), document in zip(waiting, documents))


def _split(source: sources.Source, meaning: Text | Chat | Pair, options: Options) -> str:
    out = _as_a_whole(source, options) or (options.share and held_out(meaning.key, options.share))
    return "held_out" if out else "train"


def _as_a_whole(source: sources.Source, options: Options) -> bool:
    """Whether the whole source is held out; nothing is cleaned out of it, so that measures stay comparable."""
    return any(fnmatchcase(source.name, pattern) for pattern in options.hold_out)
