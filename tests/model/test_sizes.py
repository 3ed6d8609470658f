"""The size arithmetic against the published figures and against the parameters themselves."""

import math
from dataclasses import replace

import pytest
import torch

from tests.model.tiny_weights import CONFIGS, ONE_BLOCK, ZAMBA
from zamba_lm.errors import ZambaError
from zamba_lm.model.names import parameter_shapes
from zamba_lm.model.presets import PRESETS
from zamba_lm.model.zamba import Zamba

# model -> parameters (billions), weights read per token (billions), KiB of keys and values a token in bf16, MB of SSM state
PUBLISHED = {
    "zamba-7b-v1": (7.2325, 11.53, 377, 36),
    "zamba2-1.2b": (1.2151, 1.76, 96, 80),
    "zamba2-2.7b": (2.6622, 3.86, 180, 71),
    "zamba2-7b": (7.3567, 11.03, 364, 149),
}
EXACT = {"zamba-7b-v1": 7_232_490_496, "zamba2-1.2b": 1_215_064_704, "zamba2-2.7b": 2_662_214_560, "zamba2-7b": 7_356_749_648}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_table(name):
    config = PRESETS[name]
    params, read, kv, state = PUBLISHED[name]
    assert round(config.n_params() / 1e9, 4) == params and config.n_params() == EXACT[name]
    assert round(config.weights_read_per_token() / 1e9, 2) == read
    assert round(config.kv_bytes_per_token("bfloat16") / 1024) == kv
    assert round(config.state_bytes() / 1e6) == state


@pytest.mark.parametrize("config", [*CONFIGS.values(), *PRESETS.values()], ids=[*CONFIGS, *PRESETS])
def test_arithmetic_and_shapes_count_the_same(config):
    assert config.n_params() == sum(math.prod(shape) for shape in parameter_shapes(config).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_has_these_parameters(name):
    model = Zamba(CONFIGS[name], device="meta")
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == parameter_shapes(CONFIGS[name])
    assert {key for key, _ in model.named_parameters()} == set(parameter_shapes(CONFIGS[name]))


def test_a_model_without_calls_has_no_blocks():
    config = replace(ONE_BLOCK, hybrid_layers=())
    assert not any(name.startswith("blocks") for name in parameter_shapes(config))
    assert config.n_params() == config.weights_read_per_token() == sum(map(math.prod, parameter_shapes(config).values()))
    assert config.n_params() == sum(parameter.numel() for parameter in Zamba(config).parameters())


def test_bytes_follow_the_dtype():
    assert ONE_BLOCK.weight_bytes() == 4 * ONE_BLOCK.n_params()  # its checkpoint is float32
    assert ONE_BLOCK.weight_bytes("bfloat16") == ONE_BLOCK.weight_bytes(torch.float16) == 2 * ONE_BLOCK.n_params()
    assert ONE_BLOCK.kv_bytes_per_token(torch.bfloat16) * 2 == ONE_BLOCK.kv_bytes_per_token("float32")
    assert ONE_BLOCK.conv_state_bytes("bfloat16") == 4 * (48 + 2 * 6) * 3 * 2
    with pytest.raises(ZambaError, match="unknown dtype 'int3'"):
        ONE_BLOCK.weight_bytes("int3")


@pytest.mark.parametrize("config", [ZAMBA, ONE_BLOCK])
def test_flops_add_up_over_any_cut_of_the_sequence(config):
    assert config.flops(100) == config.flops(30) + config.flops(69, 30) + config.flops(1, 99)
    assert config.flops(7, 5, training=True) == 3 * config.flops(7, 5)


def test_flops_of_the_2_7b():
    """Two operations a weight and token, attention over the causal pairs; the recurrence is about one per cent."""
    config = PRESETS["zamba2-2.7b"]
    attention = 9 * 4 * 5120 * 2048 * 2049 // 2
    products = 2 * config.weights_read_per_token() * 2048
    assert products + attention < config.flops(2048) < 1.02 * (products + attention)
