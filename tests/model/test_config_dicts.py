"""config.json of every kind, read and written."""

import json
from dataclasses import replace
from math import inf

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tests.model.tiny_weights import CONFIGS, ONE_BLOCK, TWO_BLOCKS, ZAMBA
from zamba_lm.errors import ZambaError
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.config_read import kind_of
from zamba_lm.model.config_write import to_dict
from zamba_lm.model.presets import PRESETS, ZAMBA2_1_2B, ZAMBA2_2_7B, ZAMBA2_7B, ZAMBA_7B_V1

CLASSES = {"zamba": transformers.ZambaConfig, "zamba2": transformers.Zamba2Config}
KINDS = [(name, kind) for name in CONFIGS for kind in ("hf", "fork", "native") if name != "zamba" or kind == "hf"]


def layers(kinds, hybrid, count):
    """layers_block_type with two names for the two kinds of layer."""
    return [kinds[layer in hybrid] for layer in range(count)]


# The published 7B in the words of the authors' fork, as its config.json of October 2024 had it.
FORK_7B = {
    "add_bias_linear": False,
    "architectures": ["Zamba2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "conv_dimension": 4,
    "eos_token_id": 2,
    "expansion_factor": 2,
    "ffn_hidden_size": 14336,
    "ft_lora": False,
    "gated_linear_unit": True,
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "kv_channels": 112,
    "layers_block_type": layers(("m", "g"), ZAMBA2_7B.hybrid_layers, 81),
    "lora_rank": 128,
    "mamba_headdim": 64,
    "mamba_ngroups": 2,
    "max_position_embeddings": 4096,
    "model_type": "zamba2",
    "num_attention_heads": 32,
    "num_hidden_layers": 81,
    "num_key_value_heads": 32,
    "num_logits_to_keep": 1,
    "num_mem_blocks": 2,
    "num_query_groups": 32,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000,
    "sliding_window": None,
    "state_size": 64,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "use_mamba_kernels": True,
    "use_mem_rope": True,
    "use_shared_attention_lora": False,
    "use_shared_block_lora": True,
    "vocab_size": 32000,
}
# The 2.7B in the words of the authors' own code.
NATIVE_2_7B = {
    "num_layers": 54,
    "hidden_size": 2560,
    "state_size": 64,
    "conv_dimension": 4,
    "expansion_factor": 2,
    "rms_norm": True,
    "add_bias_linear": False,
    "use_mem_mlp": True,
    "use_shared_block_lora": True,
    "lora_rank": 128,
    "num_mem_heads": 32,
    "num_attention_heads": 32,
    "kv_channels": 80,
    "padded_vocab_size": 32000,
    "num_mem_blocks": 2,
    "layer_mapping": layers(("m", "g"), ZAMBA2_2_7B.hybrid_layers, 54),
}
# transformers 4: Zamba-7B-v1 says its layers by a period, Zamba2 by a list and a top-level rope_theta.
HF4_ZAMBA = {
    "model_type": "zamba",
    "hidden_size": 3712,
    "num_hidden_layers": 76,
    "attn_layer_period": 6,
    "attn_layer_offset": 4,
    "mamba_dt_rank": "auto",
    "n_mamba_heads": 2,
    "num_key_value_heads": 16,
    "rope_theta": 10000,
    "unk_token_id": 0,
    "torch_dtype": "bfloat16",
}
HF4_1_2B = {
    "model_type": "zamba2",
    "hidden_size": 2048,
    "num_hidden_layers": 38,
    "layers_block_type": layers(("mamba", "hybrid"), ZAMBA2_1_2B.hybrid_layers, 38),
    "hybrid_layer_ids": list(ZAMBA2_1_2B.hybrid_layers),
    "mamba_d_state": 128,
    "n_mamba_heads": 64,
    "mamba_headdim": 64,
    "intermediate_size": 8192,
    "num_mem_blocks": 1,
    "adapter_rank": 128,
    "use_shared_attention_adapter": True,
    "use_shared_mlp_adapter": True,
    "use_mem_rope": True,
    "rope_theta": 10000,
    "time_step_limit": None,
    "use_long_context": False,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("raw", "kind", "config"),
    [
        (FORK_7B, "fork", ZAMBA2_7B),
        (NATIVE_2_7B, "native", ZAMBA2_2_7B),
        (HF4_ZAMBA, "hf", ZAMBA_7B_V1),
        (HF4_1_2B, "hf", ZAMBA2_1_2B),
        ({"model_type": "zamba"}, "hf", ZAMBA_7B_V1),
        ({**NATIVE_2_7B, "layers": NATIVE_2_7B["layer_mapping"]}, "native", ZAMBA2_2_7B),
        ({**FORK_7B, "layers": FORK_7B["layers_block_type"], "layers_block_type": None}, "fork", ZAMBA2_7B),
    ],
)
def test_published_dictionaries(raw, kind, config):
    assert kind_of(raw) == kind
    assert ZambaConfig.from_hf(raw) == config


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_builds_the_presets_from_what_we_write(name):
    config = PRESETS[name]
    theirs = CLASSES[config.family](**config.to_hf())
    assert theirs.attention_head_dim == config.head_dim and theirs.num_hidden_layers == config.n_layers
    assert tuple(i for i, kind in enumerate(theirs.layers_block_type) if kind == "hybrid") == config.hybrid_layers
    assert ZambaConfig.from_hf(theirs.to_dict()) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_writes_what_we_read(name, tmp_path):
    config = CONFIGS[name]
    CLASSES[config.family](**config.to_hf()).save_pretrained(tmp_path)
    assert ZambaConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == config


@pytest.mark.parametrize("family", CLASSES)
def test_defaults_are_those_of_transformers(family):
    theirs = CLASSES[family]()
    config = ZambaConfig.from_hf({"model_type": family})
    assert config == ZambaConfig.from_hf(theirs.to_dict())
    assert config.ssm_head_dim == theirs.mamba_expand * theirs.hidden_size // theirs.n_mamba_heads


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_round_trip_through_json(name, kind):
    config = CONFIGS[name]
    raw = json.loads(json.dumps(to_dict(config, kind)))
    assert kind_of(raw) == kind and ZambaConfig.from_hf(raw) == config


whole = st.integers(1, 6)


@st.composite
def configs(draw):
    """Any config that can be built."""
    family = draw(st.sampled_from(("zamba", "zamba2")))
    n_layers = draw(st.integers(1, 12))
    hybrid = tuple(sorted(draw(st.sets(st.integers(0, n_layers - 1), max_size=5))))
    heads, groups, n_heads = draw(whole), draw(whole) if family == "zamba2" else 1, draw(whole)
    head_dim = 4 * draw(whole)
    zamba2 = family == "zamba2"
    theta = draw(st.sampled_from((0.0, 1e4, 5e5, 123.5))) if zamba2 else 0.0
    rank = draw(st.integers(0, 4)) if zamba2 else 0
    low = draw(st.sampled_from((0.0, 1e-3)))
    return ZambaConfig(
        family=family,
        vocab_size=draw(st.integers(3, 50)),
        d_model=n_heads * head_dim // 2 * heads * groups,
        n_layers=n_layers,
        hybrid_layers=hybrid,
        n_blocks=draw(st.integers(1, max(1, len(hybrid)))) if zamba2 else 1,
        expand=draw(st.integers(1, 3)),
        n_ssm_heads=heads * groups,
        d_state=draw(whole),
        n_groups=groups,
        d_conv=draw(st.integers(2, 5)),
        dt_rank=0 if zamba2 else draw(whole),
        n_heads=n_heads,
        d_ff=draw(st.integers(1, 99)),
        adapter_rank=rank,
        attention_adapters=rank > 0 and draw(st.booleans()),
        rope_theta=theta,
        long_context=theta > 0 and draw(st.booleans()),
        max_positions=draw(st.integers(1, 99999)),
        norm_eps=draw(st.sampled_from((1e-5, 1e-6))),
        dt_limit=(low, draw(st.sampled_from((inf, 0.5)))),
        pad_id=draw(st.sampled_from((None, 0, 2))),
        eos_id=draw(st.sampled_from((None, 2, (1, 2), ()))),
        dtype=draw(st.sampled_from(("float32", "bfloat16", "float16"))),
    )


@given(configs())
def test_round_trip_of_any_config(config):
    for kind in ("hf",) if config.family == "zamba" else ("hf", "fork", "native"):
        assert ZambaConfig.from_hf(json.loads(json.dumps(to_dict(config, kind)))) == config


@given(configs().filter(lambda config: config.hybrid_layers))
def test_transformers_reads_any_config(config):
    theirs = CLASSES[config.family](**config.to_hf())
    if config.long_context:  # transformers knows one length for these
        config = replace(config, max_positions=16384)
    assert ZambaConfig.from_hf(theirs.to_dict()) == config


# what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hiden_size": 64}, "unknown key 'hiden_size' in the config, did you mean 'hidden_size'?"),
        ({"rope_tehta": 1e4}, "did you mean 'rope_theta'?"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_size": "2048"}, "hidden_size is '2048'"),
        ({"hidden_size": 2048.0}, "hidden_size is 2048.0"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"vocab_size": 10**30}, "vocab_size is 1000"),
        ({"use_mem_rope": "yes"}, "use_mem_rope is 'yes'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu' in the config, expected 'gelu'"),
        ({"add_bias_linear": True}, "add_bias_linear is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"use_conv_bias": False}, "use_conv_bias is False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8 in the config, expected 32"),
        ({"attention_head_dim": 64}, "attention_head_dim is 64"),
        ({"mamba_headdim": 32}, "mamba_headdim is 32"),
        ({"hybrid_layer_ids": [5]}, "hybrid_layer_ids is [5]"),
        ({"layers_block_type": ["mamba"] * 37}, "a list of 38 kinds"),
        ({"layers_block_type": ["mamba"] * 37 + ["attention"]}, "layer 37 is of kind 'attention'"),
        ({"layers_block_type": None, "hybrid_layer_ids": None}, "38 layers but no layers_block_type"),
        ({"layer_types": ["mamba"] * 38}, "contradicts itself: layers_block_type"),
        ({"dtype": "float32"}, "contradicts itself"),
        ({"torch_dtype": "int8"}, "dtype is 'int8'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "rope_parameters is"),
        ({"rope_parameters": {"rope_theta": 5e5}}, "contradicts itself: rope_theta is 10000"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"time_step_limit": [0.1]}, "time_step_limit is"),
        ({"pad_token_id": 1.5}, "pad_token_id is 1.5"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id is"),
        ({"eos_token_id": 32000}, "eos_id 32000 is outside"),
        ({"num_attention_heads": 0}, "n_heads is 0"),
        ({7: 1}, "a key 7"),
    ],
)
def test_a_wrong_config_is_refused_by_name(change, words):
    with pytest.raises(ZambaError) as caught:
        ZambaConfig.from_hf({**HF4_1_2B, **change})
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ft_lora": True}, "ft_lora is True"),
        ({"state_size": "64"}, "state_size is '64'"),  # the file's own name, not the one it is renamed to
        ({"num_mem_heads": 16}, "num_mem_heads is 16"),
        ({"use_shared_block_lora": False, "use_shared_attention_lora": True}, "use_shared_block_lora is False"),
        ({"mamba_headdim": 63}, "a divisor of the mixer width 7168"),
        ({"gated_linear_unit": False}, "gated_linear_unit is False"),
        ({"model_type": "falcon_mamba"}, "model_type is 'falcon_mamba'"),
        ({"lora_rnk": 4}, "did you mean 'lora_rank'?"),
    ],
)
def test_a_wrong_fork_config_is_refused_by_name(change, words):
    with pytest.raises(ZambaError) as caught:
        ZambaConfig.from_hf({**FORK_7B, **change})
    assert words in str(caught.value)


def test_a_mamba_1_config_of_the_authors_own_code_is_refused():
    with pytest.raises(ZambaError, match="layer 0 is of kind 'r'"):
        ZambaConfig.from_hf({**NATIVE_2_7B, "layer_mapping": ["r"] * 54})


@pytest.mark.parametrize("raw", [None, [], "zamba2", 3, {}])
def test_what_is_no_config(raw):
    with pytest.raises(ZambaError):
        ZambaConfig.from_hf(raw)


def test_a_zamba_with_features_of_zamba2_cannot_be_written():
    with pytest.raises(ZambaError, match="adapters and RoPE"):
        replace(ZAMBA, adapter_rank=2, rope_theta=1e4).to_hf()
    with pytest.raises(ZambaError, match="no 'fork' config for zamba"):
        to_dict(ZAMBA, "fork")


# small print


def test_without_mem_rope_there_is_no_rope_whatever_theta_says():
    assert ZambaConfig.from_hf({**HF4_1_2B, "use_mem_rope": False}).rope_theta == 0


def test_long_context_sets_the_positions_that_a_config_does_not():
    long = {**HF4_1_2B, "use_long_context": True}
    assert ZambaConfig.from_hf(long).max_positions == 16384
    assert ZambaConfig.from_hf({**long, "max_position_embeddings": 8192}).max_positions == 8192


def test_long_context_is_not_rescaled_twice():
    """transformers 4 wrote the rescaled base back; transformers 5 keeps the plain one in rope_parameters. Both mean one model."""
    plain = {**HF4_1_2B, "use_long_context": True}
    written_back = {**plain, "rope_theta": 10_000 * 8 ** (128 / 126)}
    five = {**plain, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    configs = [ZambaConfig.from_hf(raw) for raw in (plain, written_back, five)]
    assert configs[0] == configs[1] == configs[2] and configs[0].rope_base == pytest.approx(10_000 * 8 ** (128 / 126))


def test_several_end_tokens():
    config = ZambaConfig.from_hf({**HF4_1_2B, "eos_token_id": [2, 7]})
    assert config.eos_ids == (2, 7) and config.to_hf()["eos_token_id"] == [2, 7]


def test_keys_with_an_underscore_and_remote_code_are_passed_over():
    extra = {"_name_or_path": "x", "_attn_implementation": "sdpa", "auto_map": {"AutoModel": "x.py"}, "attention_dropout": 0.1}
    assert ZambaConfig.from_hf({**HF4_1_2B, **extra}) == ZAMBA2_1_2B


# anything at all

junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
bases = st.sampled_from([to_dict(CONFIGS[name], kind) for name, kind in KINDS])


@given(bases, st.data())
def test_a_mutated_config_is_read_or_refused_but_never_breaks(base, data):
    raw = dict(base)
    for key in data.draw(st.lists(st.sampled_from(sorted(base)), max_size=3)):
        action = data.draw(st.sampled_from(("drop", "junk", "number")))
        if action == "drop":
            raw.pop(key, None)
        else:
            raw[key] = data.draw(junk if action == "junk" else st.integers(-3, 10**12) | st.floats())
    try:
        config = ZambaConfig.from_hf(raw)
    except ZambaError as error:
        assert "\n" not in str(error)
    else:
        assert config.n_params() > 0


@given(st.dictionaries(st.text(max_size=6) | st.sampled_from(sorted(ONE_BLOCK.to_hf())), junk, max_size=6))
def test_any_dictionary_is_refused_or_read(raw):
    try:
        ZambaConfig.from_hf(raw)
    except ZambaError:
        pass


def test_the_two_blocks_of_a_fork_are_told_from_the_first_config():
    assert ZambaConfig.from_hf(to_dict(TWO_BLOCKS, "fork")).n_blocks == 2
