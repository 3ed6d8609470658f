"""Runs that were cut off go on as if they had not been, bit for bit."""

import shutil

import pytest

from tests.train.tuning.recipe_runs import STEPS, entries
from zamba_lm.train.trainer.checkpoints import newest


@pytest.mark.parametrize("name", ["sft", "qlora-sft", "lora-dpo"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(name, run, tmp_path):
    run(name)
    whole, cut = entries(tmp_path / "run"), tmp_path / "cut"
    shutil.copytree(tmp_path / "run", cut)
    shutil.rmtree(newest(cut))
    assert newest(cut).name == f"checkpoint-{STEPS // 2}"
    run(name, out="cut", resume=True)
    assert entries(cut) == whole and len(whole) == STEPS
