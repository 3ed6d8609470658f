"""Small models with every feature that a checkpoint can show, and folders holding them."""

from dataclasses import replace

import torch
from safetensors.torch import load_file, save_file

from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.weights import save_weights
from zamba_lm.model.zamba import Zamba

ZAMBA = ZambaConfig(
    family="zamba",
    vocab_size=61,
    d_model=24,
    n_layers=5,
    hybrid_layers=(1, 2, 4),
    n_ssm_heads=2,
    d_state=4,
    dt_rank=3,
    n_heads=4,
    d_ff=40,
    dtype="float32",
)
ONE_BLOCK = ZambaConfig(
    family="zamba2",
    vocab_size=61,
    d_model=24,
    n_layers=4,
    hybrid_layers=(0, 2),
    n_ssm_heads=4,
    d_state=6,
    n_heads=4,
    d_ff=40,
    adapter_rank=3,
    attention_adapters=True,
    rope_theta=10_000.0,
    dtype="float32",
)
TWO_BLOCKS = replace(
    ONE_BLOCK, n_layers=6, hybrid_layers=(1, 2, 4, 5), n_blocks=2, attention_adapters=False, n_groups=2, rope_theta=0.0
)
BARE = replace(ONE_BLOCK, adapter_rank=0, attention_adapters=False)
CONFIGS = {"zamba": ZAMBA, "one block": ONE_BLOCK, "two blocks": TWO_BLOCKS, "no adapters": BARE}
STYLES = [
    (name, style) for name in CONFIGS for style in ("hf", "fork", "native", "ours") if name != "zamba" or style in ("hf", "ours")
]


def random_model(config, seed=1, dtype=torch.float32):
    """A model whose every parameter is random: no two tensors are alike, so none can be taken for another."""
    model = Zamba(config, dtype=dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def poisoned(config, dtype=torch.float32):
    """A model full of NaN: whatever loading forgets shows."""
    model = Zamba(config, dtype=dtype).requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(float("nan"))
    return model


def assert_same(model, other):
    """Every parameter equal, bit for bit."""
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.dtype == theirs[name].dtype and torch.equal(parameter, theirs[name]), name


def saved(folder, config=ONE_BLOCK, **options):
    """A random model and the folder it was saved to."""
    model = random_model(config)
    save_weights(model, folder, **options)
    return model


def edit(folder, change):
    """Apply ``change`` to the dictionary of tensors in a folder's single file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
