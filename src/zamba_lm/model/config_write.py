"""ZambaConfig to the config.json of every kind of checkpoint. What it says is what ``config_read.py`` reads back."""

from math import isfinite
from typing import TYPE_CHECKING, Any

from zamba_lm.errors import ZambaError
from zamba_lm.model import config_keys as keys

if TYPE_CHECKING:
    from zamba_lm.model.config import ZambaConfig


def to_dict(c: "ZambaConfig", kind: str = "hf") -> dict[str, Any]:
    """The config.json of this kind; ``from_dict`` gives the same config back. ZambaError for what the kind cannot say."""
    if kind not in keys.RENAMED or (c.family, kind) not in keys.DEFAULTS:
        raise ZambaError(f"there is no {kind!r} config for {c.family}")
    if c.family == "zamba":
        common = _common(c)
        return {key: common[key] for key in common if key not in keys.ZAMBA2_ONLY} | _zamba_keys(c)
    found = _common(c) | _zamba2_keys(c)
    return found if kind == "hf" else _older(c, found, kind)


def _common(c: "ZambaConfig") -> dict[str, Any]:
    """What both families say."""
    values = vars(c)
    found = {key: values[field] for table in (keys.WHOLES, keys.NUMBERS) for field, key in table.items()}
    found |= {
        key: list(values[field]) if isinstance(values[field], tuple) else values[field] for field, key in keys.TOKENS.items()
    }
    found |= {
        "architectures": [{"zamba": "ZambaForCausalLM", "zamba2": "Zamba2ForCausalLM"}[c.family]],
        "model_type": c.family,
        "dtype": c.dtype,
        "layers_block_type": ["hybrid" if layer in c.hybrid_layers else "linear_attention" for layer in range(c.n_layers)],
        "n_mamba_heads": c.n_ssm_heads,
        "intermediate_size": c.d_ff,
        "num_key_value_heads": c.n_heads,
        "attention_hidden_size": c.d_attn,
        "attention_head_dim": c.head_dim,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "use_cache": True,
    }
    if c.dt_limit != keys.NO_LIMIT:
        found["time_step_limit"] = [c.dt_limit[0], c.dt_limit[1] if isfinite(c.dt_limit[1]) else None]
    return found


def _zamba_keys(c: "ZambaConfig") -> dict[str, Any]:
    extras = {"adapters": c.adapter_rank, "RoPE": c.rope_theta, "a second shared block": c.n_blocks > 1}
    if has := [name for name, value in extras.items() if value]:
        raise ZambaError(f"a Zamba with {' and '.join(has)} cannot be written: no config.json of that family can say so")
    return {"hidden_mamba_act": "silu", "mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_dt_rank": c.dt_rank}


def _zamba2_keys(c: "ZambaConfig") -> dict[str, Any]:
    return {
        "mamba_headdim": c.ssm_head_dim,
        "use_shared_attention_adapter": c.attention_adapters,
        "use_mem_rope": c.rope_theta > 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta or keys.ROPE_THETA},
        "use_long_context": c.long_context,
        "hybrid_layer_ids": list(c.hybrid_layers),
        "kv_channels": c.d_model // c.n_heads,
        "add_bias_linear": False,
        "use_conv_bias": True,
    }


def _older(c: "ZambaConfig", found: dict[str, Any], kind: str) -> dict[str, Any]:
    """The same in the names of an older kind, with the marks by which that kind is known."""
    names = {new: old for old, new in keys.RENAMED[kind].items() if old not in ("layer_types", "layers", "num_mem_heads")}
    found = {names.get(key, key): value for key, value in found.items()}
    layers = names.get("layers_block_type", "layers_block_type")
    found[layers] = ["g" if layer in c.hybrid_layers else "m" for layer in range(c.n_layers)]
    found |= {
        "use_shared_block_lora": c.adapter_rank > 0,
        "gated_linear_unit": True,
        "rope_theta": c.rope_theta or keys.ROPE_THETA,
    }
    for key in ("rope_parameters", "n_mamba_heads", "hybrid_layer_ids", "attention_hidden_size", "attention_head_dim"):
        del found[key]
    if kind == "native":
        del found["model_type"], found["architectures"]
        found |= {"rms_norm": True, "use_mem_mlp": True, "num_mem_heads": c.n_heads}
    return found
