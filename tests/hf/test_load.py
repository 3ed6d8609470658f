"""``from_pretrained``: names, files and settings of every kind, and what cannot be had said in one line."""

import json

import pytest
import torch
from transformers import GenerationConfig, Zamba2Config

from tests.hf.pairs import CLASSES, IDS, NAMES, folder, ours
from tests.numerics.tolerances import assert_within
from tests.parity.cases import CASES, FULL, PLAIN, case_model
from zamba_lm.errors import ZambaError
from zamba_lm.hf import Zamba2ForCausalLM, Zamba2ForSequenceClassification, Zamba2Model, ZambaForCausalLM, wrap
from zamba_lm.hf.config import from_hf, to_hf
from zamba_lm.model.weights import save_weights


@pytest.mark.parametrize("name", CASES)
def test_configs_there_and_back(name):
    assert from_hf(to_hf(CASES[name])) == CASES[name]


@pytest.mark.parametrize("style", ["hf", "fork", "native"])
def test_every_style_of_file(style, tmp_path):
    """transformers itself would take a config of the older kinds for another model."""
    save_weights(case_model(FULL), tmp_path, style=style, max_shard_bytes=30_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = Zamba2ForCausalLM.from_pretrained(tmp_path, use_cache=False)
    if style == "hf":
        assert from_hf(model.config) == CASES[FULL]
    assert model.config.use_cache is False
    model.zamba.config = CASES[FULL]  # the older kinds cannot say what the clamp is
    assert_within("paths", model(IDS).logits, ours(FULL)(IDS).logits)


@pytest.mark.parametrize(
    "device_map", [None, "auto", "cpu", {"": "cpu"}, {"zamba": "cpu", "lm_head": "cpu"}, torch.device("cpu")]
)
def test_one_device(device_map):
    assert ours(FULL, device_map=device_map).device.type == "cpu"


def test_dtypes_and_states(tmp_path):
    assert ours(FULL, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert ours(FULL, dtype="float16").dtype == torch.float16
    case_model(FULL).to(torch.bfloat16).save(tmp_path)
    for wanted in ({}, {"dtype": "auto"}):
        model = Zamba2ForCausalLM.from_pretrained(tmp_path, **wanted)
        assert model.dtype == torch.bfloat16 and model.config.dtype == torch.bfloat16
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_settings_of_the_config():
    model = ours(FULL, use_cache=False, output_hidden_states=True)
    assert model.config.use_cache is False and model(IDS).hidden_states is not None
    with pytest.raises(ZambaError, match="unknown argument 'use_cahce', did you mean 'use_cache'"):
        ours(FULL, use_cahce=False)


def test_a_config_of_ones_own():
    config = Zamba2Config.from_pretrained(folder(FULL))
    config.output_hidden_states = True
    model = Zamba2ForCausalLM.from_pretrained(folder(FULL), config=config)
    assert model(IDS).hidden_states is not None and model.config is not config
    config.vocab_size = 64
    with pytest.raises(ZambaError, match="do not fit"):
        Zamba2ForCausalLM.from_pretrained(folder(FULL), config=config)


def test_the_generation_config(tmp_path):
    case_model(FULL).save(tmp_path)
    GenerationConfig(eos_token_id=[2, 7], temperature=0.5, do_sample=True).save_pretrained(tmp_path)
    model = Zamba2ForCausalLM.from_pretrained(tmp_path)
    assert model.generation_config.eos_token_id == [2, 7] and model.generation_config.do_sample
    assert Zamba2ForCausalLM.from_pretrained(folder(FULL)).generation_config.eos_token_id == 2


def test_names_of_the_hub_go_to_the_resolver(monkeypatch):
    asked = []
    monkeypatch.setattr("zamba_lm.hf.load.resolve", lambda name, revision=None: asked.append((name, revision)) or folder(PLAIN))
    ZambaForCausalLM.from_pretrained("Zyphra/Zamba-7B-v1", revision="iter2500")
    ZambaForCausalLM.from_pretrained("zamba-7b-v1", revision="main")
    assert asked == [("Zyphra/Zamba-7B-v1", "iter2500"), ("zamba-7b-v1", None)]


def test_options_of_the_hub_go_to_its_client(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.append((name, options)) or folder(PLAIN)
    )
    ZambaForCausalLM.from_pretrained("a/b", revision="x", cache_dir="/c", token="t", local_files_only=False)
    assert asked == [("a/b", {"revision": "x", "cache_dir": "/c", "token": "t"})]


def test_the_embedded_model():
    model = Zamba2ForCausalLM.from_pretrained("zamba2-pebble")
    assert model.config.model_type == "zamba2" and model.num_parameters() == model.zamba.config.n_params()


def test_what_was_missing_is_told():
    model, info = Zamba2ForSequenceClassification.from_pretrained(folder(FULL), num_labels=4, output_loading_info=True)
    assert info["missing_keys"] == {"score.weight"} and model.score.weight.shape == (4, 32) and model.score.weight.std() > 0
    assert not Zamba2ForCausalLM.from_pretrained(folder(FULL), output_loading_info=True)[1]["missing_keys"]
    assert_within(
        "paths", Zamba2Model.from_pretrained(folder(FULL))(IDS).last_hidden_state, model.base_model(IDS).last_hidden_state
    )


def test_wrapping_shares_parameters():
    zamba = case_model(FULL)
    model = wrap(zamba, use_cache=False)
    assert model.zamba is zamba and model.lm_head.weight is zamba.embedding.weight and model.config.use_cache is False
    assert torch.equal(model(IDS).logits.flatten(0, 1), zamba.logits(IDS).flatten(0, 1))
    assert sum(1 for _ in model.parameters()) == sum(1 for _ in zamba.parameters())


def test_from_tensors():
    source = ours(FULL)
    for tensors in (source.state_dict(), case_model_tensors()):
        model = Zamba2ForCausalLM.from_pretrained(None, config=source.config, state_dict=tensors)
        assert_within("paths", model(IDS).logits, source(IDS).logits)


def case_model_tensors():
    from safetensors.torch import load_file

    return load_file(folder(FULL) / "model.safetensors")


def test_random_models_by_seed():
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(Zamba2ForCausalLM(to_hf(CASES[FULL]))(IDS).logits)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"device_map": {"a": "cpu", "b": "cuda:0"}}, "names 2 devices"),
        ({"device_map": "gpu"}, "unknown device 'gpu'"),
        ({"dtype": "float8"}, "float8"),
        ({"quantization_config": object()}, "takes no quantization_config"),
        ({"tp_plan": "auto"}, "use zamba_lm.parallel"),
    ],
)
def test_what_cannot_be_had(settings, says):
    with pytest.raises(ZambaError, match=says):
        ours(FULL, **settings)


def test_wrong_folders(tmp_path):
    with pytest.raises(ZambaError, match="is for zamba2"):
        Zamba2ForCausalLM.from_pretrained(folder(PLAIN))
    with pytest.raises(ZambaError, match="no config.json"):
        Zamba2ForCausalLM.from_pretrained(tmp_path)
    case_model(FULL).save(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    with pytest.raises(ZambaError, match="tie_word_embeddings is False"):
        Zamba2ForCausalLM.from_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(ZambaError, match="meta device"):
        Zamba2ForCausalLM.from_pretrained(folder(FULL))


@pytest.mark.parametrize("name", NAMES)
def test_loading_takes_little_memory_beside_the_model(name, tmp_path):
    """Nothing is allocated twice: what torch allocates on the way is the parameters and, one at a time, a woven tensor."""
    model = case_model(name)
    model.save(tmp_path)
    made = []
    real = torch.empty

    def counting(*args, **kwargs):
        found = real(*args, **kwargs)
        if found.device.type != "meta":
            made.append(found.nbytes)
        return found

    torch.empty = counting
    try:
        CLASSES[CASES[name].family].from_pretrained(tmp_path)
    finally:
        torch.empty = real
    assert sum(made) < 1.5 * sum(parameter.nbytes for parameter in model.parameters())
