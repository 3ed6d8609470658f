"""Make the embedded model, zamba2-pebble: pretrain, anneal, sft, rejects of its own, dpo, int8 rows.

    python tools/make_pebble.py SETS OUT [--processes N] [--until STAGE] [--set STAGE.FIELD=VALUE ...]

SETS holds the sets pretrain, anneal and sft, as `zamba-lm data tokenise` writes them, and dpo.jsonl.xz: prompts with an answer to
choose, to which the tuned model writes answers to reject. Each stage is a command of zamba-lm, printed before it runs;
OUT/STAGE.txt keeps what it says. A stage that is done is passed over, one that was cut off goes on, so the same line can be given
again until OUT/zamba2-pebble is there.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLD = {"pretrain": 0.85, "anneal": 0.15}  # the mixture of pretraining, replayed while annealing
TEXT = {"pretrain": "pretrain", "anneal": "anneal"}
ALL = TEXT | {"sft": "sft:sft*"}  # the set sft also holds the prompts of the blind comparison, which nobody looks at here

# Fields by stage, beside preset=pebble. Learning rates: 5e-3 for rows of twice the preset's number.
SETTINGS: dict[str, dict[str, object]] = {
    "pretrain": {
        "data.sources": TEXT, "data.weights": OLD,
        "batch.tokens": 640e6, "batch.rows": 128, "optim.matrix_lr": 5e-3,
        "rate.kind": "linear", "rate.warmup": 0.01, "rate.decay_from": 0.5, "rate.floor": 0.5,
        "run.eval_bytes": 400_000, "run.save_every": 1000,
    },
    "anneal": {
        "data.sources": ALL, "data.weights": {"anneal": 0.9, "sft": 0.1}, "replay.weights": OLD,
        "batch.tokens": 360e6, "batch.rows": 128, "optim.matrix_lr": 3.75e-3, "rate.gamma": 0.5,
        "run.eval_bytes": 400_000, "run.save_every": 1000,
    },
    "sft": {
        "data.sources": ALL, "data.weights": {"sft": 0.5, "pretrain": 0.3, "anneal": 0.2}, "epochs": 0,
        "batch.tokens": 16e6, "batch.rows": 64, "batch.recompute": "none", "optim.lr": 2e-4, "optim.matrix_lr": 3e-4,
        "run.eval_bytes": 400_000,
    },
    "dpo": {"dpo.sft": 0.2, "dpo.beta": 0.1, "optim.lr": 1e-5},
}  # fmt: skip
REJECTS = (
    "--limit",
    "4000",
    "--max-tokens",
    "160",
    "--temperature",
    "0.9",
    "--top-p",
    "0.95",
    "--seed",
    "11",
    "--at-once",
    "256",
)


@dataclass(frozen=True)
class Step:
    """One command. ``made`` is there when it has run to its end; ``begun``, once it is there, asks for --resume."""

    name: str
    words: tuple[str, ...]
    made: Path
    begun: Path | None = None


def steps(sets: Path, out: Path, more: dict[str, list[str]]) -> Iterator[Step]:
    """The commands in their order. more: further FIELD=VALUE of a stage."""
    start = {"anneal": out / "pretrain", "sft": out / "anneal", "dpo": out / "sft"}
    for name, fields in SETTINGS.items():
        if name == "dpo":
            yield from _rejects(sets, out)
            fields = fields | {"data.sources": {"own": str(out / "own")}}
        else:
            fields = fields | {"data.folder": str(sets)}
        fields = fields | ({"start": str(start[name])} if name in start else {})
        pairs = [f"{key}={_text(value)}" for key, value in fields.items()] + more.get(name, [])
        yield _training(name, out / name, ["preset=pebble", f"out={out / name}", *pairs])
    shipped = out / "zamba2-pebble"
    yield Step("convert", ("convert", str(out / "dpo" / "model"), str(shipped), "--dtype", "int8"), shipped / "model.safetensors")


def _training(name: str, run: Path, pairs: list[str]) -> Step:
    words = ("train", name, *(word for pair in pairs for word in ("--set", pair)))
    return Step(name, words, run / "model" / "config.json", run / "recipe.json")


def _rejects(sets: Path, out: Path) -> Iterator[Step]:
    """Answers of the tuned model to the prompts of the pairs, and their set."""
    file = out / "own.jsonl"
    asked = ("data", "rejects", str(sets / "dpo.jsonl.xz"), "--model", str(out / "sft" / "model"), "--out", str(file), *REJECTS)
    yield Step("rejects", asked, out / "rejects.done")
    yield Step(
        "own", ("data", "tokenise", str(file), "--out", str(out / "own"), "--kind", "pairs"), out / "own" / "manifest.json"
    )


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def command(step: Step, processes: int) -> list[str]:
    """What is run: text is trained on by all processes, pairs and answers are one process's work."""
    many = processes > 1 and step.name in ("pretrain", "anneal", "sft")
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"] if many else []
    words = list(step.words)
    if step.begun and step.begun.is_file():
        words = [*words[:2], "--set", f"out={step.begun.parent}", "--resume"]
    return [sys.executable, *launch, "-m", "zamba_lm", *words]


def run(step: Step, out: Path, processes: int) -> None:
    """One command with its log; leaves with its exit code when it fails."""
    line, began = command(step, processes), time.monotonic()
    print(shlex.join(line), flush=True)
    with (out / f"{step.name}.txt").open("a") as log:
        code = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT).returncode
    print(f"{step.name}: exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
    if code:
        sys.exit(code)
    if not step.made.exists():
        step.made.touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="GPUs of this host for the stages on text")
    parser.add_argument("--until", metavar="STAGE", help="stop after pretrain, anneal, sft, rejects, own, dpo or convert")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="beside the settings above")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    more: dict[str, list[str]] = {}
    for item in args.set:
        stage, _, pair = item.partition(".")
        more.setdefault(stage, []).append(pair)
    for step in steps(args.sets, args.out, more):
        if not step.made.exists():
            run(step, args.out, args.processes)
        if step.name == args.until:
            break


if __name__ == "__main__":
    main()
