"""The published models as data. Shapes: the released configs; names on the hub: ``hub.REPOSITORIES``."""

from dataclasses import replace

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.model.config import ZambaConfig

ZAMBA_7B_V1 = ZambaConfig(
    family="zamba",
    vocab_size=32000,
    d_model=3712,
    n_layers=76,
    hybrid_layers=(2, *range(7, 76, 6)),
    n_ssm_heads=2,
    d_state=16,
    dt_rank=232,
    n_heads=16,
    d_ff=14848,
)
ZAMBA2_1_2B = ZambaConfig(
    family="zamba2",
    vocab_size=32000,
    d_model=2048,
    n_layers=38,
    hybrid_layers=(5, 11, 17, 23, 29, 35),
    n_ssm_heads=64,
    d_state=128,
    n_heads=32,
    d_ff=8192,
    adapter_rank=128,
    attention_adapters=True,
    rope_theta=10_000.0,
)
ZAMBA2_2_7B = ZambaConfig(
    family="zamba2",
    vocab_size=32000,
    d_model=2560,
    n_layers=54,
    hybrid_layers=(6, 12, 18, 24, 30, 36, 42, 47, 51),
    n_blocks=2,
    n_ssm_heads=80,
    d_state=64,
    n_heads=32,
    d_ff=10240,
    adapter_rank=128,
)
ZAMBA2_7B = ZambaConfig(
    family="zamba2",
    vocab_size=32000,
    d_model=3584,
    n_layers=81,
    hybrid_layers=(6, *range(11, 81, 6)),
    n_blocks=2,
    n_ssm_heads=112,
    d_state=64,
    n_groups=2,
    n_heads=32,
    d_ff=14336,
    adapter_rank=128,
    rope_theta=10_000.0,
)

PRESETS: dict[str, ZambaConfig] = {
    "zamba-7b-v1": ZAMBA_7B_V1,
    "zamba2-1.2b": ZAMBA2_1_2B,
    "zamba2-1.2b-instruct": ZAMBA2_1_2B,
    "zamba2-2.7b": ZAMBA2_2_7B,
    "zamba2-2.7b-instruct": ZAMBA2_2_7B,
    "zamba2-7b": ZAMBA2_7B,
    "zamba2-7b-instruct": replace(ZAMBA2_7B, long_context=True, max_positions=16384),
}


def preset(name: str) -> ZambaConfig:
    """The config of a published model, with no need of its files. ZambaError with the nearest name for one that is not there."""
    if name.lower() not in PRESETS:
        raise ZambaError(f"unknown preset {name!r}{nearest(name, PRESETS)}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name.lower()]
