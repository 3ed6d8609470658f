"""The five recipes on the tiny preset: they learn, write what they made, and stand on one another."""

import json

import pytest
import torch

from tests.train.tuning.recipe_runs import PAIRS, STEPS, TUNING, entries
from zamba_lm.model.load import load_model
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.trainer.journal import read


@pytest.mark.parametrize("name", TUNING)
def test_it_learns_and_writes_what_it_made(name, run, tmp_path, base):
    model, out = run(name), tmp_path / "run"
    losses = [entry["loss"] for entry in entries(out)]
    assert len(losses) == STEPS and sum(losses[-2:]) < sum(losses[:2])
    assert model == out / "model"
    assert (out / "adapter" / "adapter_config.json").exists() == ("lora" in name)
    made, before = load_model(model, device="cpu"), load_model(base, device="cpu")
    assert made.config == before.config and made.dtype == torch.float32
    assert not torch.equal(made.blocks[0].down.weight, before.blocks[0].down.weight)
    assert torch.equal(made.embedding.weight, before.embedding.weight) == ("lora" in name)
    assert Tokenizer.load(model).special == Tokenizer.load(base).special
    told = json.loads((out / "recipe.json").read_text())
    assert told["recipe"] == name and told["config"]["start"] == str(base)
    measured = [one for one in read(out / "log.jsonl") if any(key.startswith("eval_") for key in one)]
    assert len(measured) == 1 and ("eval_rewards/margins" if name in PAIRS else "eval_bpb_a") in measured[0]


def test_preferences_after_chats(run, tmp_path):
    """dpo of what sft made, from its run folder: the model is its own reference, so it begins at ln 2."""
    run("sft")
    run("lora-dpo", f"start={tmp_path / 'run'}", "merge=false", out="dpo")
    assert abs(entries(tmp_path / "dpo")[0]["loss"] - 0.6931472) < 1e-6
    assert not (tmp_path / "dpo" / "model").exists() and Tokenizer.load(tmp_path / "dpo" / "adapter").chat_template
