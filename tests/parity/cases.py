"""What is compared with transformers: every combination of features, then sizes one at a time."""

from itertools import product
from math import inf
from zlib import crc32

import torch

from tests.model.tiny import random_model
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba

CLAMP = (1e-3, inf)  # what transformers does to the time steps of Zamba2 in whole passes, and not at all for Zamba
SMALL = {"vocab_size": 61, "d_model": 32, "n_layers": 5, "hybrid_layers": (1, 3, 4), "d_state": 8, "n_heads": 4, "d_ff": 40}
ZAMBA = SMALL | {"family": "zamba", "n_ssm_heads": 2, "dt_rank": 3, "dtype": "float32"}
ZAMBA2 = SMALL | {"family": "zamba2", "n_ssm_heads": 8, "adapter_rank": 3, "dt_limit": CLAMP, "dtype": "float32"}

BLOCKS = {"1 block": {"n_blocks": 1}, "2 blocks": {"n_blocks": 2}}
ADAPTERS = {
    "no adapters": {"adapter_rank": 0},
    "adapters on the MLP": {"adapter_rank": 3},
    "adapters on the MLP, q, k, v": {"adapter_rank": 3, "attention_adapters": True},
}
ROPE = {
    "no RoPE": {},
    "RoPE": {"rope_theta": 1e4},
    "long-context RoPE": {"rope_theta": 1e4, "long_context": True, "max_positions": 16384},
}
GROUPS = {"1 group": {"n_groups": 1}, "2 groups": {"n_groups": 2}}

# attention widths are twice d_model; the last of these is that of Zamba-7B-v1
HEAD_DIMS = {8: (16, 4), 16: (16, 2), 20: (20, 2), 80: (40, 1), 128: (64, 1), 160: (80, 1), 224: (112, 1), 464: (232, 1)}
_WIDE = {"n_layers": 3, "hybrid_layers": (0, 2)}

ZAMBA_SIZES = {
    "1 SSM head": {"n_ssm_heads": 1},
    "4 SSM heads of 16": {"n_ssm_heads": 4},
    "dt rank 1": {"dt_rank": 1},
    "convolution of 2": {"d_conv": 2},
    "1 state": {"d_state": 1},
    "expand 3": {"expand": 3},
    "calls in the first two layers": {"hybrid_layers": (0, 1)},
    "another norm epsilon": {"norm_eps": 1e-2},
}
ZAMBA2_SIZES = {
    "SSM heads of 1": {"n_ssm_heads": 64},
    "SSM heads of 4": {"n_ssm_heads": 16},
    "SSM heads of 64": {"n_ssm_heads": 1},
    "3 SSM heads of 32": {"n_ssm_heads": 3, "expand": 3},
    "4 groups": {"n_groups": 4},
    "convolution of 2": {"d_conv": 2},
    "1 state": {"d_state": 1},
    "64 states": {"d_state": 64},
    "3 blocks, 4 calls": {"n_blocks": 3, "hybrid_layers": (0, 2, 3, 4)},
    "2 blocks, each called once": {"n_blocks": 2, "hybrid_layers": (0, 4)},
    "another RoPE base": {"rope_theta": 500.0, "attention_adapters": True},
    "another norm epsilon": {"norm_eps": 1e-2},  # which the gated norm does not follow
}


def _combinations() -> dict[str, ZambaConfig]:
    found = {}
    for choice in product(BLOCKS.items(), ADAPTERS.items(), ROPE.items(), GROUPS.items()):
        names, fields = zip(*choice, strict=True)
        merged = dict(ZAMBA2)
        for each in fields:
            merged |= each
        found["Zamba2: " + ", ".join(names)] = ZambaConfig(**merged)
    return found


def _head_dims(name: str, base: dict) -> dict[str, ZambaConfig]:
    sizes = {size: {"d_model": width, "n_heads": heads} | _WIDE for size, (width, heads) in HEAD_DIMS.items()}
    return {f"{name}: attention heads of {size}": ZambaConfig(**base | fields) for size, fields in sizes.items()}


def _sizes(name: str, base: dict, sizes: dict) -> dict[str, ZambaConfig]:
    return {f"{name}: {size}": ZambaConfig(**base | fields) for size, fields in sizes.items()}


COMBINATIONS = {"Zamba: 1 block, no adapters, no RoPE": ZambaConfig(**ZAMBA)} | _combinations()
CASES = (
    COMBINATIONS
    | _head_dims("Zamba", ZAMBA)
    | _head_dims("Zamba2", ZAMBA2 | {"rope_theta": 1e4})
    | _sizes("Zamba", ZAMBA, ZAMBA_SIZES)
    | _sizes("Zamba2", ZAMBA2, ZAMBA2_SIZES)
)
FULL = "Zamba2: 2 blocks, adapters on the MLP, q, k, v, RoPE, 2 groups"
PLAIN = "Zamba: 1 block, no adapters, no RoPE"


def case_model(name: str) -> Zamba:
    """The random model of a case. Some of its time steps are below the clamp, so that a clamp left out shows."""
    model = random_model(CASES[name], seed=crc32(name.encode()))
    for layer in model.layers:
        layer.mixer.dt_bias -= 2 * torch.arange(layer.mixer.dt_bias.numel()).view(layer.mixer.dt_bias.shape).remainder(3)
    return model
