"""Whatever happens to a run, what comes after is what would have come anyway."""

import json
import os
import subprocess
import sys

import pytest

STEPS = 9


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """All scenes, once: (what happened, what was said)."""
    command = [sys.executable, "-m", "tests.train.trainer.processes", str(tmp_path_factory.mktemp("scenes"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_kill_9_at_any_moment_changes_no_loss(played):
    told = played[0]["kills"]
    assert told["code"] == 0 and len(played[0]["calm"]) == STEPS
    assert told["log"] == played[0]["calm"]
    assert sum(bool(one["torn"]) for one in told["moments"]) >= 2, told["moments"]
    assert told["left"] == ["checkpoint-6", "checkpoint-9", "log.jsonl", "model", "recipe.json"]


def test_sigterm_saves_and_leaves_with_143(played):
    told = played[0]["signalled"]
    step = told["logged"][-1]["step"]
    assert told["told"] == 143 and 4 <= step < STEPS and f"checkpoint-{step}" in told["saved"]
    assert told["again"] == told["finished"] == 0 and told["log"] == played[0]["calm"]


def test_a_full_disk_loses_no_earlier_checkpoint(played):
    told, said = played[0]["full"], played[1]
    assert told["code"] == 1 and told["left"] == ["checkpoint-3", "log.jsonl", "model", "recipe.json"]
    assert said.count("cannot save checkpoint-6") == 1 and "earlier checkpoints are whole" in said
    assert "ZambaError: cannot save checkpoint-9" in said


def test_two_processes_have_the_losses_of_one(played):
    told = played[0]["divided"]
    assert told["stopped"] == [143, 143] and told["codes"] == [0, 0] and len(told["log"]) == STEPS + 2
    for one, two in zip(played[0]["calm"], told["log"]):
        assert two["step"] == one["step"] and two["tokens"] == one["tokens"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert told["resumed"] == 0 and told["log"][-1]["step"] == STEPS + 2
