"""``zamba-lm data rejects``: what a model answers, set against what it should have."""

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from zamba_lm.cli import options as o
from zamba_lm.cli import terminal
from zamba_lm.errors import ZambaError

BAD_LINES = ("error", "skip")


def rejects(
    sources: Annotated[list[str], typer.Argument(metavar="SRC...", help="Files, folders, 'patterns*', or hub names.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL to write; one that was begun is gone on with.")],
    model: o.Model = "zamba2-pebble",
    revision: o.Revision = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    backend: o.Backend = "auto",
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Answers to every prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens of an answer at most.")] = 256,
    temperature: Annotated[float, typer.Option(metavar="T", help="Above 0: rejects are drawn, not chosen.")] = 0.8,
    top_k: Annotated[int, typer.Option(metavar="K", help="Only the K most likely tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(metavar="P", help="Only the likeliest tokens that hold probability P.")] = 0.95,
    min_p: Annotated[float, typer.Option(metavar="P", help="Only tokens at least P times as likely as the likeliest.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same answers; sample k takes N + k.")] = 0,
    drop_cut: Annotated[bool, typer.Option("--drop-cut", help="Leave out answers that ran out of tokens.")] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N records.")] = None,
    bad_lines: Annotated[
        str, typer.Option(metavar="DO", help="error: stop at a line that is no pair and no chat; skip: count it.")
    ] = "error",
    at_once: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts answered at a time; more need more memory.")] = 64,
    save_every: Annotated[int, typer.Option(metavar="N", min=1, help="Records between saves.")] = 256,
) -> None:
    """Let a model answer, and set its answers against the right ones: preference pairs for DPO.

    Records are {"prompt", "chosen"} (what they reject is not read), {"messages": [...]} or {"instruction", "response"}; the last
    answer of the assistant is the chosen one. An answer that says the same is no pair. The model is the one that is to be tuned:
    then DPO is shown what it really says. After an interruption, give the same command again.

    \b
    Examples:
      zamba-lm data rejects chats.jsonl --model runs/sft/model --out on-policy.jsonl
      zamba-lm data rejects pairs.jsonl.xz --model runs/sft/model --out on-policy.jsonl --samples 2 --temperature 1
      zamba-lm data tokenise on-policy.jsonl --out sets/on-policy --share 0.02
      zamba-lm train dpo --set start=runs/sft/model --set out=runs/dpo --set data.sources.own=sets/on-policy
    """
    from zamba_lm.engine.request import SamplingParams
    from zamba_lm.hub import nearest
    from zamba_lm.llm import LLM
    from zamba_lm.train.tuning.rejects import read_pairs, write_rejects

    if bad_lines not in BAD_LINES:
        raise ZambaError(f"--bad-lines is {bad_lines!r}{nearest(bad_lines, BAD_LINES)}, expected error or skip")
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    pairs, left_out = read_pairs(sources, bad_lines=bad_lines)
    pairs = pairs[:limit]
    if not pairs:
        raise ZambaError(f"{', '.join(sources)} hold no record with an answer to set others against")
    llm = LLM(model, revision=revision, device=device, dtype=dtype, backend=backend, max_batch=at_once)
    with _told(len(pairs)) as on_batch:
        counts = write_rejects(
            llm, pairs, out, params, samples=samples, batch=save_every, keep_cut=not drop_cut, on_batch=on_batch
        )
    print(f"{out}: {_counted(counts + left_out)}")


OTHERS = {
    "same": "answers like the chosen one",
    "empty": "empty answers",
    "cut": "answers cut off and dropped",
    "bad lines": "lines left out",
}


def _counted(counts) -> str:
    return ", ".join([f"{counts['pairs']:,} pairs", *(f"{counts[key]:,} {says}" for key, says in OTHERS.items() if counts[key])])


@contextmanager
def _told(total: int):
    """A bar on a terminal, a line a save elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, counts: terminal.say(f"{done:,} of {total:,} records: {_counted(counts)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("records, {task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True, markup=False)) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda done, counts: bar.update(task, completed=done, description=_counted(counts))
