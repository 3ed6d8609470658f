"""Packed weights: the same logits, plain files when saved, and nothing done where nothing is gained."""

from dataclasses import replace

import pytest
import torch

from tests.model.tiny import CONFIGS, random_ids, random_model
from tests.numerics.tolerances import TOLERANCES
from zamba_lm.model.int8rows import expand, quantize
from zamba_lm.model.load import load_model
from zamba_lm.model.pack import pack_weights
from zamba_lm.model.parts import Linear
from zamba_lm.model.shared import Adapter
from zamba_lm.model.weights import save_weights
from zamba_lm.ops.dispatch import force
from zamba_lm.ops.linear import cpu

IDS = random_ids(2, 40)


def answers(model, ids=IDS):
    """Logits of a whole pass, of a prompt and single steps into a state, and of the last token alone."""
    with torch.inference_mode():
        state = model.new_state(2)
        steps = [model.logits(ids[:, :20], state), *(model.logits(ids[:, at : at + 1], state) for at in range(20, 24))]
        return [model.logits(ids), *steps, model.logits(ids[:1, :1])]


def projections(model):
    return [module.weight for module in model.modules() if isinstance(module, Linear)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_that_fit_no_eight_bits_are_left_as_they_are(name, dtype):
    model = random_model(CONFIGS[name], dtype=dtype)
    before, weights = answers(model), projections(model)
    assert pack_weights(model) is model
    assert all(now is then for now, then in zip(projections(model), weights, strict=True)) and model.head is None
    assert all(map(torch.equal, answers(model), before))


def eight_bits(name, monkeypatch):
    """A model whose matrices fit eight bits, small as they are."""
    monkeypatch.setattr(cpu, "SMALLEST", 1)
    model = random_model(CONFIGS[name], dtype=torch.bfloat16)
    for weight in (model.embedding.weight, *projections(model)):
        weight.copy_(expand(*quantize(weight)))
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_eight_bits_give_the_same_logits(name, monkeypatch):
    model = eight_bits(name, monkeypatch)
    expected = answers(model)
    pack_weights(model)
    assert any(weight.dtype == torch.int8 for weight in projections(model)) and model.head is not None
    for way in ("cpu", "reference"):
        with force(linear=way):
            for found, wanted in zip(answers(model), expected, strict=True):
                assert float((found - wanted).square().mean().sqrt() / wanted.std()) < TOLERANCES["narrow", torch.bfloat16][0]


def test_packing_twice_is_packing_once(monkeypatch):
    model = pack_weights(eight_bits("zamba2, everything", monkeypatch))
    before = answers(model)
    assert all(map(torch.equal, answers(pack_weights(model)), before))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_model_saves_plain_weights(name, tmp_path, monkeypatch):
    model = eight_bits(name, monkeypatch)
    expected = {name: parameter.clone() for name, parameter in model.named_parameters()}
    pack_weights(model).save(tmp_path)
    loaded = dict(load_model(tmp_path).named_parameters())
    assert loaded.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(loaded[name], expected[name])]
    assert all(map(torch.equal, answers(pack_weights(load_model(tmp_path))), answers(model))), (
        "and the saved model goes on unharmed"
    )


def test_large_adapters_keep_their_row_scales(tmp_path):
    """Rows of eight bits in a checkpoint are packed as such again, adapters of a published model's size among them."""
    shape = {"d_model": 512, "d_ff": 256, "adapter_rank": 128, "attention_adapters": True, "rope_theta": 1e4}
    config = replace(CONFIGS["zamba2, everything"], n_heads=8, n_ssm_heads=16, **shape)
    save_weights(random_model(config, dtype=torch.bfloat16), tmp_path, int8_rows=True)
    model = load_model(tmp_path, device="cpu", dtype="bfloat16")
    expected = answers(model)
    adapters = [part for module in pack_weights(model).modules() if isinstance(module, Adapter) for part in (module.A, module.B)]
    assert adapters and all(part.row_scale is not None for part in adapters)
    for found, wanted in zip(answers(model), expected, strict=True):
        assert float((found - wanted).square().mean().sqrt() / wanted.std()) < TOLERANCES["narrow", torch.bfloat16][0]
