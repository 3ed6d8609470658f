"""Adapters merged into per-call copies: the same model, more memory."""

import pytest
import torch

from tests.model.tiny import CONFIGS
from tests.numerics.tolerances import assert_within
from zamba_lm.model.load import load_model
from zamba_lm.model.merge import link_bytes, merge_adapters, merge_links, merged_bytes, split_adapters
from zamba_lm.model.zamba import Zamba

WITH_ADAPTERS = [name for name, config in CONFIGS.items() if config.adapter_rank]


def made(name):
    return Zamba(CONFIGS[name], dtype=torch.float32).init_weights(4).requires_grad_(False)


def copies(model):
    return [weight for layer in model.layers if layer.plan.hybrid for weight in layer.merged.values()]


@pytest.mark.parametrize("name", WITH_ADAPTERS)
def test_a_merged_model_gives_the_same_logits(name):
    model, ids = made(name), torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    expected = model.logits(ids)
    assert merge_adapters(model) is model and copies(model)
    assert_within("paths", model.logits(ids), expected)
    state = model.new_state(2)
    assert_within("paths", torch.cat([model.logits(part, state) for part in ids.split([2, 1, 1, 1], dim=1)], 1), expected)
    assert torch.equal(split_adapters(model).logits(ids), expected) and not copies(model)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_copies_weigh_what_was_foretold(name):
    model = merge_adapters(made(name))
    assert sum(weight.nbytes for weight in copies(model)) == merged_bytes(model)


def test_the_sum_is_rounded_once():
    config = next(CONFIGS[name] for name in WITH_ADAPTERS)
    model = Zamba(config, dtype=torch.bfloat16).init_weights(4).requires_grad_(False)
    layer = next(layer for layer in merge_adapters(model).layers if layer.plan.hybrid)
    pair, block = layer.adapters["gate_up"], model.blocks[layer.plan.block]
    exact = block.gate_up.weight.double() + pair.B.weight.double() @ pair.A.weight.double()
    assert torch.equal(layer.merged["gate_up"], exact.to(torch.bfloat16))


def test_a_merged_model_saves_as_it_was_loaded(tmp_path):
    model = merge_adapters(made(WITH_ADAPTERS[0]))
    model.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_links_multiplied_out_give_the_same_logits(name):
    model, ids = made(name), torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    expected = model.logits(ids)
    assert merge_links(model) is model
    assert sum(weight.nbytes for weight in copies(model)) == link_bytes(model)
    assert_within("paths", model.logits(ids), expected)
    assert_within("paths", merge_adapters(model).logits(ids), expected)
    assert torch.equal(split_adapters(model).logits(ids), expected) and not copies(model)


def test_a_multiplied_link_is_rounded_once():
    model = Zamba(next(iter(CONFIGS.values())), dtype=torch.bfloat16).init_weights(4).requires_grad_(False)
    layer = next(layer for layer in merge_links(model).layers if layer.plan.hybrid)
    exact = layer.link.weight.double() @ model.blocks[layer.plan.block].down.weight.double()
    error = (layer.merged["link"].double() - exact).abs()
    assert (error <= exact.abs() * 2**-8 + 1e-6).all()


def test_a_hook_between_link_and_block_is_never_passed_over():
    model, heard = merge_links(made(next(iter(CONFIGS)))), []
    layer = next(layer for layer in model.layers if layer.plan.hybrid)
    layer.link.register_forward_hook(lambda *_: heard.append(1))
    model.logits(torch.tensor([[3, 1, 4]]))
    assert heard


@pytest.mark.parametrize("packed", ["down", "link"])
def test_packed_links_are_left_alone(packed):
    model = Zamba(next(iter(CONFIGS.values())), dtype=torch.bfloat16).init_weights(4).requires_grad_(False)
    for owner in model.blocks if packed == "down" else (layer for layer in model.layers if layer.plan.hybrid):
        owner.get_submodule(packed).row_scale = torch.ones(1)
    assert not copies(merge_links(model))
