"""Long-context RoPE: the authors' rescaled base, which transformers announces and does not use."""

from dataclasses import replace

import pytest
import torch

from tests.model.tiny import random_ids
from tests.numerics.tolerances import TOLERANCES, assert_within
from tests.parity import theirs
from tests.parity.cases import CASES, case_model
from zamba_lm.model.presets import PRESETS
from zamba_lm.ops.rope import angles

LONG = "Zamba2: 2 blocks, adapters on the MLP, long-context RoPE, 2 groups"
CONFIG = CASES[LONG]
IDS = random_ids(1, 70)
UNSCALED = {"rope_parameters": {"rope_type": "default", "rope_theta": CONFIG.rope_theta}}


@pytest.fixture
def model(tmp_path):
    model = case_model(LONG)
    model.save(tmp_path)
    return model


@pytest.mark.parametrize(
    ("config", "base"),
    [
        (CONFIG, 10_000 * 8 ** (16 / 14)),
        (PRESETS["zamba2-7b-instruct"], 81_512.823),  # heads of 224
        (replace(CONFIG, long_context=False), 10_000),
    ],
    ids=["heads of 16", "7B-Instruct", "not long"],
)
def test_the_base_is_the_authors(config, base):
    """theta' = theta * 8^(dim / (dim - 2)), so that the slowest channels turn 8 times as slowly and the first as before."""
    assert config.rope_base == pytest.approx(base, rel=1e-6)
    cos, sin = angles(torch.tensor([1]), config.head_dim, config.rope_base)
    turns = torch.atan2(sin[0].double(), cos[0].double())
    slowest = 10_000 ** -((config.head_dim - 2) / config.head_dim)
    assert turns[0] == pytest.approx(1.0)
    assert turns[-1] == pytest.approx(slowest / (8 if config.long_context else 1), rel=1e-4)


def test_transformers_announces_the_rescaling_and_leaves_it_out(model, tmp_path):
    """The day this fails, transformers rescales, and the parity tests no longer need to hand it the base."""
    other = theirs.read(tmp_path, CONFIG, **UNSCALED)
    assert other.config.use_long_context and other.config.max_position_embeddings == 16384
    exponents = torch.arange(0, CONFIG.head_dim, 2) / CONFIG.head_dim
    assert torch.allclose(other.model.rotary_emb.inv_freq, 1 / CONFIG.rope_theta**exponents)
    with torch.inference_mode():
        apart = (model.logits(IDS) - theirs.logits(other, IDS)).abs().max()
    assert apart > 100 * TOLERANCES["parity", torch.float32][0]


def test_the_rescaling_is_all_that_differs(model, tmp_path):
    unscaled = case_model(LONG)
    unscaled.config = replace(CONFIG, long_context=False)
    with torch.inference_mode():
        assert_within("parity", unscaled.logits(IDS), theirs.logits(theirs.read(tmp_path, CONFIG, **UNSCALED), IDS))


@pytest.mark.parametrize("position", [0, 1, 4095, 4096, 16383])
def test_angles_agree_far_into_a_text(position, model, tmp_path):
    rotary = theirs.read(tmp_path, CONFIG).model.rotary_emb
    cos, sin = angles(torch.tensor([position]), CONFIG.head_dim, CONFIG.rope_base)
    expected = rotary(cos, torch.tensor([[position]]))
    for actual, both_halves in zip((cos, sin), expected, strict=True):
        assert torch.allclose(actual.repeat(1, 2), both_halves[0], rtol=0, atol=position * 1e-6 + 1e-6)
