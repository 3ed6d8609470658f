"""A start on an empty cache: every kernel that a first prompt and the first tokens run has been compiled by forks."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.gpu

START = """
import json, sys
import torch, triton
from zamba_lm.eval.bench.decoder import EngineDecoder, random_ids
from zamba_lm.eval.bench.subject import choose
from zamba_lm.model.ready import ready
from zamba_lm.ops import ahead

ahead.FORKS = int(sys.argv[2])
found = []
triton.knobs.compilation.listener = lambda *, src, cache_hit, **others: found.append((src.name, cache_hit))
model = choose(sys.argv[1], True, None, 8, torch.device("cuda"), "bf16", 0).build()
decoder = EngineDecoder(ready(model), 1, 80)
decoder.start(random_ids(1, 70, model.config.vocab_size, 0))
for _ in range(3):
    decoder.step()
print(json.dumps({"found": found, "tokens": decoder.tokens().tolist()}))
"""


def start(preset: str, forks: int, folder) -> dict:
    """What a new process compiled or found compiled, and the tokens it wrote."""
    command = [sys.executable, "-c", START, preset, str(forks)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TRITON_CACHE_DIR": str(folder)}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("preset", ["zamba2-1.2b", "zamba-7b-v1"])
def test_all_kernels_of_a_start_are_compiled_by_forks(preset, tmp_path):
    told = start(preset, 4, tmp_path / "forks")
    assert len(told["found"]) > 10 and all(hit for _, hit in told["found"]), told["found"]
    assert told["tokens"] == start(preset, 0, tmp_path / "forks")["tokens"], "a warm start writes the same"
