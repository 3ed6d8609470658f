"""Tuning over several devices, of a model that a run in pieces left."""

import pytest

from tests.train.scale.played import played


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    found = played("scenes", "tuned", str(tmp_path_factory.mktemp("tuned")))
    assert found["codes"] == {"one": [0], "two": [0, 0], "spread": [0, 0]}
    return found["runs"]


@pytest.mark.parametrize("name", ["sft", "lora-sft", "qlora-sft", "dpo", "lora-dpo"])
def test_losses_are_those_of_one_process(told, name):
    """With whole models on each device, and in pieces; 8e-7 apart when it was tried."""
    one, others = told[f"{name}-one"], [told[key] for key in (f"{name}-two", f"{name}-spread") if key in told]
    assert len(one["log"]) == 2 and one["log"][1]["loss"] < one["log"][0]["loss"]
    assert len(others) == (2 if "dpo" in name else 1)
    for other in others:
        for mine, right in zip(other["log"], one["log"], strict=True):
            assert mine["loss"] == pytest.approx(right["loss"], rel=3e-6)
            assert mine["tokens"] == (
                right["tokens"] if "sft" in name else pytest.approx(right["tokens"], rel=0.1)
            )  # as the first
            assert mine["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
        assert other["made"] == one["made"] and "model" in one["made"] and ("adapter" in one["made"]) == ("lora" in name)
