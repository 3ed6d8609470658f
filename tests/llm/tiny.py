"""A small random checkpoint on disk, with the Mistral tokenizer and its chat tokens."""

import json
from pathlib import Path

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba
from zamba_lm.text.tokenizer import Tokenizer

POSITIONS = 300
CONFIG = ZambaConfig(
    family="zamba2",
    vocab_size=32000,
    d_model=32,
    n_layers=3,
    hybrid_layers=(1, 2),
    n_blocks=2,
    n_ssm_heads=4,
    d_state=8,
    n_heads=4,
    d_ff=48,
    adapter_rank=4,
    init_std=0.3,  # far from uniform, so that greedy text varies
    max_positions=POSITIONS,
)


def write_checkpoint(folder: Path, generation_config: dict | None = None) -> Path:
    Zamba(CONFIG).init_weights(seed=0).save(folder)
    Tokenizer.mistral(instruct=True).save(folder)
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    return folder
