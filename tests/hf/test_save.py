"""``save_pretrained``: what transformers, our loader and PEFT read back."""

import json

import pytest
import torch
from transformers import Zamba2Config

from tests.hf.pairs import CLASSES, IDS, NAMES, folder, ours
from tests.numerics.tolerances import assert_within
from tests.parity import theirs
from tests.parity.cases import CASES, FULL, case_model
from zamba_lm.errors import ZambaError
from zamba_lm.hf import Zamba2ForCausalLM, Zamba2ForSequenceClassification
from zamba_lm.model.load import load_model


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "30KB"}, {"max_shard_size": 30_000}])
@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_it(name, shards, tmp_path):
    model = ours(name)
    model.save_pretrained(tmp_path, **shards)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == bool(shards)
    assert_within("parity", theirs.logits(theirs.read(tmp_path, CASES[name]), IDS), model(IDS).logits)
    assert_within("paths", load_model(tmp_path).logits(IDS), model(IDS).logits)
    again = CLASSES[CASES[name].family].from_pretrained(tmp_path)
    assert_within("paths", again(IDS).logits, model(IDS).logits)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]


def test_the_config_keeps_what_it_was_told(tmp_path):
    model = ours(FULL, use_cache=False)
    model.config.id2label = {0: "no", 1: "yes"}
    model.generation_config.max_new_tokens = 99
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again = Zamba2ForCausalLM.from_pretrained(tmp_path)
    assert again.config.use_cache is False and again.config.id2label == {0: "no", 1: "yes"}
    assert again.generation_config.max_new_tokens == 99 and again.dtype == torch.bfloat16
    assert Zamba2Config.from_pretrained(tmp_path).hidden_size == 32


def test_other_tensors_than_the_models_own(tmp_path):
    """What a sharded trainer gathered is saved in place of what the model holds."""
    model = ours(FULL)
    tensors = {name: tensor + 0.01 for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=tensors)
    found = load_model(tmp_path).state_dict()
    assert all(torch.equal(found[name.removeprefix("zamba.")], tensor) for name, tensor in tensors.items())


def test_saving_where_the_weights_came_from(tmp_path):
    """Parameters of a loaded model may be views of its file."""
    case_model(FULL).save(tmp_path)
    model = Zamba2ForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        model.zamba.embedding.weight *= 2
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path).embedding.weight, case_model(FULL).embedding.weight * 2)


def test_scores_of_labels(tmp_path):
    model = Zamba2ForSequenceClassification.from_pretrained(folder(FULL), num_labels=3)
    model.save_pretrained(tmp_path)
    again, info = Zamba2ForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and again.config.num_labels == 3
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    from transformers import Zamba2ForSequenceClassification as Theirs

    with torch.no_grad():
        assert_within("parity", Theirs.from_pretrained(tmp_path)(IDS, use_cache=False).logits, model(IDS).logits)
    assert torch.equal(Zamba2ForCausalLM.from_pretrained(tmp_path)(IDS).logits, ours(FULL)(IDS).logits)
    with pytest.raises(ZambaError, match="scores 3 labels and the config has 8"):
        Zamba2ForSequenceClassification.from_pretrained(tmp_path, num_labels=8)
    fresh = Zamba2ForSequenceClassification.from_pretrained(tmp_path, num_labels=8, ignore_mismatched_sizes=True)
    assert fresh.score.weight.shape == (8, 32)


@pytest.mark.parametrize("names", ["ours", "checkpoint", "repeated"])
def test_state_dicts_of_either_naming(names):
    """A Trainer that resumes reads model.safetensors and calls load_state_dict."""
    source = ours(FULL)
    if names == "ours":
        tensors = source.state_dict()
    else:
        their = theirs.read(folder(FULL), CASES[FULL]).state_dict()
        tensors = {name: tensor.clone() for name, tensor in their.items()}
        if names == "checkpoint":
            tensors.pop("lm_head.weight")
    model = Zamba2ForCausalLM(source.config)
    head = model.lm_head.weight
    model.load_state_dict(tensors)
    assert torch.equal(model(IDS).logits, source(IDS).logits) and model.lm_head.weight is head is model.zamba.embedding.weight
    if names != "ours":
        tensors.pop("model.final_layernorm.weight")
        with pytest.raises(ZambaError, match="no model.final_layernorm.weight"):
            model.load_state_dict(tensors)


def test_uploading(tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, name, **options):
            calls.append(("create", name, options))
            return type("Url", (), {"repo_id": f"me/{name}"})

        def upload_folder(self, **options):
            calls.append(("upload", options["repo_id"], sorted(p.name for p in options["folder_path"].iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    ours(FULL).save_pretrained(tmp_path / "mine", push_to_hub=True, token="t", private=True)
    files = ["config.json", "generation_config.json", "model.safetensors"]
    assert calls == [("token", "t"), ("create", "mine", {"exist_ok": True, "private": True}), ("upload", "me/mine", files)]


def test_push_to_hub_saves_in_the_same_format(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "transformers.utils.hub.PushToHubMixin._upload_modified_files",
        lambda self, folder, *_, **__: seen.append(load_model(folder)),
    )
    monkeypatch.setattr(
        "transformers.utils.hub.hf_api",
        lambda *_, **__: type("Api", (), {"create_repo": lambda self, name, **_: type("Url", (), {"repo_id": name})})(),
    )
    monkeypatch.setattr(
        "transformers.utils.hub.create_and_tag_model_card", lambda *_, **__: type("Card", (), {"save": lambda self, path: None})()
    )
    model = ours(FULL)
    model.push_to_hub("me/mine")
    assert_within("paths", seen[0].logits(IDS), model(IDS).logits)


def test_what_cannot_be_saved(tmp_path):
    model = ours(FULL)
    model.zamba.layers[0].mixer.out_proj = torch.nn.Sequential(model.zamba.layers[0].mixer.out_proj)
    with pytest.raises(ZambaError, match="no layers.0.mixer.out_proj.weight, .* merge them first"):
        model.save_pretrained(tmp_path)
    model = ours(FULL)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
    with pytest.raises(ZambaError, match="no longer the embedding"):
        model.save_pretrained(tmp_path)
    for wrong in ("5 gigs", "", "GB"):
        with pytest.raises(ZambaError, match="max_shard_size"):
            ours(FULL).save_pretrained(tmp_path, max_shard_size=wrong)
    with pytest.raises(ZambaError, match="variant='fp16'"):
        ours(FULL).save_pretrained(tmp_path, variant="fp16")
    assert not list(tmp_path.iterdir())
