"""Tuning a model that a run in pieces left."""

import pytest

from tests.train.scale.played import played


def test_chats_train_a_model_in_pieces(tmp_path):
    told = played("scenes", "tuned", str(tmp_path))
    assert told["codes"] == {"one": [0], "two": [0, 0], "lora": [1, 1]}
    assert [entry["loss"] for entry in told["two"]] == pytest.approx([entry["loss"] for entry in told["one"]], rel=3e-6)
    assert told["two"][-1]["loss"] < told["two"][0]["loss"] and "model" in told["made"]
    assert "scale.shard=fsdp is there for pretrain, anneal, long-context and sft; lora-sft has the whole model" in told["said"]
