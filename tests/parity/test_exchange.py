"""Files from us to transformers and back: complete both ways, bit for bit, in every style in which they write tied weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Zamba2Config, Zamba2ForCausalLM, ZambaConfig, ZambaForCausalLM

from tests.model.tiny import random_ids
from tests.numerics.tolerances import assert_within
from tests.parity import theirs
from tests.parity.cases import CASES, CLAMP, FULL, PLAIN, case_model
from zamba_lm.errors import ZambaError
from zamba_lm.model.load import load_model

IDS = random_ids(2, 40)
NO_ADAPTERS = "Zamba2: 2 blocks, no adapters, RoPE, 2 groups"
THREE_BLOCKS = "Zamba2: 3 blocks, 4 calls"
TIED = (PLAIN, FULL, NO_ADAPTERS, THREE_BLOCKS)


@torch.inference_mode()
def ours(model):
    return model.logits(IDS)


def assert_same_parameters(model, other):
    expected = dict(other.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(expected)
    different = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, expected[name])]
    assert not different


@pytest.mark.parametrize("name", CASES)
def test_to_transformers_and_back(name, tmp_path):
    model = case_model(name)
    model.save(tmp_path / "ours")
    theirs.read(tmp_path / "ours", CASES[name]).save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert back.config == CASES[name]
    assert_same_parameters(back, model)
    assert torch.equal(ours(back), ours(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [PLAIN, FULL])
def test_half_precision_to_transformers_and_back(name, dtype, tmp_path):
    model = case_model(name).to(dtype)
    model.save(tmp_path / "ours")
    other = theirs.read(tmp_path / "ours", CASES[name])
    assert other.dtype == dtype
    other.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    widened = {one.rpartition(".")[2] for one, parameter in back.named_parameters() if parameter.dtype != dtype}
    assert widened == ({"A_log"} if name == PLAIN else set())  # they hold and save that of Zamba in float32 always
    assert_same_parameters(back.to(dtype), model)


@pytest.mark.parametrize("name", [PLAIN, FULL])
def test_the_auto_class_finds_the_model(name, tmp_path):
    case_model(name).save(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is theirs.CLASSES[CASES[name].family]


# models born in transformers, from configs that we did not write

BORN = {
    "zamba": (ZambaForCausalLM, ZambaConfig, {"num_hidden_layers": 9, "n_mamba_heads": 2, "mamba_d_state": 4}),
    "zamba, listed layers": (
        ZambaForCausalLM,
        ZambaConfig,
        {
            "num_hidden_layers": 4,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "mamba_dt_rank": 5,
            "mamba_d_state": 4,
        },
    ),
    "zamba2": (
        Zamba2ForCausalLM,
        Zamba2Config,
        {"num_hidden_layers": 5, "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 2},
    ),
    "zamba2, everything": (
        Zamba2ForCausalLM,
        Zamba2Config,
        {
            "num_hidden_layers": 5,
            "layers_block_type": ["hybrid", "linear_attention", "hybrid", "linear_attention", "hybrid"],
            "num_mem_blocks": 2,
            "mamba_ngroups": 4,
            "use_mem_rope": True,
            "use_shared_attention_adapter": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0},
            "mamba_d_conv": 3,
        },
    ),
}
SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4}


def born(name):
    """Their model with their initialisation, its vectors shaken so that none is all ones or zeros."""
    make, config, settings = BORN[name]
    adapters = {"adapter_rank": 4, "mamba_d_state": 16} if make is Zamba2ForCausalLM else {}
    torch.manual_seed(5)
    model = make(config(**SIZES | adapters | settings, initializer_range=0.15)).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += 0.2 + 0.2 * torch.rand_like(parameter)
    return model


@pytest.mark.parametrize("shard", ["50GB", "20KB"], ids=["one file", "shards"])
@pytest.mark.parametrize("name", BORN)
def test_their_models_are_ours(name, shard, tmp_path):
    other = born(name)
    other.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (shard == "20KB")
    model = load_model(tmp_path, overrides={"dt_limit": CLAMP} if name.startswith("zamba2") else {})
    assert model.dtype == torch.float32 and ours(model).std() > 0.3
    assert_within("parity", ours(model), theirs.logits(other, IDS))


# tied weights


def repeated(model) -> dict[str, torch.Tensor]:
    """Every name that transformers has for a tensor, with a copy of its own under each."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def shared_names(tensors):
    return [name for name in tensors if ".shared_transf" in name]


@pytest.mark.parametrize("name", TIED)
def test_shared_blocks_stored_once_or_under_every_caller(name, tmp_path):
    config, model = CASES[name], case_model(name)
    model.save(tmp_path / "ours")
    other = theirs.read(tmp_path / "ours", config)
    other.save_pretrained(tmp_path / "once")
    other.save_pretrained(tmp_path / "repeated")
    save_file(repeated(other), tmp_path / "repeated" / "model.safetensors", metadata={"format": "pt"})
    once, every = (load_file(tmp_path / style / "model.safetensors") for style in ("once", "repeated"))
    blocks, calls = config.n_blocks, config.n_calls
    stored = ".pre_ff_layernorm.weight"
    assert sum(stored in one for one in shared_names(once)) == blocks
    assert sum(stored in one for one in shared_names(every)) == calls
    assert "lm_head.weight" in every and "lm_head.weight" not in once
    for style in ("once", "repeated"):
        assert_same_parameters(load_model(tmp_path / style), model)
    assert_within("parity", ours(model), theirs.logits(theirs.read(tmp_path / "repeated", config), IDS))


@pytest.mark.parametrize("name", TIED)
def test_our_file_stores_shared_blocks_once(name, tmp_path):
    config = CASES[name]
    case_model(name).save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    homes = {one.split(".shared_transf")[0] for one in shared_names(tensors)}
    assert homes == {f"model.layers.{layer}" for layer in config.hybrid_layers[: config.n_blocks]}
    assert sum(tensor.numel() for tensor in tensors.values()) == config.n_params()


@pytest.mark.parametrize("name", TIED)
def test_copies_that_differ_are_refused_by_name(name, tmp_path):
    config = CASES[name]
    case_model(name).save(tmp_path)
    tensors = repeated(theirs.read(tmp_path, config))
    last = next(one for one in reversed(tensors) if ".shared_transf" in one and one.endswith("down_proj.weight"))
    tensors[last][0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ZambaError, match=last.replace(".", r"\.")):
        load_model(tmp_path)


def test_the_config_survives_what_transformers_adds(tmp_path):
    """They write dozens of keys that we do not; every one of them is understood."""
    case_model(FULL).save(tmp_path / "ours")
    theirs.read(tmp_path / "ours", CASES[FULL]).save_pretrained(tmp_path / "theirs")
    before, after = (set(json.loads((tmp_path / side / "config.json").read_text())) for side in ("ours", "theirs"))
    assert after - before
    assert load_model(tmp_path / "theirs").config == CASES[FULL]
