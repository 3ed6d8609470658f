"""``zamba-lm data``: texts, chats and preference pairs to sets of token ids, a look into such sets, and answers to learn from."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from zamba_lm.cli import terminal
from zamba_lm.cli.rejects import rejects

app = typer.Typer(
    help="Turn texts, chats and preference pairs into sets of token ids for training, once, and look into such sets; "
    "have a model write the answers that it shall learn to avoid.",
    epilog="zamba-lm data COMMAND --help shows examples. docs/data.md explains the forms of records and the files of a set.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Set = Annotated[Path, typer.Argument(metavar="SET", help="Folder that zamba-lm data tokenise wrote.")]


@app.command()
def tokenise(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help="Files, folders, 'patterns*', or hub names.")],
    out: Annotated[Path, typer.Option(metavar="SET", help="Folder to write; one with a set of the same making is added to.")],
    tokenizer: Annotated[
        str, typer.Option(metavar="NAME", help="Folder or name of the model to train: its tokenizer and chat template.")
    ] = "zamba2-pebble",
    kind: Annotated[str, typer.Option(metavar="KIND", help="text, chat, pairs, or auto: what the first record is.")] = "auto",
    hold_out: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Hold out files of such names, such as 'part-15*'; repeatable.")
    ] = None,
    share: Annotated[
        float, typer.Option(metavar="X", help="Hold out this part of the documents, such as 0.01, by a hash of the text.")
    ] = 0.0,
    bad_lines: Annotated[
        str, typer.Option(metavar="DO", help="error: stop at a line without a record; skip: count it.")
    ] = "error",
    damaged: Annotated[str, typer.Option(metavar="DO", help="keep what can be read of a broken archive, or error.")] = "keep",
    clean: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Leave out this source's texts with crude words; repeatable.")
    ] = None,
    text_field: Annotated[str, typer.Option(metavar="FIELD", help="Where the text of a record stands.")] = "text",
    source_field: Annotated[str, typer.Option(metavar="FIELD", help="Where a record says where it comes from.")] = "source",
    processes: Annotated[int, typer.Option(metavar="N", min=0, help="Sources at a time; 0 is one a core.")] = 0,
) -> None:
    """Turn records into a set of token ids that training reads without further work.

    A record is a line of JSON, or a row of a table: {"text": ...}, {"messages": [{"role", "content"}, ...]}, {"instruction",
    "response"}, or {"prompt", "chosen", "rejected"}. Files are .jsonl, also .xz, .gz or .zst, and .parquet; a data set of the
    Hugging Face hub is OWNER/NAME[/CONFIG][:SPLIT]. What is finished stays finished: after an interruption, give the same
    command again.

    \b
    Examples:
      zamba-lm data tokenise text/*.jsonl.xz --out sets/text --hold-out 'part-15*'
      zamba-lm data tokenise chats.jsonl --out sets/chat --share 0.01 --bad-lines skip
      zamba-lm data tokenise owner/name:train --out sets/web --text-field content --processes 4
    """
    from zamba_lm.train.data.sets import Options
    from zamba_lm.train.data.sets import tokenise as run

    options = Options(
        kind=kind, hold_out=tuple(hold_out or ()), share=share, bad_lines=bad_lines, damaged=damaged, clean=tuple(clean or ()),
        text_field=text_field, source_field=source_field,
    )  # fmt: skip
    with _Bar() as bar:
        manifest = run(sources, out, tokenizer=tokenizer, options=options, processes=processes or None, progress=bar)
    lines = [line for source in manifest["sources"] for line in source["shards"]]
    for split in ("train", "held_out"):
        mine = [line for line in lines if line["split"] == split]
        if mine:
            print(
                f"{split}: {_sum(mine, 'documents'):,} documents, {_sum(mine, 'tokens'):,} tokens, {_sum(mine, 'bytes'):,} bytes"
            )


@app.command()
def info(
    folder: Set,
    row: Annotated[int, typer.Option(metavar="N", help="Tokens of a row, to show how well documents pack.")] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a set holds, source by source, what was skipped and why, and how it packs into rows.

    \b
    Examples:
      zamba-lm data info sets/text
      zamba-lm data info sets/chat --row 1024 --json
    """
    from zamba_lm.train.data import check
    from zamba_lm.train.data.shards import read_manifest

    manifest, splits = read_manifest(folder), check.both(folder)
    facts = {
        "kind": manifest["kind"],
        "tokenizer": manifest["tokenizer"],
        "sources": [line for shards in splits for line in check.by_source(shards)],
        "files": [{key: source[key] for key in ("source", "records", "skipped", "notes")} for source in manifest["sources"]],
        "packing": {s.split: check.packed(s, row) for s in splits if s.kind != "pairs"},
    }
    if as_json:
        import json

        print(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(folder, facts)


@app.command()
def check(
    folder: Set,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Also make sure that this model's tokenizer is the one of the set.")
    ] = None,
    show: Annotated[int, typer.Option(metavar="N", min=0, help="Print N documents of each split; needs --tokenizer.")] = 0,
) -> None:
    """Read a set from end to end and compare it with its manifest: sizes, checksums, ids.

    With --show, documents are printed as the model sees them: what it learns to say stands between « and ».

    \b
    Examples:
      zamba-lm data check sets/text
      zamba-lm data check sets/chat --tokenizer zamba2-pebble --show 3
    """
    from zamba_lm.errors import ZambaError
    from zamba_lm.train.data import check as look

    if show and tokenizer is None:
        raise ZambaError("--show needs --tokenizer, the model whose tokenizer made the set")
    own = _tokenizer(tokenizer) if tokenizer else None
    for shards in look.both(folder):
        if own:
            shards.refuse_other(own)
        with terminal.busy(f"reading {folder} ..."):
            look.check(shards)
        print(
            f"{shards.split}: {len(shards):,} documents, {shards.tokens:,} tokens in {len(shards.lines)} shards, all as written"
        )
        for index in range(min(show, len(shards))):
            source = shards.names[shards.source[index]]
            terminal.write([f"\n--- {index}, from {source}\n", look.shown(shards, own, index), "\n"])


app.command()(rejects)


def _tokenizer(name: str):
    from zamba_lm.hub import resolve
    from zamba_lm.text.tokenizer import Tokenizer

    return Tokenizer.load(resolve(name))


def _sum(lines: list[dict], key: str) -> int:
    return sum(line[key] for line in lines)


def _print(folder: Path, facts: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200)
    made = facts["tokenizer"]
    console.print(f"{folder}: {facts['kind']}, tokenizer {made['name']} ({made['vocab_size']:,} tokens, {made['sha256'][:12]})\n")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("source", "split"):
        table.add_column(column)
    for column in ("documents", "tokens", "targets", "bytes"):
        table.add_column(column, justify="right")
    for row in facts["sources"]:
        table.add_row(row["source"], row["split"], *(f"{row[key]:,}" for key in ("documents", "tokens", "targets", "bytes")))
    console.print(table)
    for split, told in facts["packing"].items():
        rows = f"{told['rows']:,} rows of {told['row']:,} tokens"
        longer = f"; longer than a row: {told['cut']:,} cut, {told['dropped']:,} dropped" if told["pack"] == "whole" else ""
        console.print(f"\n{split} packs ({told['pack']}) into {rows}, {told['waste']:.2%} of them padding{longer}")
    for file in facts["files"]:
        for what, count in file["skipped"].items():
            console.print(f"{file['source']}: {count:,} of {file['records']:,} records left out: {what}")
        for note in file["notes"]:
            console.print(f"{file['source']}: {note}")


class _Bar:
    """Progress of every source on a terminal, a line for each finished one elsewhere; notes as they come."""

    def __enter__(self):
        self._bar, self._tasks = None, {}
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True, markup=False))
            self._bar.start()
        return self

    def __exit__(self, *trouble) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, name: str, seen: int, size: int, entry: dict | None) -> None:
        if self._bar:
            task = self._tasks.get(name)
            if task is None:
                task = self._tasks[name] = self._bar.add_task(name, total=size or None)
            self._bar.update(task, completed=seen)
        if entry:
            self._tell(name, entry)

    def _tell(self, name: str, entry: dict) -> None:
        lines = [f"warning: {note}" for note in entry["notes"]]
        if not self._bar or not entry["shards"]:
            tokens = _sum(entry["shards"], "tokens")
            left_out = "".join(f", {count:,} left out ({what})" for what, count in entry["skipped"].items())
            lines.append(f"{name}: {entry['records']:,} records, {tokens:,} tokens{left_out}")
        for line in lines:
            self._bar.console.print(line) if self._bar else terminal.say(line)
