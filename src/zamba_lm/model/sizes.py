"""What a config weighs: parameters, bytes and floating-point operations, by closed arithmetic.

All of them are methods of ZambaConfig. ``dtype=None`` means the dtype of the checkpoint, ``config.dtype``. The shapes of every
parameter by name stand in ``names.py``; a test holds the two against each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zamba_lm.errors import ZambaError

if TYPE_CHECKING:
    from zamba_lm.model.config import ZambaConfig

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def item_bytes(dtype: object) -> int:
    """Bytes of one number of ``dtype``, given as a name ("bfloat16") or as a torch dtype."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise ZambaError(f"unknown dtype {name!r}, expected one of {', '.join(ITEM_BYTES)}")
    return ITEM_BYTES[name]


# parameters


def n_params(c: ZambaConfig) -> int:
    """Distinct parameters: a shared block counts once, the tied embedding counts once."""
    blocks = c.n_blocks * block_params(c) if c.hybrid_layers else 0
    return c.vocab_size * c.d_model + c.d_model + _layer_params(c) + blocks


def weights_read_per_token(c: ZambaConfig) -> int:
    """Parameters that pass through the processor for one token: a shared block again at each call.

    The embedding counts once, as the output matrix; the one row looked up on the way in does not count.
    """
    blocks = c.n_calls * block_params(c)
    return c.vocab_size * c.d_model + c.d_model + _layer_params(c) + blocks


def block_params(c: ZambaConfig) -> int:
    """Parameters of one shared block, without the adapters and the link, which belong to the layers."""
    d, attention = c.d_model, c.d_attn
    norms = attention + d
    return norms + 3 * attention * attention + attention * d + 3 * d * c.d_ff


def adapter_params(c: ZambaConfig) -> int:
    """Parameters of the adapters of one call."""
    gate_up = c.d_model + 2 * c.d_ff
    qkv = 3 * (c.d_attn + c.d_attn) if c.attention_adapters else 0
    return c.adapter_rank * (gate_up + qkv)


def mixer_params(c: ZambaConfig) -> int:
    """Parameters of one Mamba mixer."""
    d, inner, heads, state = c.d_model, c.d_inner, c.n_ssm_heads, c.d_state
    conv = c.conv_dim * (c.d_conv + 1)
    if c.family == "zamba2":
        return (inner + c.conv_dim + heads) * d + conv + 3 * heads + inner + inner * d
    per_channel = (c.dt_rank + 2 * state) + c.dt_rank + 1 + state + 1  # x_proj, dt_proj, dt_bias, A_log, D
    return 2 * inner * d + conv + inner * per_channel + inner * d


def _layer_params(c: ZambaConfig) -> int:
    hybrid = c.d_model * c.d_model + adapter_params(c)
    return c.n_layers * (mixer_params(c) + c.d_model) + c.n_calls * hybrid


# bytes


def weight_bytes(c: ZambaConfig, dtype: object = None) -> int:
    """Bytes of all parameters in one dtype."""
    return n_params(c) * item_bytes(dtype or c.dtype)


def kv_bytes_per_token(c: ZambaConfig, dtype: object = None) -> int:
    """Bytes of keys and values that one token of one sequence leaves behind (every call has its own)."""
    return c.n_calls * 2 * c.d_attn * item_bytes(dtype or c.dtype)


def state_bytes(c: ZambaConfig) -> int:
    """Bytes of the SSM state of one sequence, float32, at any length."""
    return c.n_layers * c.d_inner * c.d_state * item_bytes("float32")


def conv_state_bytes(c: ZambaConfig, dtype: object = None) -> int:
    """Bytes of the convolution's memory of one sequence: the last ``d_conv - 1`` inputs of every layer."""
    return c.n_layers * c.conv_dim * (c.d_conv - 1) * item_bytes(dtype or c.dtype)


# floating-point operations


def flops(c: ZambaConfig, tokens: int, context: int = 0, *, training: bool = False) -> int:
    """Operations (a multiply-add is two) for ``tokens`` new tokens of one sequence after ``context`` earlier ones.

    Matrix products, attention over the causal pairs and the recurrence h <- a h + b x, y = c h. ``training`` adds the backward
    pass, twice the forward. Norms, gates and the convolution's few taps are left out.
    """
    pairs = tokens * context + tokens * (tokens + 1) // 2
    attention = c.n_calls * 4 * c.d_attn * pairs
    recurrence = tokens * c.n_layers * 6 * c.d_inner * c.d_state
    forward = 2 * weights_read_per_token(c) * tokens + attention + recurrence
    return 3 * forward if training else forward
