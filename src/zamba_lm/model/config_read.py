"""ZambaConfig from the config.json of every kind of checkpoint.

Three kinds of dictionary: ``hf`` (transformers 4 and 5, both families), ``fork`` (the authors' older transformers fork) and
``native`` (the authors' own code). Which key means what stands in ``config_keys.py``. Reading is strict: an unknown key, a
value of the wrong kind, a feature our model does not have and derived values that contradict the rest are ZambaErrors.
"""

from collections.abc import Callable
from difflib import get_close_matches
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from zamba_lm.errors import ZambaError
from zamba_lm.model import config_keys as keys

if TYPE_CHECKING:
    from zamba_lm.model.config import ZambaConfig

LARGEST = 2**31 - 1  # of whole numbers


class _Raw:
    """A config dictionary in the names of transformers, with checked access. Errors use the names that the file uses."""

    def __init__(self, raw: dict[str, Any]):
        self.kind = kind_of(raw)
        self.values: dict[str, Any] = {}
        self.said: dict[str, str] = {}  # name of transformers -> name in the file
        for name, value in raw.items():
            self._add(keys.RENAMED[self.kind].get(name, name), name, value)
        self.family = self._family()
        self.defaults = keys.DEFAULTS[self.family, self.kind]

    def _add(self, key: str, name: str, value: Any) -> None:
        if self.values.get(key) is not None and value is not None and self.values[key] != value:
            raise ZambaError(
                f"the config contradicts itself: {self.said[key]} is {_short(self.values[key])}, {name} is {_short(value)}"
            )
        if value is not None or key not in self.values:
            self.values[key], self.said[key] = value, name

    def _family(self) -> str:
        model_type = self.values.get("model_type", "zamba2" if self.kind != "hf" else None)
        if model_type != "zamba" and model_type != "zamba2":
            raise ZambaError(f"model_type is {_short(model_type)}, expected 'zamba' or 'zamba2'")
        return str(model_type)

    def wrong(self, key: str, expected: str) -> ZambaError:
        return ZambaError(f"{self.said.get(key, key)} is {_short(self.values.get(key))} in the config, expected {expected}")

    def get(self, key: str) -> Any:
        """The value, or the default where the config has none."""
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def whole(self, key: str) -> int:
        value = self.get(key)
        if type(value) is not int or not 0 <= value <= LARGEST:
            raise self.wrong(key, f"a whole number from 0 to {LARGEST}")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise self.wrong(key, "true or false")
        return bool(value)

    def token(self, key: str) -> Any:
        """A token id, several, or None: here null is a value and not an absence."""
        value = self.values[key] if key in self.values else self.defaults[key]
        ids = value if isinstance(value, list) and key == "eos_token_id" else [value]
        if value is not None and not all(type(one) is int and 0 <= one <= LARGEST for one in ids):
            raise self.wrong(key, "a token id or null")
        return tuple(value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def from_dict(raw: dict[str, Any], make: "Callable[..., ZambaConfig]") -> "ZambaConfig":
    """Read any of the three kinds; ``make`` is ZambaConfig. Raises ZambaError, and nothing else, whatever is wrong with
    ``raw``.
    """
    if not isinstance(raw, dict):
        raise ZambaError(f"a config must be a JSON object, not {type(raw).__name__}")
    read = _Raw(raw)
    _refuse_unknown(raw, read.kind)
    _refuse_unsupported(read)
    fields: dict[str, Any] = {"family": read.family}
    fields |= {field: read.whole(key) for field, key in keys.WHOLES.items()}
    fields |= {field: read.number(key) for field, key in keys.NUMBERS.items()}
    fields |= {field: read.token(key) for field, key in keys.TOKENS.items()}
    fields["hybrid_layers"] = _hybrid_layers(read, fields["n_layers"])
    fields["n_ssm_heads"] = _ssm_heads(read, fields["expand"] * fields["d_model"])
    fields["d_ff"] = 4 * fields["d_model"] if read.get("intermediate_size") is None else read.whole("intermediate_size")
    fields["dt_limit"] = _dt_limit(read)
    fields["dtype"] = str(read.get("dtype")).removeprefix("torch.")
    fields |= _zamba(read, fields["d_model"]) if read.family == "zamba" else _zamba2(read, fields)
    config = make(**fields)
    _refuse_contradictions(read, config)
    return config


def kind_of(raw: dict[str, Any]) -> str:
    """Is it "native", "fork" or "hf"? Told by keys that only one of them has."""
    if "model_type" not in raw and any(key in raw for key in keys.MARKS["native"]):
        return "native"
    return "fork" if raw.get("model_type") != "zamba" and any(key in raw for key in keys.MARKS["fork"]) else "hf"


def _refuse_unknown(raw: dict[str, Any], kind: str) -> None:
    tables = (keys.WHOLES.values(), keys.NUMBERS.values(), keys.TOKENS.values(), keys.FIXED, keys.READ, keys.RENAMED[kind])
    known = {key for table in tables for key in table}
    for key in raw:
        if not isinstance(key, str):
            raise ZambaError(f"the config has a key {_short(key)} that is not text")
        if key not in known and key not in keys.HARMLESS and not key.startswith("_"):
            near = get_close_matches(key, known | keys.HARMLESS, 1)
            raise ZambaError(f"unknown key {_short(key)} in the config" + (f", did you mean {near[0]!r}?" if near else ""))


def _refuse_unsupported(read: _Raw) -> None:
    for key, allowed in keys.FIXED.items():
        if not any(read.values.get(key) == value for value in allowed):
            raise read.wrong(key, f"{allowed[0]!r}: our model has no other form")


def _hybrid_layers(read: _Raw, n_layers: int) -> tuple[int, ...]:
    """Indices of the layers that call a shared block, from whichever way the config says it."""
    kinds = read.get("layers_block_type")
    if kinds is None:
        return _unlisted_layers(read, n_layers)
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        count = len(kinds) if isinstance(kinds, list) else "no"
        raise read.wrong("layers_block_type", f"a list of {n_layers} kinds of layers, one for each, not {count}")
    for index, kind in enumerate(kinds):
        if not isinstance(kind, str) or kind not in keys.LAYER_KINDS:
            names = ", ".join(keys.LAYER_KINDS)
            raise ZambaError(
                f"layer {index} is of kind {_short(kind)} in {read.said['layers_block_type']}, expected one of {names}"
            )
    return tuple(index for index, kind in enumerate(kinds) if keys.LAYER_KINDS[kind])


def _unlisted_layers(read: _Raw, n_layers: int) -> tuple[int, ...]:
    ids = read.get("hybrid_layer_ids")
    if ids is not None:
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            raise read.wrong("hybrid_layer_ids", "a list of layer indices")
        return tuple(ids)
    if read.family == "zamba2":
        if n_layers != 54:
            raise ZambaError(f"the config has {n_layers} layers but no layers_block_type that says which call a shared block")
        return keys.DEFAULT_ZAMBA2_LAYERS
    # Zamba-7B-v1: two plain layers and a hybrid one, then one in every period
    period, offset = read.whole("attn_layer_period"), read.whole("attn_layer_offset")
    if not period or offset >= period or n_layers > 10_000:
        raise read.wrong("attn_layer_period", f"more than attn_layer_offset, which is {offset}")
    return tuple(layer for layer in (2, *range(3 + offset, n_layers, period)) if layer < n_layers)


def _ssm_heads(read: _Raw, d_inner: int) -> int:
    """Number of heads, stated or by their size; what is stated goes before any default."""
    stated = [key for key in ("n_mamba_heads", "mamba_headdim") if read.values.get(key) is not None]
    key = (stated or [key for key in ("n_mamba_heads", "mamba_headdim") if key in read.defaults])[0]
    value = read.whole(key)
    if key == "n_mamba_heads":
        return value
    if not value or d_inner % value:
        raise read.wrong(key, f"a divisor of the mixer width {d_inner}")
    return d_inner // value


def _dt_limit(read: _Raw) -> tuple[float, float]:
    limit = read.get("time_step_limit")
    if limit is None:
        return keys.NO_LIMIT
    if not isinstance(limit, list | tuple) or len(limit) != 2:
        raise read.wrong("time_step_limit", "two numbers, the second of them null for no limit")
    low, high = limit[0], inf if limit[1] is None else limit[1]
    if not all(type(one) in (int, float) for one in (low, high)) or not abs(low) < 1e30 or not (high == inf or abs(high) < 1e30):
        raise read.wrong("time_step_limit", "two numbers, the second of them null for no limit")
    return float(low), float(high)


def _zamba(read: _Raw, d_model: int) -> dict[str, Any]:
    rank = read.get("mamba_dt_rank")
    if rank != "auto":
        rank = read.whole("mamba_dt_rank")
    # of Zamba2 alone; a stray adapter_rank or rope_theta in a Zamba config has no effect in transformers either
    return {"dt_rank": ceil(d_model / 16) if rank == "auto" else rank, "n_blocks": 1, "n_groups": 1, "adapter_rank": 0}


def _zamba2(read: _Raw, fields: dict[str, Any]) -> dict[str, Any]:
    long, rotate = read.flag("use_long_context"), read.flag("use_mem_rope")
    qkv, mlp = read.flag("use_shared_attention_adapter"), read.kind == "hf" or read.flag("use_shared_block_lora")
    if qkv and not mlp:
        raise read.wrong("use_shared_block_lora", "true: adapters on q, k and v come with adapters on the MLP")
    if long and read.values.get("max_position_embeddings") is None:
        fields["max_positions"] = keys.LONG_POSITIONS
    return {
        "adapter_rank": fields["adapter_rank"] if mlp else 0,
        "attention_adapters": qkv,
        "rope_theta": _theta(read, fields, long) if rotate else 0.0,
        "long_context": long and rotate,
    }


def _theta(read: _Raw, fields: dict[str, Any], long: bool) -> float:
    """RoPE's base before the long-context rescaling.

    transformers 4 rescaled while reading and wrote the rescaled value back, beside the switch that asks for the rescaling. No one
    means 10000 to be rescaled twice, so the rescaled default counts as the default.
    """
    parameters = read.get("rope_parameters")
    if parameters is not None:
        plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
        if not isinstance(parameters, dict) or any(plain.get(key) != parameters[key] for key in set(parameters) - {"rope_theta"}):
            raise read.wrong("rope_parameters", "an object with rope_theta and the rope_type 'default'")
        read._add("rope_theta", "rope_theta of rope_parameters", parameters.get("rope_theta"))
    theta = keys.ROPE_THETA if read.get("rope_theta") is None else read.number("rope_theta")
    if not theta > 0:
        raise read.wrong("rope_theta", "a positive number")
    if long and fields["n_heads"]:
        size = 2 * fields["d_model"] // fields["n_heads"]
        again = keys.ROPE_THETA * 8 ** (size / (size - 2)) if size > 2 else keys.ROPE_THETA
        return keys.ROPE_THETA if abs(theta / again - 1) < 1e-6 else theta
    return theta


def _refuse_contradictions(read: _Raw, c: "ZambaConfig") -> None:
    """Values that follow from others must agree with them."""
    derived = {
        "attention_hidden_size": c.d_attn,
        "attention_head_dim": c.head_dim,
        "head_dim": c.head_dim,
        "kv_channels": c.d_model // c.n_heads,
        "kv_mem_channels": c.d_model // c.n_heads,
        "num_key_value_heads": c.n_heads,
        "num_query_groups": c.n_heads,
        "num_mem_query_groups": c.n_heads,
        "mamba_headdim": c.ssm_head_dim,
        "hybrid_layer_ids": list(c.hybrid_layers),
    }
    for key, expected in derived.items():
        if read.values.get(key) not in (None, expected):
            raise read.wrong(key, f"{_short(expected)}, which follows from the other keys")
