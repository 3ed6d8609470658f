"""Shapes that a recipe can train: the published ones, the embedded model's, and a tiny one for tests."""

from dataclasses import fields, replace
from typing import Any

from zamba_lm.errors import ZambaError
from zamba_lm.hub import nearest
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.presets import PRESETS

PEBBLE = ZambaConfig(
    family="zamba2", vocab_size=32000, d_model=384, n_layers=11, hybrid_layers=(1, 3, 5, 7, 9), n_blocks=2,
    n_ssm_heads=12, d_state=64, n_heads=12, d_ff=960, adapter_rank=16, rope_theta=10000.0, max_positions=2048,
)  # fmt: skip
TINY = ZambaConfig(
    family="zamba2", vocab_size=32000, d_model=32, n_layers=3, hybrid_layers=(0, 2), n_blocks=2, n_ssm_heads=4, d_state=8,
    n_heads=4, d_ff=48, adapter_rank=4, rope_theta=10000.0, max_positions=128,
)  # fmt: skip
SHAPES: dict[str, ZambaConfig] = PRESETS | {"pebble": PEBBLE, "tiny": TINY}


def shape(name: str, changes: dict[str, Any]) -> ZambaConfig:
    """A shape by name with fields replaced. ZambaError with the nearest name for one that is not there."""
    if name not in SHAPES:
        raise ZambaError(f"unknown shape {name!r}{nearest(name, SHAPES)}, expected one of {', '.join(SHAPES)}")
    known = {field.name for field in fields(ZambaConfig)}
    for key in changes:
        if key not in known:
            raise ZambaError(f"unknown key 'shape.{key}'{nearest(key, known)}; fields of a shape are {', '.join(sorted(known))}")
    return replace(SHAPES[name], **{key: tuple(v) if isinstance(v, list) else v for key, v in changes.items()})
