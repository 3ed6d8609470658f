"""Runs that are killed, told to stop, starved of disk or divided, each in a process of its own; what happened, as JSON.

    python -m tests.train.trainer.processes FOLDER

Imports cost seconds, so this process does them once and every run is a fork of it. Nothing here is in the package: saving is made
slow by replacing ``checkpoints.flush`` in the child.
"""

import json
import os
import random
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import zamba_lm.train.recipes.language
import zamba_lm.train.scale.sharded  # noqa: F401  what a run imports, imported once
from tests.train.trainer.tiny import corpus, log, recipe
from zamba_lm.train.recipes.start import prepare
from zamba_lm.train.trainer import checkpoints

torch.set_num_threads(1)
STEPS = 9


def child(pairs, *, name="pretrain", resume=False, slow=0.0, file_limit=None, world=None) -> int:
    """Fork a run of a recipe with these settings; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if file_limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        if slow:
            flush = checkpoints.flush
            checkpoints.flush = lambda folder: (time.sleep(slow), flush(folder), time.sleep(slow))
        os.environ.update(world or {})
        config, _ = prepare(name, pairs, resume=resume, write=True)
        recipe(name).run(config, resume=resume)
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state not in "ZX"


def kill_at(pid: int, moment) -> bool:
    """kill -9 once ``moment()`` is true; False when the run ended before."""
    while _alive(pid):
        if moment():
            os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(0.005)
    return False


# scenes: each gets a folder of its own, the tokenised set, and the log of a run that was left alone


def kills(folder: Path, shards: Path) -> dict:
    """A run that is killed at random moments, every second time while it saves."""
    chance, run, moments = random.Random(5), folder / "killed", []
    for number in range(4):
        saving = number % 2 == 1
        moment = Moment(run, saving, steps=len(log(run)) + chance.randint(1, 3), delay=chance.random() * 0.05)
        pid = child(settings(run, shards), resume=True, slow=0.05)
        killed = kill_at(pid, moment)
        wait(pid)
        if not killed:
            break
        moments.append({"saving": saving, "torn": sorted(p.name for p in run.glob(".saving-*")), "logged": len(log(run))})
    code = wait(child(settings(run, shards), resume=True))
    return {"moments": moments, "code": code, "log": log(run), "left": names(run)}


@dataclass
class Moment:
    """True once a checkpoint is being saved, or so many steps are logged, and a little later."""

    run: Path
    saving: bool
    steps: int
    delay: float

    def __call__(self) -> bool:
        come = any(self.run.glob(".saving-*")) if self.saving else len(log(self.run)) >= self.steps
        return come and time.sleep(self.delay) is None


def signalled(folder: Path, shards: Path) -> dict:
    """SIGTERM in the middle, then on to the end, then on once more when nothing is left."""
    run = folder / "told"
    pid = child(settings(run, shards))
    while len(log(run)) < 4:
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    told = wait(pid)
    saved, logged = names(run), log(run)
    again, finished = (wait(child(settings(run, shards), resume=True)) for _ in range(2))
    return {"told": told, "saved": saved, "logged": logged, "again": again, "finished": finished, "log": log(run)}


def full(folder: Path, shards: Path) -> dict:
    """Files may not grow to what an optimizer's state needs; the run has one checkpoint already."""
    run = folder / "full"
    assert wait(child(settings(run, shards) + ["batch.tokens=192"])) == 0
    size = (run / "checkpoint-3" / "optimizer.pt").stat().st_size
    code = wait(child(settings(run, shards), resume=True, file_limit=size - 1000))
    return {"code": code, "left": names(run)}


def divided(folder: Path, shards: Path) -> dict:
    """Two processes that share the rows, of which the second alone is told to stop; both go on, then one goes on alone."""
    run = folder / "two"
    pids = pair(run, shards)
    while len(log(run)) < 4:
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    stopped = [wait(pid) for pid in pids]
    codes = [wait(pid) for pid in pair(run, shards)]
    resumed = wait(child(settings(run, shards) + [f"batch.tokens={(STEPS + 2) * 64}"], resume=True))
    return {"stopped": stopped, "codes": codes, "log": log(run), "resumed": resumed}


def pair(run: Path, shards: Path) -> list[int]:
    """Two processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [child(settings(run, shards), resume=True, world=world(rank, port)) for rank in range(2)]


def world(rank: int, port: str) -> dict[str, str]:
    """What torchrun tells each of two processes."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def settings(out: Path, shards: Path) -> list[str]:
    small = ["batch.row=32", "batch.rows=2", "batch.micro=1", f"batch.tokens={STEPS * 64}"]
    return ["preset=tiny", f"out={out}", f"data.sources.text={shards}", "run.save_every=3", "run.log_every=1", *small]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def play(folder: Path) -> dict:
    shards = corpus(folder, share=0)
    assert wait(child(settings(folder / "calm", shards))) == 0
    found = {scene.__name__: scene(folder, shards) for scene in (kills, signalled, full, divided)}
    return found | {"calm": log(folder / "calm")}


if __name__ == "__main__":
    print(json.dumps(play(Path(sys.argv[1]))))
