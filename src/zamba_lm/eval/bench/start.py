"""From weights in memory to the first tokens, in a new process: what has to be compiled, captured and allocated on the way.

    python -m zamba_lm.eval.bench.start ZAMBA-LM|TRANSFORMERS CONTEXT SUBJECT-AS-JSON

prints one line of JSON: seconds to prepare the model, to the first token and to the fourth. Each side starts twice, with an empty
folder for Triton's compiled kernels and then with what the first start left there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict

import torch

from zamba_lm.errors import ZambaError
from zamba_lm.eval.bench import costs, peer
from zamba_lm.eval.bench.cases import DEVICE, find
from zamba_lm.eval.bench.clock import Spread, synchronize
from zamba_lm.eval.bench.decoder import EngineDecoder, random_ids
from zamba_lm.eval.bench.report import SIDES, Row
from zamba_lm.eval.bench.sides import Place
from zamba_lm.eval.bench.subject import Subject
from zamba_lm.model.ready import ready

CACHES = ("cold Triton cache", "warm Triton cache")
STEPS = 4
PATIENCE = 120  # seconds


def rows(subject: Subject, place: Place, context: int, against: str | None) -> list[Row]:
    """A row a side and cache. They carry no speed-up: other kinds of measurement hold the outputs against each other."""
    return [row for side in (SIDES if against else SIDES[:1]) for row in side_rows(side, subject, place, context)]


def side_rows(side: str, subject: Subject, place: Place, context: int) -> Iterator[Row]:
    """One side's rows, as they come."""
    with tempfile.TemporaryDirectory() as folder:
        for note in CACHES:
            yield _row(side, note, folder, subject, place, context)


def _row(side: str, note: str, folder: str, subject: Subject, place: Place, context: int) -> Row:
    seconds = _process(side, folder, subject, context)
    cost = costs.prefill(subject.config(), 1, context, subject.dtype)
    note = f"{note}; prepared in {seconds['prepare']:.2f} s of it, {STEPS} tokens after {seconds['tokens']:.2f} s"
    ours = side == SIDES[0] and DEVICE in place.name and not subject.layers
    case = find("start", subject.preset, 1, context) if ours else None
    return Row(
        side=side,
        batch=1,
        context=context,
        seconds=Spread.of([seconds["first"]]),
        tokens=0,
        cost=cost,
        limit=place.limit(cost),
        case=case,
        note=note,
    )


def _process(side: str, folder: str, subject: Subject, context: int) -> dict:
    """Start once, with ``folder`` for Triton's cache."""
    described = json.dumps(asdict(subject) | {"device": str(subject.device)})
    command = [sys.executable, "-m", "zamba_lm.eval.bench.start", side, str(context), described]
    environment = os.environ | {"TRITON_CACHE_DIR": folder}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode:
        raise ZambaError(f"{side} did not start: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def once(side: str, context: int, subject: Subject) -> dict:
    """Seconds from weights in memory, in this process."""
    model = subject.build()
    theirs = peer.build(model) if side != SIDES[0] else None
    ids_BT = random_ids(1, context, model.config.vocab_size, subject.seed)
    torch.ones(1, device=subject.device).sum().item()  # the device itself is awake
    synchronize(subject.device)
    begin = time.perf_counter()
    if theirs is None:
        decoder = EngineDecoder(ready(model), 1, context + STEPS)
    else:
        decoder = peer.TheirDecoder(theirs, 1)
    prepared = time.perf_counter() - begin
    decoder.start(ids_BT)
    decoder.tokens()
    first = time.perf_counter() - begin
    for _ in range(STEPS):
        decoder.step()
    decoder.tokens()
    synchronize(subject.device)
    return {"prepare": prepared, "first": first, "tokens": time.perf_counter() - begin}


if __name__ == "__main__":
    given = json.loads(sys.argv[3])
    print(json.dumps(once(sys.argv[1], int(sys.argv[2]), Subject(**given | {"device": torch.device(given["device"])}))))
