"""tools/make_pebble.py: its settings are fields of the recipes, its commands go on where they were cut off."""

import importlib.util
from pathlib import Path

import pytest

from zamba_lm.train.recipes import recipe
from zamba_lm.train.recipes.resolve import resolve

FILE = Path(__file__).parents[2] / "tools" / "make_pebble.py"


@pytest.fixture(scope="module")
def pebble():
    spec = importlib.util.spec_from_file_location("make_pebble", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def all_steps(pebble, out=Path("out"), more=None):
    return {step.name: step for step in pebble.steps(Path("sets"), out, more or {})}


def test_stages_come_in_the_order_of_the_recipe(pebble):
    assert list(all_steps(pebble)) == ["pretrain", "anneal", "sft", "rejects", "own", "dpo", "convert"]


@pytest.mark.parametrize("name", ["pretrain", "anneal", "sft", "dpo"])
def test_every_setting_is_a_field(pebble, name):
    asked = recipe(name)
    words = all_steps(pebble, more={name: ["run.seed=5"]})[name].words
    pairs = [word for word in words[2:] if word != "--set"]
    config = resolve(asked.Config(), asked.PRESETS, pairs)
    assert config.run.seed == 5
    assert config.out == f"out/{name}"


def test_a_stage_that_was_cut_off_goes_on(pebble, tmp_path):
    step = all_steps(pebble, tmp_path)["anneal"]
    assert "--resume" not in pebble.command(step, 1)
    step.begun.parent.mkdir()
    step.begun.touch()
    assert pebble.command(step, 1)[-3:] == ["--set", f"out={tmp_path / 'anneal'}", "--resume"]


def test_text_is_shared_by_all_processes_and_pairs_are_not(pebble, tmp_path):
    by_name = all_steps(pebble, tmp_path)
    assert "--nproc-per-node" in pebble.command(by_name["pretrain"], 4)
    assert "--nproc-per-node" not in pebble.command(by_name["dpo"], 4)
    assert "--nproc-per-node" not in pebble.command(by_name["pretrain"], 1)
