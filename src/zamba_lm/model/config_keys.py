"""The keys of config.json, as tables for ``config_read.py`` and ``config_write.py``.

Everything is said in the names of transformers; the older dictionaries are renamed on the way in and out. Sources: transformers
4.45 to 5.23 `models/zamba` and `models/zamba2`, github.com/Zyphra/transformers_zamba, .../transformers_zamba2 and .../Zamba2.
"""

from math import inf
from typing import Any

# our field -> key of transformers, for values that are simply copied
WHOLES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_blocks": "num_mem_blocks",
    "expand": "mamba_expand",
    "d_state": "mamba_d_state",
    "n_groups": "mamba_ngroups",
    "d_conv": "mamba_d_conv",
    "n_heads": "num_attention_heads",
    "adapter_rank": "adapter_rank",
    "max_positions": "max_position_embeddings",
}
ZAMBA2_ONLY = ("num_mem_blocks", "mamba_ngroups", "adapter_rank")
NUMBERS = {
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_floor": "time_step_floor",
}
TOKENS = {"pad_id": "pad_token_id", "bos_id": "bos_token_id", "eos_id": "eos_token_id"}

# what a config that leaves a key out means
_COMMON: dict[str, Any] = {
    "vocab_size": 32000,
    "num_mem_blocks": 1,
    "mamba_expand": 2,
    "mamba_ngroups": 1,
    "mamba_d_conv": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "time_step_min": 1e-3,
    "time_step_max": 0.1,
    "time_step_floor": 1e-4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "adapter_rank": 0,
    "dtype": "bfloat16",
}
_ZAMBA2 = _COMMON | {
    "hidden_size": 2560,
    "num_hidden_layers": 54,
    "mamba_d_state": 64,
    "num_attention_heads": 32,
    "adapter_rank": 128,
    "use_shared_block_lora": True,
}
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("zamba", "hf"): _COMMON
    | {
        "hidden_size": 3712,
        "intermediate_size": 14848,
        "num_hidden_layers": 76,
        "mamba_d_state": 16,
        "mamba_dt_rank": "auto",
        "n_mamba_heads": 2,
        "num_attention_heads": 16,
        "attn_layer_period": 6,
        "attn_layer_offset": 4,
    },
    ("zamba2", "hf"): _ZAMBA2 | {"n_mamba_heads": 8},
    ("zamba2", "fork"): _ZAMBA2 | {"mamba_headdim": 64},
    ("zamba2", "native"): _ZAMBA2 | {"mamba_headdim": 64, "adapter_rank": 16, "use_shared_block_lora": False},
}
LONG_POSITIONS = 16384  # positions of a long-context config that does not say
DEFAULT_ZAMBA2_LAYERS = (6, 12, 18, 24, 30, 36, 42, 47, 51)  # of 54, for a config that lists no layers

# older names -> names of transformers
_FORK = {
    "layers": "layers_block_type",
    "state_size": "mamba_d_state",
    "conv_dimension": "mamba_d_conv",
    "expansion_factor": "mamba_expand",
    "ffn_hidden_size": "intermediate_size",
    "lora_rank": "adapter_rank",
    "use_shared_attention_lora": "use_shared_attention_adapter",
    "num_mem_heads": "num_attention_heads",
}
_NATIVE = _FORK | {
    "num_layers": "num_hidden_layers",
    "padded_vocab_size": "vocab_size",
    "layer_mapping": "layers_block_type",
    "layernorm_epsilon": "rms_norm_eps",
    "init_method_std": "initializer_range",
    "dt_min": "time_step_min",
    "dt_max": "time_step_max",
    "dt_init_floor": "time_step_floor",
}
RENAMED = {"hf": {"torch_dtype": "dtype", "layer_types": "layers_block_type"}, "fork": _FORK, "native": _NATIVE}
RENAMED["fork"] = RENAMED["hf"] | _FORK
RENAMED["native"] = RENAMED["hf"] | _NATIVE

# keys that give an older dictionary away
MARKS = {
    "native": ("layer_mapping", "num_layers"),
    "fork": (
        "state_size",
        "expansion_factor",
        "ffn_hidden_size",
        "lora_rank",
        "use_shared_block_lora",
        "use_shared_attention_lora",
        "layers",
    ),
}

# entries of layers_block_type: does the layer call a shared block?
LAYER_KINDS = {"mamba": False, "linear_attention": False, "m": False, "hybrid": True, "g": True}

# features that our model has in one form only; None stands for a key that is not there
FIXED: dict[str, tuple[Any, ...]] = {
    "tie_word_embeddings": (True, None),
    "hidden_act": ("gelu", None),
    "hidden_mamba_act": ("silu", None),
    "mamba_conv_bias": (True, None),
    "mamba_proj_bias": (False, None),
    "use_conv_bias": (True, None),
    "add_bias_linear": (False, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "rope_scaling": (None, {"type": "default"}, {"rope_type": "default"}),
    "gated_linear_unit": (True, None),
    "ft_lora": (False, None),
    "rms_norm": (True, None),
    "use_mem_mlp": (True, None),
    "conv_bias": (True, None),
    "use_low_rank_mamba_proj": (False, None),
    "use_module_layernorm": (True, None),
    "layernorm_zero_centered_gamma": (False, None),
    "residual_in_fp32": (False, None),
    "fp32_residual_connection": (False, None),
    "num_moe_experts": (None,),
    "window_size": (None,),
}

# keys that are read by hand, beside those of WHOLES, NUMBERS and TOKENS
READ = (
    "model_type",
    "dtype",
    "layers_block_type",
    "hybrid_layer_ids",
    "attn_layer_period",
    "attn_layer_offset",
    "intermediate_size",
    "n_mamba_heads",
    "mamba_headdim",
    "mamba_dt_rank",
    "use_shared_attention_adapter",
    "use_shared_block_lora",
    "use_mem_rope",
    "rope_theta",
    "rope_parameters",
    "use_long_context",
    "time_step_limit",
    "attention_hidden_size",
    "attention_head_dim",
    "head_dim",
    "kv_channels",
    "kv_mem_channels",
    "num_key_value_heads",
    "num_query_groups",
    "num_mem_query_groups",
)

# keys that say nothing about what the model computes: speed, training, generation, bookkeeping. Those with a leading _ are
# among them.
HARMLESS = frozenset(
    """
    architectures auto_map transformers_version base_model_type torchscript use_bfloat16 name_or_path attn_implementation
    use_cache num_logits_to_keep use_mamba_kernels use_mem_eff_path use_associative_scan use_fast_path use_shared_mlp_adapter
    chunk_size attention_dropout hidden_dropout unk_token_id sep_token_id cls_token_id decoder_start_token_id output_attentions
    output_hidden_states output_scores return_dict return_dict_in_generate is_decoder is_encoder_decoder add_cross_attention
    tie_encoder_decoder cross_attention_hidden_size pruned_heads chunk_size_feed_forward id2label label2id num_labels
    problem_type finetuning_task task_specific_params tokenizer_class prefix max_length min_length do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens tf_legacy_loss
    calc_logits_for_entire_prompt output_router_logits bias dt_rank dt_init dt_scale fused_add_norm attention_softmax_in_fp32
    apply_query_key_layer_scaling device bias_gelu_fusion masked_softmax_fusion persist_layer_norm bias_dropout_fusion
    gateconv_expansion_factor num_shared_mamba_proj mamba_lora_rank recompute_granularity recompute_method recompute_num_layers
    distribute_saved_activations """.split()
)

NO_LIMIT = (0.0, inf)
ROPE_THETA = 10_000.0  # RoPE's base where a config does not say
