"""On-policy rejects: answers of the model itself, set against those it should have given."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

from zamba_lm.errors import ZambaError
from zamba_lm.model.checkpoint import read_json
from zamba_lm.text.chat import check
from zamba_lm.text.whole import replacing, settle
from zamba_lm.train.data import sources
from zamba_lm.train.data.records import read

Record = Mapping
CUT = "length"  # the finish reason of an answer that ran out of tokens


def differs(pair: Record, answer: str) -> bool:
    """Whether an answer says something other than the chosen one, letter case, spaces and final stops aside."""
    return _bones(answer) != _bones(pair["chosen"])


def write_rejects(
    llm,
    records: Iterable[Record],
    out: str | Path,
    params,
    *,
    samples: int = 1,
    batch: int = 1024,
    worse: Callable[[Record, str], bool] = differs,
    keep_cut: bool = True,
    on_batch: Callable[[int, Counter], None] | None = None,
) -> Counter:
    """Sample ``samples`` answers to the prompt of every record and write one pair for each that is ``worse`` than its chosen one.

    llm: a ``zamba_lm.LLM`` of the model to be tuned. records: preference pairs {"prompt", "chosen"} (a "rejected" is ignored) or
    chats {"messages"}, whose last assistant turn is the chosen answer. params: ``SamplingParams`` with a temperature and a seed;
    sample k uses seed + k, so that the same model writes the same file. keep_cut: also take answers that ran out of tokens.
    on_batch: told the records done and the counts so far.

    ``out`` is JSONL of {"prompt", "chosen", "rejected", "source", "record", "cut"}, which ``zamba_lm.train.data`` reads. Beside
    it stands ``out.progress``, from which a run that was cut off goes on behind its last complete batch; ZambaError where it was
    begun by another model, with other settings or for other records. Returns counts: pairs, same (not worse), empty, cut.
    """
    if params.temperature <= 0 or params.seed is None:
        raise ZambaError(
            f"rejects need a temperature above 0 and a seed, found temperature {params.temperature} and seed {params.seed}"
        )
    if llm.tokenizer.chat_template is None:
        raise ZambaError(f"{llm.folder} has no chat template, so nobody taught it to answer: name a model that sft made")
    made = {"model": str(llm.folder), **asdict(params), "stop": list(params.stop), "samples": samples, "keep_cut": keep_cut}
    out = Path(out)
    done, counts, last = _resume(out, _progress(out), made)
    if on_batch:
        on_batch(done, counts)
    pairs = enumerate(map(as_pair, records))
    _pass_over(pairs, done, last, out)
    with out.open("a", encoding="utf-8") as file:
        while chunk := list(islice(pairs, batch)):
            for k in range(samples):
                answers = llm.chat([pair["prompt"] for _, pair in chunk], replace(params, seed=params.seed + k))
                for line in _judged(chunk, answers, worse, keep_cut, counts):
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
            settle(file)
            done = chunk[-1][0] + 1
            last = _fingerprint(chunk[-1][1])
            _note(_progress(out), {"done": done, "last": last, "bytes": file.tell(), "counts": counts, "made": made})
            if on_batch:
                on_batch(done, counts)
    return counts


def read_pairs(names: Iterable[str | Path], *, bad_lines: str = "error") -> tuple[list[dict], Counter]:
    """The records of files, folders, patterns and hub names, as ``as_pair`` gives them, and reasons why some were left out.

    A record that says nothing of a source gets its file's name. ZambaError names file and line of a record that is no pair and no
    chat, unless ``bad_lines`` is "skip": then it is counted.
    """
    pairs, left_out = [], Counter()
    for source in sources.find(names):
        for where, record in sources.records(source):
            try:
                if isinstance(record, sources.BadLine):
                    raise ZambaError(str(record))
                pair = as_pair(record)
            except ZambaError as error:
                if bad_lines == "error":
                    raise ZambaError(f"{source} {where}: {error}; --bad-lines skip passes over such lines") from error
                left_out["bad lines"] += 1
                continue
            pairs.append({**pair, "source": pair["source"] or source.name})
    return pairs, left_out


def as_pair(record: Record) -> dict:
    """{"prompt": messages, "chosen": text, "source"} of a preference pair, of a chat that ends with the assistant, or of an
    instruction with its response."""
    if "chosen" not in record and (record.get("instruction") or "messages" in record):
        messages = read(record).messages if record.get("instruction") else record["messages"]
        check(messages)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise ZambaError(f"a chat of {len(messages)} messages does not end with an answer of the assistant: {_short(record)}")
        return {"prompt": list(messages[:-1]), "chosen": messages[-1]["content"], "source": record.get("source")}
    prompt = record.get("prompt")
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    chosen = _text(record.get("chosen"), prompt)
    if prompt is None or chosen is None:
        raise ZambaError(f'a record needs "prompt" and a "chosen" text, or "messages": {_short(record)}')
    check(prompt)
    return {"prompt": list(prompt), "chosen": chosen, "source": record.get("source")}


def _text(chosen: object, prompt: list | None) -> str | None:
    """What an answer says that is a text, or one message of the assistant, perhaps behind the prompt; None for anything else."""
    if isinstance(chosen, list):
        rest = chosen[len(prompt) :] if prompt and chosen[: len(prompt)] == prompt else chosen
        one = rest[0] if len(rest) == 1 and isinstance(rest[0], Mapping) else {}
        chosen = one.get("content") if one.get("role") == "assistant" else None
    return chosen if isinstance(chosen, str) else None


def _judged(chunk, answers, worse, keep_cut: bool, counts: Counter) -> Iterator[dict]:
    for (number, pair), answer in zip(chunk, answers, strict=True):
        text, cut = answer.text.strip(), answer.finish_reason == CUT
        fate = "empty" if not text else "cut" if cut and not keep_cut else "pairs" if worse(pair, text) else "same"
        counts[fate] += 1
        if fate == "pairs":
            yield {**pair, "rejected": text, "record": number, "cut": cut}


def _progress(out: Path) -> Path:
    return out.with_name(out.name + ".progress")


def _note(progress: Path, entry: dict) -> None:
    with replacing(progress) as beside:
        beside.write_text(json.dumps(entry), encoding="utf-8")


def _pass_over(pairs: Iterator[tuple[int, dict]], done: int, last: str | None, out: Path) -> None:
    """Skip the records that are done. ZambaError where the last of them is not the one that was answered last."""
    for number, pair in islice(pairs, done):
        if number + 1 == done and last in (None, _fingerprint(pair)):
            return
    if done:
        raise ZambaError(f"{out} holds answers to {done:,} records that are others or more than these; choose another file")


def _fingerprint(pair: Record) -> str:
    return sha256(json.dumps(pair, default=str).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _resume(out: Path, progress: Path, made: dict) -> tuple[int, Counter, str | None]:
    """Records done, counts so far, the fingerprint of the last record done. What stands in ``out`` behind the last complete batch
    is cut off."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if not progress.exists():
        if out.exists():
            raise ZambaError(f"{out} exists and no {progress.name} says how far it got; remove it or choose another file")
        _note(progress, {"done": 0, "bytes": 0, "counts": {}, "made": made})
        out.touch()
    entry = read_json(progress)
    for key, now in made.items():
        if (was := entry.get("made", made).get(key)) != now:
            raise ZambaError(f"{out} was begun with {key} {was}, not {now}; go on with that, or choose another file")
    if not out.exists() or out.stat().st_size < entry["bytes"]:
        raise ZambaError(f"{out} is shorter than {progress.name} says; remove both and begin again")
    os.truncate(out, entry["bytes"])
    return entry["done"], Counter(entry["counts"]), entry.get("last")


def _bones(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!?")


def _short(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, default=str)[:120]
