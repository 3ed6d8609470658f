"""Small random models in which every tensor matters, one for each mixture of features with a way of its own through the code."""

from functools import cache

import torch

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba

torch.set_num_threads(1)  # at these sizes threads only wait for each other

VOCAB = 61
SMALL = {"vocab_size": VOCAB, "d_model": 16, "n_layers": 4, "hybrid_layers": (1, 3), "d_state": 6, "n_heads": 4, "d_ff": 20}
ZAMBA = {"family": "zamba", "n_ssm_heads": 2, "dt_rank": 3, "dtype": "float32"} | SMALL
ZAMBA2 = {"family": "zamba2", "n_ssm_heads": 4, "dtype": "float32"} | SMALL
CONFIGS = {
    "zamba": ZambaConfig(**ZAMBA),
    "zamba, odd shapes": ZambaConfig(
        **ZAMBA | {"n_ssm_heads": 1, "dt_rank": 1, "d_conv": 2, "d_state": 1, "hybrid_layers": (0, 1, 2)}
    ),
    "zamba2, plain": ZambaConfig(**ZAMBA2),
    "zamba2, everything": ZambaConfig(
        **ZAMBA2 | {"hybrid_layers": (0, 1, 3)},
        n_blocks=2,
        n_groups=2,
        adapter_rank=2,
        attention_adapters=True,
        rope_theta=1e4,
        long_context=True,
    ),
    "zamba2, no calls": ZambaConfig(**ZAMBA2 | {"n_layers": 2, "hybrid_layers": ()}, d_conv=3),
}
FAMILIES = ("zamba", "zamba2, everything")  # one of each where that is enough

# Below 1, or rounding errors grow from layer to layer and two right answers part.
# Above 1 only what feeds the time steps of Mamba-1, which would hardly move.
_GAIN = 0.5
_GAINS = {"embedding.weight": 2.0, "x_proj": 2.0, "dt_proj": 4.0}


def random_model(config: ZambaConfig, seed: int = 0, *, dtype=torch.float32) -> Zamba:
    """A model with logits of order 1 to 5 in which no tensor keeps a value (ones, zeros, 1..n) that would hide its absence."""
    model = Zamba(config, dtype=torch.float32).init_weights(seed).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("dt_bias"):
            parameter += 1 + noise
        elif name == "norm.weight":
            parameter.copy_(noise)  # with ones, every token would predict itself
        elif parameter.dim() == 1 or name.endswith(("A_log", ".D")):
            parameter += 0.3 * noise
        else:
            gain = next((gain for end, gain in _GAINS.items() if name.endswith(end)), _GAIN)
            parameter.copy_(gain * noise * parameter.shape[-1] ** -0.5)
    return model.to(dtype)


@cache
def model(name: str) -> Zamba:
    """The model of a config above; not to be changed, since tests share it."""
    return random_model(CONFIGS[name], seed=7)


def text(length: int) -> torch.Tensor:
    """The token ids (length,) that tests agree on for each length."""
    return random_ids(length, seed=length)


def random_ids(*shape: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))
