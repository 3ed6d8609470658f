"""The published initialisation: reproducible by seed, every parameter set, the distributions as stated."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.model.tiny import CONFIGS, VOCAB, ZAMBA, ZAMBA2
from zamba_lm.model.config import ZambaConfig
from zamba_lm.model.zamba import Zamba

# large enough for statistics
LARGE = {"d_model": 64, "d_ff": 96, "n_heads": 4, "d_state": 8}
LARGE_CONFIGS = {
    "zamba": ZambaConfig(**ZAMBA | LARGE | {"n_ssm_heads": 2, "dt_rank": 16}),
    "zamba2": ZambaConfig(**ZAMBA2 | LARGE | {"n_ssm_heads": 128, "adapter_rank": 8, "attention_adapters": True}),
}
PLAIN_VALUES = (
    "A_log",
    ".D",
    "dt_bias",
    "dt_proj",
    "conv_bias",
    "norm.weight",
    "norm_weight",
    "norm_in.weight",
    "norm_mlp.weight",
)


def fresh(config, seed=0, dtype=None):
    """A model whose memory was full of NaN before it was initialised: whatever is forgotten shows."""
    model = Zamba(config, dtype=dtype).requires_grad_(False)
    for parameter in model.parameters():
        parameter.fill_(math.nan)
    return model.init_weights(seed)


@pytest.fixture(params=LARGE_CONFIGS)
def model(request):
    return fresh(LARGE_CONFIGS[request.param])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_is_set(name):
    for parameter_name, parameter in fresh(CONFIGS[name]).named_parameters():
        assert parameter.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", CONFIGS)
def test_a_seed_is_a_model(name):
    first, again, other = (list(fresh(CONFIGS[name], seed).named_parameters()) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    same = [n for (n, a), (_, b) in zip(first, other, strict=True) if torch.equal(a, b)]
    assert same and all(n.endswith(PLAIN_VALUES) and "dt" not in n for n in same), "what is drawn depends on the seed"


def test_global_random_numbers_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fresh(CONFIGS["zamba"], seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_matrices_are_normal(model):
    for name, parameter in model.named_parameters():
        if not name.endswith(PLAIN_VALUES):
            values = parameter.flatten() / model.config.init_std
            margin = 5 / math.sqrt(len(values))  # of the mean, in standard deviations; that of the spread is smaller
            assert abs(values.mean()) < margin and abs(values.std() - 1) < margin, name
            assert (values.abs() < 1).float().mean() == pytest.approx(0.6827, abs=margin), name


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_the_spread_is_the_configs(std):
    model = fresh(ZambaConfig(**ZAMBA2, init_std=std))
    assert model.embedding.weight.std() == pytest.approx(std, rel=0.1)


def test_norms_and_skips_are_ones_and_conv_biases_zeros(model):
    for name, parameter in model.named_parameters():
        if name.endswith((".D", "norm.weight", "norm_weight", "norm_in.weight", "norm_mlp.weight")):
            assert (parameter == 1).all(), name
        if name.endswith("conv_bias"):
            assert (parameter == 0).all(), name


def test_decay_rates_count_up():
    zamba, zamba2 = (fresh(LARGE_CONFIGS[family]).layers[0].mixer.A_log for family in ("zamba", "zamba2"))
    assert torch.allclose(zamba.exp(), torch.arange(1.0, 9).expand(2, 64, 8))  # 1 to N, the same for every channel
    assert torch.allclose(zamba2.exp(), torch.arange(1.0, 129))  # 1 to H


def test_time_steps_are_log_uniform(model):
    dt = torch.cat([F.softplus(layer.mixer.dt_bias.flatten().double()) for layer in model.layers])
    assert dt.min() > 1e-3 * (1 - 1e-4) and dt.max() < 0.1 * (1 + 1e-4)
    place = (dt.log() - math.log(1e-3)) / math.log(100)  # uniform in [0, 1]
    for quarter in (0.25, 0.5, 0.75):
        assert (place < quarter).double().mean() == pytest.approx(quarter, abs=3 / math.sqrt(len(dt)))


def test_time_steps_keep_to_the_configs_range_and_floor():
    config = ZambaConfig(**ZAMBA2 | LARGE | {"n_ssm_heads": 128}, dt_min=1e-5, dt_max=1e-2, dt_floor=1e-3)
    dt = F.softplus(fresh(config).layers[0].mixer.dt_bias)
    assert dt.min() == pytest.approx(1e-3, rel=1e-3) and dt.max() < 1e-2 * (1 + 1e-4)
    assert (dt < 1.01e-3).float().mean() == pytest.approx(2 / 3, abs=0.15), "two decades of three lie below the floor"


def test_the_time_step_projection_of_mamba_1_is_uniform():
    weight = fresh(LARGE_CONFIGS["zamba"]).layers[0].mixer.dt_proj
    assert weight.abs().max() <= 0.25  # 1 / sqrt(rank)
    assert weight.std() == pytest.approx(0.25 / math.sqrt(3), rel=0.05)


def test_half_precision_is_initialised_alike():
    full, half = fresh(CONFIGS["zamba2, everything"]), fresh(CONFIGS["zamba2, everything"], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.embedding.weight.float().std() == pytest.approx(full.embedding.weight.std().item(), rel=0.1)


def test_it_returns_the_model_and_the_model_runs():
    model = Zamba(CONFIGS["zamba2, everything"])
    assert model.init_weights() is model
    logits = model.logits(torch.arange(VOCAB)[None])
    assert logits.isfinite().all() and logits.std() > 0
