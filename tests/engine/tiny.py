"""Small random models and prompts for the engine's tests, and what each prompt must be answered with."""

from functools import cache

import torch

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.generate import generate
from zamba_lm.model.zamba import Zamba

VOCAB = 97
SHAPE = {"vocab_size": VOCAB, "d_model": 32, "n_layers": 4, "hybrid_layers": (1, 3), "d_state": 8, "n_heads": 4, "d_ff": 48}
CONFIGS = {
    "zamba2": ZambaConfig(family="zamba2", n_ssm_heads=4, n_blocks=2, adapter_rank=4, rope_theta=1e4, init_std=0.3, **SHAPE),
    "zamba": ZambaConfig(family="zamba", n_ssm_heads=2, dt_rank=4, init_std=0.3, **SHAPE),
}


@cache
def model(family: str = "zamba2") -> Zamba:
    return Zamba(CONFIGS[family], dtype=torch.float32).init_weights(seed=3).requires_grad_(False)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(1000 * seed + length)).tolist()


@cache
def oracle(family: str, prompt_ids: tuple[int, ...], max_tokens: int, eos_ids: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The greedy continuation by the slow, obvious loop, alone in the world."""
    return tuple(generate(model(family), list(prompt_ids), max_tokens, eos_ids))
