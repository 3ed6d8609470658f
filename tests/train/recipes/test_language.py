"""pretrain, anneal and long-context from end to end on a small tokenised set."""

import json
from dataclasses import replace

import pytest
import torch

from tests.train.trainer.tiny import corpus
from zamba_lm.errors import ZambaError
from zamba_lm.model.load import load_model
from zamba_lm.text.tokenizer import Tokenizer
from zamba_lm.train.recipes import anneal, long_context, pretrain
from zamba_lm.train.recipes.base import Data
from zamba_lm.train.recipes.start import prepare
from zamba_lm.train.trainer.journal import read


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    corpus(folder)
    return folder


def settings(place, out, *more):
    data = [f"data.folder={place}", "data.sources.old=shards:old-*", "data.sources.new=shards:new-*"]
    small = ["batch.row=32", "batch.rows=2", "batch.micro=1", "run.save_every=4", "run.log_every=1"]
    return ["preset=tiny", f"out={place / out}", *data, *small, *more]


@pytest.fixture(scope="module")
def pretrained(place):
    config, _ = prepare("pretrain", settings(place, "first", "batch.tokens=512", "data.weights.old=1"), resume=False, write=True)
    pretrain.run(config)
    return place / "first"


def losses(run):
    return [entry["loss"] for entry in read(run / "log.jsonl") if "loss" in entry]


def test_a_pretrained_model_is_there_and_measured(pretrained):
    model = load_model(pretrained / "model")
    assert model.dtype == torch.float32 and Tokenizer.load(pretrained / "model").vocab_size == 32000
    assert len(losses(pretrained)) == 8 and losses(pretrained)[-1] < losses(pretrained)[0]
    measured = [entry for entry in read(pretrained / "log.jsonl") if "eval_bpb_old" in entry]
    assert [entry["step"] for entry in measured] == [8] and 1 < measured[0]["eval_bpb_old"] < measured[0]["eval_bpb_new"] + 1
    told = json.loads((pretrained / "recipe.json").read_text())
    assert told["recipe"] == "pretrain" and told["config"]["batch"]["rows"] == 2 and "torch" in told["versions"]


def test_annealing_starts_from_the_checkpoint_and_goes_on_in_its_data(place, pretrained):
    more = (f"start={pretrained}", "batch.tokens=256", "data.weights.new=1", "replay.weights.old=1", "rate.warmup=1")
    config, _ = prepare("anneal", settings(place, "second", *more), resume=False, write=True)
    anneal.run(config)
    assert losses(place / "second")[0] == pytest.approx(losses(pretrained)[-1], abs=0.5)
    state = json.loads((place / "second" / "checkpoint-4" / "sturdy.json").read_text())["extra"]["feed"]["stream"]
    before = json.loads((pretrained / "checkpoint-8" / "sturdy.json").read_text())["extra"]["feed"]["stream"]
    assert before["at"]["old"] == [0, 16] and state["at"]["old"][1] - 16 + state["at"]["new"][1] == 8
    assert state["at"]["new"][1] == 3  # 40 % of 8 rows


def test_the_context_grows_within_one_run(place, pretrained):
    growth = ("context.first=32", "context.last=128", "context.every=2", "batch.rows=1")
    config, _ = prepare("long-context", settings(place, "third", f"start={pretrained}", *growth), resume=False, write=True)
    long_context.run(config)
    entries = [entry for entry in read(place / "third" / "log.jsonl") if "loss" in entry]
    assert [entry["tokens"] for entry in entries] == [128 * step for step in range(1, 7)]
    model = load_model(place / "third" / "model")
    assert model.config.long_context and model.config.max_positions == 128


@pytest.mark.parametrize("module", [anneal, long_context], ids=lambda module: module.__name__)
def test_a_model_to_start_from_is_asked_for(module):
    with pytest.raises(ZambaError, match=r"start is not set; give it with --set start=runs/"):
        module.run(replace(module.PRESETS["tiny"], out="x", data=Data(sources={"a": "a"})))


def test_weights_of_another_shape_are_refused_with_both(place, pretrained):
    more = (f"start={pretrained}", "shape.d_ff=50", "batch.tokens=256")
    config, _ = prepare("anneal", settings(place, "other", *more), resume=False, write=True)
    with pytest.raises(ZambaError, match=r"checkpoint-8 holds another shape than this run: d_ff 48 there, d_ff 50 here"):
        anneal.run(config)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("data.sources={}",), "data.sources names no text; give a tokenised set"),
        (("data.weights.nwe=1",), r"data.weights names 'nwe' \(did you mean new\?\)"),
        (("data.sources.old=nowhere",), "nowhere"),
        (("shape.vocab_size=100",), "the model knows 100 tokens"),
        (("run.final_dtype=bf17",), "unknown dtype 'bf17'"),
        (("batch.micro=3",), "batch.micro is 3, but a device's 2 rows of a step do not divide by it"),
    ],
)
def test_bad_data_is_refused_before_the_first_step(place, more, message):
    config, _ = prepare("pretrain", settings(place, "bad", "batch.tokens=512", *more), resume=False, write=True)
    with pytest.raises(ZambaError, match=message):
        pretrain.run(config)
    assert not (place / "bad" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "run.device is 'gpu', expected auto, cuda or cpu"),
        ("cuda", "asks for a GPU, and torch .* finds none; use cpu or auto"),
    ],
)
def test_a_gpu_that_is_not_there_is_no_reason_to_take_the_cpu(place, monkeypatch, device, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config, _ = prepare("pretrain", settings(place, "none", f"run.device={device}"), resume=False, write=False)
    with pytest.raises(ZambaError, match=said):
        pretrain.run(config)
