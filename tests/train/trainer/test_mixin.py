"""Sturdy around a trainer and a model that know nothing of Zamba: a shuffled table of rows, dropout, accelerate's own loader."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.train.trainer.test_sturdy import numbers, stop_after
from zamba_lm.train.trainer.arguments import steady_arguments
from zamba_lm.train.trainer.sturdy import Sturdy


class Other(Sturdy, Trainer):
    pass


def other(out, **changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 31, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, attention_dropout=0.3))
    model.lm_head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 31))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 31, (10, 6))]
    settings = {
        "output_dir": str(out), "max_steps": 12, "per_device_train_batch_size": 2, "save_steps": 4, "logging_steps": 1,
        "use_cpu": True, "learning_rate": 1e-2,
    }  # fmt: skip
    return Other(model, args=TrainingArguments(**steady_arguments(**settings | changes)), train_dataset=rows)


def test_a_shuffled_table_and_dropout_go_on_bit_for_bit(tmp_path):
    """Steps 4 and 8 lie in the middle of an epoch of five."""
    other(tmp_path / "whole").fit()
    for step in (4, 8):
        other(tmp_path / str(step)).fit()
        stop_after(tmp_path / str(step), step)
        torch.manual_seed(99)
        other(tmp_path / str(step)).fit(resume=True)
        assert numbers(tmp_path / str(step)) == numbers(tmp_path / "whole")
    losses = [entry["loss"] for entry in numbers(tmp_path / "whole")]
    assert len(set(losses)) == 12


def test_nothing_is_left_to_train(tmp_path, capsys):
    other(tmp_path / "a").fit()
    again = other(tmp_path / "a")
    again.fit(resume=True)
    assert "checkpoint-12 is the last step of this run" in capsys.readouterr().err
    assert again.state.global_step == 12 and len(numbers(tmp_path / "a")) == 12
