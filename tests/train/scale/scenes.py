"""Runs of ``pretrain`` in one and in two processes that talk through gloo; what they logged, as JSON.

    python -m tests.train.scale.scenes SCENE FOLDER

Imports cost seconds, so this process does them once and every run is a fork of it, as in ``tests/train/trainer/processes.py``.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

import zamba_lm.train.tuning.job  # noqa: F401  imported here, once
from tests.train.trainer.processes import child, kill_at, names, settings, wait, world
from tests.train.trainer.tiny import corpus, log, recipe
from zamba_lm.train.data import tokenise
from zamba_lm.train.data.job import Options
from zamba_lm.train.recipes.origin import loaded
from zamba_lm.train.recipes.start import prepare
from zamba_lm.train.trainer.journal import read

torch.set_num_threads(1)
SPREAD, SPLIT, WHOLE = "scale.shard=fsdp", "scale.tensor=2", "scale.shard=none"


def run(out: Path, shards: Path, *more: str, processes: int, resume: bool = False, **how) -> list[int]:
    """Exit codes of the processes of one run."""
    return [wait(pid) for pid in started(out, shards, *more, processes=processes, resume=resume, **how)]


def started(out: Path, shards: Path, *more: str, processes: int, resume: bool = False, **how) -> list[int]:
    pairs = [*settings(out, shards), "optim.lr=1e-2", *more]
    return [child(pairs, resume=resume, world=place, **how) for place in places(processes)]


def places(processes: int) -> list[dict | None]:
    """What torchrun tells each of them."""
    if processes == 1:
        return [None]
    places.port += 1
    return [world(rank, str(places.port)) for rank in range(processes)]


def all_of(runs: list[tuple[str, list[str]]], processes: int) -> list[int]:
    """Exit codes of processes that run one recipe after the other."""
    sys.stdout.flush()
    pids = []
    for place in places(processes):
        pids.append(os.fork())
        if not pids[-1]:
            os.environ.update(place or {})
            os._exit(in_turn(runs))
    return list(map(wait, pids))


def in_turn(runs: list[tuple[str, list[str]]]) -> int:
    try:
        for name, pairs in runs:
            recipe(name).run(prepare(name, pairs, resume=False, write=True)[0])
        return 0
    except BaseException:
        traceback.print_exc()
        return 1


places.port = 20000 + os.getpid() * 7 % 20000


def curves(folder: Path) -> dict:
    """One process, two with whole models, two that share one and measure it on their way, by either optimizer; two that split
    layers, all along and from a checkpoint on."""
    shards, found = corpus(folder), {}
    runs = {
        "adamw-one": (1, WHOLE), "adamw-two": (2, WHOLE), "adamw-spread": (2, SPREAD, "run.eval_every=2"),
        "muon-one": (1, WHOLE), "muon-spread": (2, SPREAD), "adamw-split": (2, SPLIT),
    }  # fmt: skip
    for name, (processes, *more) in runs.items():
        codes = run(folder / name, shards, *more, f"optim.name={name.split('-')[0]}", "optim.matrix_lr=1e-2", processes=processes)
        found[name] = {"codes": codes, "log": log(folder / name), "bits": bits(folder / name)}
    cut(folder / "adamw-split", folder / "again", 6)
    codes = run(folder / "again", shards, SPLIT, "optim.matrix_lr=1e-2", processes=2, resume=True)
    return found | {"again": {"codes": codes, "log": log(folder / "again")}}


def bits(out: Path) -> dict[int, float]:
    """Bits per byte of held-out text by step."""
    return {entry["step"]: entry["eval_bpb_text"] for entry in read(out / "log.jsonl") if "eval_bpb_text" in entry}


def going_on(folder: Path) -> dict:
    """Two processes that are killed twice, once in the middle, once while they save; beside that a calm run."""
    shards = corpus(folder)
    assert run(folder / "calm", shards, SPREAD, processes=2) == [0, 0]
    killed, torn = folder / "killed", []
    moments = (lambda: len(log(killed)) >= 5, lambda: any(killed.glob(".saving-*")))
    for moment in moments:
        pids = started(killed, shards, SPREAD, processes=2, resume=True, slow=0.1)
        kill_at(pids[0], moment)
        kill_at(pids[1], lambda: True)
        list(map(wait, pids))
        torn.append(sorted(path.name for path in killed.glob(".saving-*")))
    codes = run(killed, shards, SPREAD, processes=2, resume=True)
    return {"codes": codes, "torn": torn, "left": names(killed), "calm": log(folder / "calm"), "killed": log(killed)}


def divided_anew(folder: Path) -> dict:
    """A run of two processes from its first checkpoint on in one, and from the second on in two that split layers; one that
    begins with its weights."""
    shards = corpus(folder)
    assert run(folder / "two", shards, SPREAD, "run.keep=0", processes=2) == [0, 0]
    cut(folder / "two", folder / "one", 3)
    codes = run(folder / "one", shards, SPREAD, "run.keep=0", processes=1, resume=True)
    cut(folder / "one", folder / "again", 6)
    codes += run(folder / "again", shards, WHOLE, SPLIT, processes=2, resume=True)
    codes += run(folder / "plain", shards, WHOLE, f"start={folder / 'two'}", "batch.tokens=64", processes=1)
    codes += run(folder / "again", shards, WHOLE, "scale.tensor=1", processes=1, resume=True)
    same = [torch.equal(*pair) for pair in zip(*(weights(folder / name) for name in ("again/checkpoint-9", "again/model")))]
    return {"codes": codes, "same": all(same), "weights": len(same)} | {
        name: log(folder / name) for name in ("two", "one", "again", "plain")
    }


def cut(old: Path, new: Path, step: int) -> None:
    """A copy of a run as it was when the checkpoint of ``step`` was the newest, but for its log, which has more."""
    shutil.copytree(old, new)
    for path in new.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)


def weights(folder: Path) -> list[torch.Tensor]:
    return [p.detach() for p in loaded(folder, device="cpu", dtype=torch.float32).parameters()]


def trouble(folder: Path) -> dict:
    """SIGTERM for one of two processes, which save behind its step and leave; then a disk that is full, on to the end."""
    shards, out = corpus(folder), folder / "told"
    pids = started(out, shards, SPREAD, processes=2, slow=0.3)
    while len(log(out)) < 4:
        time.sleep(0.005)
    beside = names(out)  # step 4 is logged, and checkpoint-3 still on its way
    os.kill(pids[1], signal.SIGTERM)
    told, saved, logged = list(map(wait, pids)), names(out), log(out)
    size = max(path.stat().st_size for path in out.glob("checkpoint-*/pieces/*"))
    full = run(out, shards, SPREAD, processes=2, resume=True, file_limit=size - 1000)
    return {
        "told": told, "beside": beside, "saved": saved, "step": logged[-1]["step"], "full": full, "left": names(out),
        "again": run(out, shards, SPREAD, processes=2, resume=True), "end": names(out),
    }  # fmt: skip


def tuned(folder: Path) -> dict:
    """Every tuning recipe of a model that a run in pieces left, in one process and in two: whole models and pieces, adapters over
    both. All runs of so many processes are one start of them."""
    shards, first = corpus(folder), folder / "first"
    assert run(first, shards, SPREAD, "batch.tokens=128", processes=2) == [0, 0]
    made_of = {
        "chat": [{"messages": [say("user", f"say {i}"), say("assistant", f"it is {i} " * (1 + i % 5))]} for i in range(60)],
        "pairs": [{"prompt": f"say {i}", "chosen": f"it is {i}", "rejected": "no " * (1 + i % 4)} for i in range(16)],
    }
    for kind, records in made_of.items():
        (folder / f"{kind}.jsonl").write_text("\n".join(map(json.dumps, records)))
        tokenise([folder / f"{kind}.jsonl"], folder / kind, tokenizer=first / "model", options=Options(kind=kind))

    def asked(name: str, out: str, *more: str) -> tuple[str, list[str]]:
        chats = ["optim.lr=1e-2", "batch.tokens=128", "batch.row=32", "batch.rows=2", "batch.micro=1"]
        small = ["batch.pairs=8", "batch.micro=2"] if "dpo" in name else chats
        source = folder / ("pairs" if "dpo" in name else "chat")
        told = ["preset=tiny", f"out={folder / out}", f"start={first}", f"data.sources.a={source}", "run.log_every=1"]
        return name, [*told, *small, *more]

    recipes = ("sft", "lora-sft", "qlora-sft", "dpo", "lora-dpo")
    codes = {
        "one": all_of([asked(name, f"{name}-one") for name in recipes], 1),
        "two": all_of([asked(name, f"{name}-two") for name in recipes[2:]], 2),
        "spread": all_of([asked(name, f"{name}-spread", SPREAD) for name in recipes if name != "qlora-sft"], 2),
    }
    runs = {path.name: {"log": log(path), "made": names(path)} for path in folder.glob("*-*") if (path / "log.jsonl").exists()}
    return {"codes": codes, "runs": runs}


def say(role: str, content: str) -> dict:
    return {"role": role, "content": content}


if __name__ == "__main__":
    scene, place = sys.argv[1], Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    scenes = {"curves": curves, "going_on": going_on, "divided_anew": divided_anew, "trouble": trouble, "tuned": tuned}
    print(json.dumps(scenes[scene](place)))
