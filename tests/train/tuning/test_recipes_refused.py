"""What cannot be done is told before the first step, in one line."""

import json
import shutil

import pytest

from tests.train.tuning.recipe_runs import TUNING
from zamba_lm.errors import ZambaError
from zamba_lm.model.load import read_config
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.data import tokenise
from zamba_lm.train.recipes import recipe
from zamba_lm.train.recipes.start import described, prepare
from zamba_lm.train.tuning.job import pairs_of, steps_of


@pytest.mark.parametrize("name", TUNING)
def test_the_plan_is_told_and_too_little_memory_refused(name, run):
    assert "GiB" in described(name, run.settings(name, write=False))
    with pytest.raises(ZambaError, match="need about .* of 0.0 GiB|of 0.0 GiB there are"):
        run(name, "run.memory_gib=0.00001")


@pytest.mark.parametrize("name", TUNING)
def test_start_must_be_said(name, tmp_path):
    config, _ = prepare(name, ["preset=tiny", f"out={tmp_path / 'x'}"], resume=False, write=False)
    with pytest.raises(ZambaError, match="start is not set"):
        recipe(name).run(config)


@pytest.mark.parametrize(("name", "pair", "said"), [
    ("sft", "data.sources={{}}", "data.sources names no text"),
    ("dpo", "data.sources={{}}", "data.sources names no pairs"),
    ("sft", "data.sources.a={pairs}", "holds preference pairs"),
    ("dpo", "data.sources.a={chat}", "not preference pairs"),
    ("sft", "batch.tokens=0", "epochs and batch.tokens are both 0"),
    ("dpo", "batch.length=3", "no pair of .* has 3 tokens or fewer"),
    ("lora-sft", "lora.targets=mixer", r"unknown targets 'mixer' \(did you mean mixers\?\)"),
    ("lora-sft", "lora.rank=0", "lora.rank is 0"),
    ("qlora-sft", "lora.rnk=2", r"unknown key 'lora.rnk' \(did you mean lora.rank\?\)"),
    ("dpo", "dpo.loss=sigmiod", r"dpo.loss is 'sigmiod' \(did you mean sigmoid\?\)"),
    ("dpo", "dpo.loss=exo_pair", "dpo.label_smoothing is 0.0, expected 1e-06 or more"),
    ("dpo", "dpo.beta=-1", "dpo.beta is -1.0, expected above 0"),
])  # fmt: skip
def test_what_cannot_be_meant_is_one_clear_line(name, pair, said, run, sets):
    with pytest.raises(ZambaError, match=said) as told:
        run(name, pair.format(**sets))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_another_tokenizer_is_refused(name, run, base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    file.write_text(json.dumps(content))
    assert Tokenizer.load(other).vocab_size == Tokenizer.load(base).vocab_size
    with pytest.raises(ZambaError, match="was made with the tokenizer .*, not with this one"):
        run(name, f"start={other}")


def test_chats_without_an_answer_and_malformed_pairs_are_named(tmp_path, base):
    bad = {"chats": {"messages": [{"role": "user", "content": "hm?"}]}, "pairs": {"prompt": "hm?", "chosen": "yes"}}
    for name, said in {"chats": "no assistant turn among 1 messages", "pairs": "a pair without 'rejected'"}.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(bad[name]) + "\n")
        with pytest.raises(ZambaError, match=rf"{name}.jsonl.*1.*{said}"):
            tokenise([file], tmp_path / name, tokenizer=base)


def test_pairs_that_are_too_long_are_told(run, base):
    config = run.settings("dpo", "batch.length=18", write=False)
    with pytest.warns(UserWarning, match=r"of \d+ train pairs are longer than 18 tokens \(batch.length\) and left out"):
        left = pairs_of(config, Tokenizer.load(base), read_config(base), "train")
    assert len(left) > 0


def test_epochs_count_rows(run, base):
    shape, tokenizer = read_config(base), Tokenizer.load(base)
    one, two = (steps_of(run.settings("sft", f"epochs={n}", write=False), tokenizer, shape) for n in (1, 2))
    assert one > 5 and two in (2 * one, 2 * one - 1)
