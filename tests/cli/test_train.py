"""``zamba-lm train``: help that teaches, mistakes that are told, a run that can be looked at before it begins."""

import json
import re
import shlex
from pathlib import Path

import pytest

from zamba_lm.train.recipes import RECIPES

TINY = ("--set", "preset=tiny")
PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_help_lists_the_recipes(run):
    told = run("train", "--help")
    assert told.code == 0 and [name for name in RECIPES if name not in told.out] == []


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipes_help_lists_fields_with_defaults_and_presets(run, name):
    told = run("train", name, "--help")
    assert told.code == 0 and "run.save_every=" in told.out and "steps between checkpoints" in told.out
    assert "--dry-run" in told.out and "--resume" in told.out and "Presets" in told.out


def test_help_of_pretrain_shows_values(run):
    told = run("train", "pretrain", "--help").out
    assert "optim.beta2=0.95" in told and "rate.kind=cosine" in told and "zamba2-2.7b" in told and "pebble" in told


def test_a_dry_run_tells_settings_and_memory_and_leaves_nothing(run, tmp_path):
    more = ("--set", "preset=zamba2-2.7b", "--set", f"out={tmp_path / 'a'}", "--set", "run.memory_gib=141")
    told = run("train", "pretrain", *more, "--set", "batch.rows=8", "--dry-run")
    assert told.code == 0 and not (tmp_path / "a").exists()
    for words in ("batch.rows = 8", "optim.lr = 0.0002", "weights, float32", "moments of adamw", "rows at once", "141.0 GiB"):
        assert words in told.out


def test_a_dry_run_of_what_cannot_fit_says_what_would(run):
    told = run(
        "train", "pretrain", "--set", "preset=zamba2-7b", "--set", "run.memory_gib=80", "--set", "batch.rows=2", "--dry-run"
    )
    assert told.code == 0 and "does not fit" in told.out and "nothing fits: take a smaller shape" in told.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("pretrain", "--set", "batch.rwos=3"), "error: unknown key 'batch.rwos' (did you mean batch.rows?)"),
        (("pretrain", "--set", "preset=tniy"), "error: unknown preset 'tniy' (did you mean tiny?)"),
        (("pretrain", *TINY), "error: out is not set; give it with --set out=runs/first"),
        (("pretrain", "--set", "model=zamba", "--dry-run"), "error: unknown shape 'zamba'"),
        (("pretrain", *TINY, "--set", "batch.rows=0", "--dry-run"), "error: --set batch.rows=0: expected at least 1"),
        (("pretrain", *TINY, "--set", "optim.beta1=1", "--dry-run"), "error: --set optim.beta1=1.0: expected less than 1"),
        (("pretrain", *TINY, "--set", "rate.gamma=0", "--dry-run"), "error: --set rate.gamma=0.0: expected at least 0.01"),
    ],
)
def test_mistakes_are_one_line(run, args, message):
    told = run("train", *args)
    assert told.code == 1 and told.err.startswith(message) and len(told.err.splitlines()) == 1


def test_resume_takes_the_settings_of_the_run_and_tells_what_changes(run, tmp_path):
    out = tmp_path / "a"
    saved = ("--set", f"out={out}", *TINY, "--set", "batch.rows=2", "--set", "data.sources.a=none")
    assert run("train", "pretrain", *saved).code == 1  # there is no such set; recipe.json is there
    told = run("train", "pretrain", "--set", f"out={out}", "--set", "batch.tokens=9e3", "--resume", "--dry-run")
    assert told.code == 0 and "batch.rows = 2" in told.out and "model = tiny" in told.out
    assert told.err.strip() == "changed: batch.tokens: 5120 -> 9000"
    assert json.loads((out / "recipe.json").read_text())["config"]["batch"]["tokens"] == 5120


def test_resume_where_no_run_is_says_that_it_begins_one(run, tmp_path):
    told = run("train", "pretrain", "--set", f"out={tmp_path / 'tpyo'}", *TINY, "--resume", "--dry-run")
    assert told.code == 0 and not (tmp_path / "tpyo").exists()
    assert told.err == f"there is no run in {tmp_path / 'tpyo'} yet: --resume begins one, with the settings given here\n"


@pytest.mark.parametrize("text", ["[]", "{", '{"recipe": "pretrain"}'])
def test_a_damaged_recipe_is_one_line(run, tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    told = run("train", "pretrain", "--set", f"out={tmp_path}", "--resume", "--dry-run")
    assert told.code == 1 and "move the folder away, or restore the file" in told.err and len(told.err.splitlines()) == 1


def test_settings_that_nothing_came_of_are_not_those_of_the_next_resume(run, tmp_path):
    out = tmp_path / "a"
    run("train", "pretrain", "--set", f"out={out}", *TINY, "--set", "data.sources.a=none")
    before = (out / "recipe.json").read_bytes()
    told = run("train", "pretrain", "--set", f"out={out}", "--set", "data.sources.a=gone", "--resume")
    assert (
        told.code == 1 and "changed: data.sources: {'a': 'none'} -> {'a': 'gone'}" in told.err and "error: gone is no" in told.err
    )
    assert (out / "recipe.json").read_bytes() == before


def test_another_preset_is_no_resuming(run, tmp_path):
    run("train", "pretrain", "--set", f"out={tmp_path / 'a'}", *TINY, "--set", "data.sources.a=none")
    told = run("train", "pretrain", "--set", f"out={tmp_path / 'a'}", "--set", "preset=pebble", "--resume")
    assert told.code == 1 and "was started with preset 'tiny', not 'pebble'" in told.err


def test_a_folder_of_another_recipe_is_refused(run, tmp_path):
    run("train", "pretrain", "--set", f"out={tmp_path / 'a'}", *TINY, "--set", "data.sources.a=none")
    told = run("train", "anneal", "--set", f"out={tmp_path / 'a'}", *TINY, "--resume")
    assert told.code == 1 and "is a run of pretrain, not of anneal" in told.err


def test_a_used_folder_keeps_its_recipe(run, tmp_path):
    (tmp_path / "a" / "checkpoint-7").mkdir(parents=True)
    told = run("train", "pretrain", "--set", f"out={tmp_path / 'a'}", *TINY)
    assert told.code == 1 and "holds checkpoint-7 already; go on from it with --resume" in told.err
    assert not (tmp_path / "a" / "recipe.json").exists()


def commands():
    """The train commands of the page, without their line breaks."""
    text = PAGE.read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"(?:zamba-lm|-m zamba_lm) train (.* --set .*)", text)]


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_what_the_page_sets_can_be_set(words):
    from zamba_lm.train.recipes import recipe
    from zamba_lm.train.recipes.resolve import resolve

    module = recipe(words[0])
    pairs = [value for key, value in zip(words, words[1:]) if key == "--set" and not value.startswith("start=")]
    assert resolve(module.Config(), module.PRESETS, pairs) != module.Config()
    assert {word for word in words if word.startswith("--")} <= {"--set", "--resume", "--dry-run"}


def test_the_page_has_commands():
    assert len(commands()) >= 4
