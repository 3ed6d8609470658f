"""Sources to a set of shards, once: several processes, a manifest, and what is finished stays finished.

Every source writes its own shards; when it is done, its entry of the manifest lies beside them (NAME.json) until the whole set
is done. A run that was cut off begins again with the sources that were not.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.text.whole import replacing, settle
from zamba_lm.train.data import encode, sources
from zamba_lm.train.data.job import Options, run
from zamba_lm.train.data.shards import FORMAT, MANIFEST, TOKENIZER, fingerprint, read_manifest

__all__ = ["Options", "tokenise"]

Progress = Callable[[str, int, int, dict | None], None]
"""Told while it goes: the name of a source, bytes of it that are read and that it has (0: unknown), its entry once it is done."""


def tokenise(
    names: Iterable[str | Path],
    out: Path | str,
    *,
    tokenizer: Tokenizer | str | Path = "zamba2-pebble",
    options: Options | None = None,
    processes: int | None = 1,
    progress: Progress | None = None,
) -> dict:
    """Make the set ``out`` of files, folders, patterns and hub names (or add them to it); returns its manifest.

    processes: None means one a core. More than one are fresh interpreters, so a script that calls this needs its
    ``if __name__ == "__main__"``. Raises ZambaError for bad input, and where ``out`` was made with another tokenizer or options.
    """
    out, options = Path(out), options or Options()
    name, tokenizer = _tokenizer(tokenizer)
    todo = sources.find(names)
    head = {"format": FORMAT, "tokenizer": {"name": name, **fingerprint(tokenizer)}, "options": _plain(options)}
    out.mkdir(parents=True, exist_ok=True)
    done = _done(out, head)
    _refuse_changed(todo, done, out)
    fresh = [source for source in todo if source.name not in done]
    for source in todo:
        if source.name in done and progress:
            progress(source.name, source.size, source.size, done[source.name])
    for source, entry in _results(fresh, out, tokenizer, options, processes, progress or (lambda *told: None)):
        done[source.name] = {"name": source.name, **entry}
        _write(out / f"{source.name}.json", {**head, "entry": done[source.name]})
    if not any(entry["kind"] for entry in done.values()):
        for source in todo:  # so that other options may be tried on it
            (out / f"{source.name}.json").unlink(missing_ok=True)
        raise ZambaError(f"none of {len(todo)} sources holds a record that can be used, so {out} holds nothing")
    manifest = _manifest(head, [done[name] for name in sorted(done)], encode.dtype_for(tokenizer.vocab_size))
    tokenizer.save(out / TOKENIZER)
    _write(out / MANIFEST, manifest)
    for entry in manifest["sources"]:
        (out / f"{entry['name']}.json").unlink(missing_ok=True)
    return manifest


def _tokenizer(given: Tokenizer | str | Path) -> tuple[str, Tokenizer]:
    if isinstance(given, Tokenizer):
        return "given", given
    from zamba_lm.hub import resolve

    return str(given), Tokenizer.load(resolve(given))


def _plain(options: Options) -> dict:
    return json.loads(json.dumps(asdict(options)))


def _done(out: Path, head: dict) -> dict[str, dict]:
    """Entries of the sources that are finished, by name. ZambaError where they were made otherwise than asked for now."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json")) if path.name != MANIFEST]
    if (out / MANIFEST).exists():
        told.insert(0, read_manifest(out))
    entries: dict[str, dict] = {}
    for one in told:
        for key in ("format", "tokenizer", "options"):
            if _matters(one.get(key)) != _matters(head[key]):
                was, now = _difference(one.get(key), head[key])
                raise ZambaError(f"{out} was made with {key} {was}, not {now}: choose another folder")
        entries |= {entry["name"]: entry for entry in one.get("sources") or [one["entry"]]}
    return entries


def _matters(value: object) -> object:
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def _told(value: object) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _difference(was: object, now: object) -> tuple[str, str]:
    """Both as text; of options only those that differ."""
    if isinstance(was, dict) and isinstance(now, dict) and "sha256" not in now:
        keys = [key for key in now if was.get(key) != now[key]]
        was, now = {key: was.get(key) for key in keys}, {key: now[key] for key in keys}
    return _told(was), _told(now)


def _refuse_changed(todo: list[sources.Source], done: dict[str, dict], out: Path) -> None:
    for source in todo:
        entry = done.get(source.name)
        if entry and entry["size"] != source.size:
            raise ZambaError(
                f"{source} has {source.size} bytes now and had {entry['size']} when {out} was made: choose another folder"
            )


def _manifest(head: dict, entries: list[dict], dtype) -> dict:
    kinds = {entry["kind"]: entry["source"] for entry in entries if entry["kind"]}
    if len(kinds) > 1:
        raise ZambaError(f"sources of several kinds ({_told(kinds)}): make a set of each")
    return {**head, "kind": next(iter(kinds)), "dtype": dtype.name, "sources": entries}


def _write(path: Path, content: dict) -> None:
    with replacing(path) as beside, beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        settle(file)


# processes


def _results(fresh, out, tokenizer, options, processes, progress) -> Iterator[tuple[sources.Source, dict]]:
    processes = min(processes or os.cpu_count() or 1, len(fresh))
    if processes > 1:
        yield from _in_pool(fresh, out, tokenizer, options, processes, progress)
        return
    for source in fresh:
        entry = run(source, out, tokenizer, options, lambda seen, one=source: progress(one.name, seen, one.size, None))
        progress(source.name, source.size, source.size, entry)
        yield source, entry


def _in_pool(fresh, out, tokenizer, options, processes, progress) -> Iterator[tuple[sources.Source, dict]]:
    """Fresh interpreters, since threads of this one may hold locks that a fork would never see opened."""
    context, before = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    news = context.SimpleQueue()
    with ProcessPoolExecutor(processes, context, _enter, (news, tokenizer)) as pool:
        waiting = {pool.submit(_work, source, out, options): source for source in fresh}
        try:
            while waiting:
                ready, _ = wait(waiting, 0.1, FIRST_COMPLETED)
                while not news.empty():
                    progress(*news.get(), None)
                for result in ready:
                    source, entry = waiting.pop(result), result.result()
                    progress(source.name, source.size, source.size, entry)
                    yield source, entry
        except BaseException as error:
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ZambaError("a process ended without a word, perhaps for want of memory: take fewer processes") from error
            raise


def _enter(news, tokenizer: Tokenizer) -> None:
    global _NEWS, _TOKENIZER
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is answered once, by the parent
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _NEWS, _TOKENIZER = news, tokenizer


def _work(source: sources.Source, out: Path, options: Options) -> dict:
    last = 0.0

    def on_bytes(seen: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            _NEWS.put((source.name, seen, source.size))

    return run(source, out, _TOKENIZER, options, on_bytes)
