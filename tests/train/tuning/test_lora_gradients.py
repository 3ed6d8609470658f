"""Adapters on every projection: their gradients are the slopes of the loss, in float64 wherever the model lets it be."""

import re

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tests.model.tiny import CONFIGS, FAMILIES, random_model, text
from zamba_lm.errors import ZambaError
from zamba_lm.model.batch import Batch
from zamba_lm.ops.xent import token_logprobs
from zamba_lm.train.tuning.fused import fuse
from zamba_lm.train.tuning.lora import Lora
from zamba_lm.train.tuning.targets import TARGETS, matched, pattern

STEP = 2e-3


def adapted(name, targets="all"):
    """A tiny model in float64 with small random LoRA factors A and B on the targets."""
    zamba = random_model(CONFIGS[name])
    zamba = inject_adapter_in_model(LoraConfig(target_modules=pattern(targets), r=2, lora_alpha=4), zamba).double()
    generator = torch.Generator().manual_seed(1)
    for factor in factors(zamba).values():
        factor.data = 0.1 * torch.randn(factor.shape, generator=generator, dtype=torch.float64)
    return zamba


def factors(zamba):
    return {name: p for name, p in zamba.named_parameters() if p.requires_grad}


def loss(zamba, batch):
    """Mean -log p of the next tokens, each sequence for itself."""
    targets = batch.ids_T.roll(-1)
    targets[batch.packing.last()] = -1
    return -token_logprobs(zamba.hidden(batch), zamba.embedding.weight, targets).mean()


def slope(value, parameter, direction):
    """The derivative of value() along a direction: central differences with two steps, their leading error taken out."""
    found = []
    with torch.no_grad():
        for step in (STEP, 2 * STEP):
            ends = []
            for sign in (1, -1):
                parameter += sign * step * direction
                ends.append(value())
                parameter -= sign * step * direction
            found.append((ends[0] - ends[1]) / (2 * step))
    return (4 * found[0] - found[1]) / 3


@pytest.mark.parametrize(("name", "layers"), [*((n, lambda zamba: zamba) for n in CONFIGS), *((n, fuse) for n in FAMILIES)])
def test_gradients_are_slopes(name, layers):
    """A step in every element the way its gradient points, so that nothing cancels. PEFT's layers, and these fused."""
    zamba, batch = layers(adapted(name)), Batch.pack([text(n).tolist() for n in (9, 1, 40)])
    loss(zamba, batch).backward()
    for parameter_name, factor in factors(zamba).items():
        direction = factor.grad.sign()
        expected, found = (factor.grad * direction).sum(), slope(lambda: loss(zamba, batch), factor, direction)
        assert expected > 1e-3, f"{parameter_name} gets no gradient"
        assert abs(found - expected) < 2e-3 * expected + 3e-5, f"{parameter_name}: {expected} by autograd, {found} by differences"


@pytest.mark.parametrize("name", CONFIGS)
def test_all_means_every_projection(name):
    zamba = random_model(CONFIGS[name])
    linear = {n for n, module in zamba.named_modules() if isinstance(module, nn.Linear)}
    assert set(matched(zamba, "all")) == linear
    parts = {n.rpartition(".")[2] for n in linear}
    adapters = {"A", "B"} if CONFIGS[name].adapter_rank else set()
    calls = {"qkv", "o", "gate_up", "down", "link"} if CONFIGS[name].n_calls else set()
    assert parts == {"in_proj", "out_proj"} | calls | adapters
    presets = [set(matched(zamba, one)) for one in TARGETS if one != "all" and matches(zamba, one)]
    assert set().union(*presets) == linear


def matches(zamba, targets):
    return any(re.fullmatch(TARGETS[targets], name) for name, _ in zamba.named_modules())


def test_a_shared_projection_has_one_pair_which_learns_from_every_call():
    """What each call alone would teach it (the others' corrections held constant) adds up to what it learns."""
    name = "zamba2, plain"
    zamba, batch = adapted(name, "shared"), Batch.pack([text(20).tolist()])
    pairs = [n for n, module in zamba.named_modules() if hasattr(module, "lora_A")]
    assert sorted(pairs) == sorted(f"blocks.0.{part}" for part in ("qkv", "o", "gate_up", "down"))
    down = zamba.get_submodule("blocks.0.down")
    calls = []
    down.register_forward_hook(lambda *_: calls.append(1))
    loss(zamba, batch).backward()
    assert len(calls) == CONFIGS[name].n_calls == 2
    whole = down.lora_B["default"].weight.grad.clone()
    alone = []
    for wanted in range(2):  # the gradient that arrives through one call's product with B
        zamba.zero_grad()
        seen = iter(range(2))
        product = down.lora_B["default"].register_forward_hook(
            lambda module, inputs, y, seen=seen, wanted=wanted: y if next(seen) == wanted else through(module, inputs[0])
        )
        loss(zamba, batch).backward()
        product.remove()
        alone.append(down.lora_B["default"].weight.grad.clone())
    torch.testing.assert_close(alone[0] + alone[1], whole, rtol=1e-5, atol=1e-9)
    assert min(one.abs().max() for one in alone) > 1e-6


def through(module, x):
    """The same product, differentiable in x but not in the weight."""
    return x @ module.weight.detach().T


def test_presets_join_and_patterns_pass():
    zamba = random_model(CONFIGS["zamba2, plain"])
    assert set(matched(zamba, "mixers+links")) == set(matched(zamba, "mixers")) | set(matched(zamba, "links"))
    assert matched(zamba, r".*layers\.1\.link") == ["layers.1.link"]


@pytest.mark.parametrize(("targets", "said"), [
    ("attentoin", r"unknown targets 'attentoin' \(did you mean attention\?\)"),
    ("adapters", r"match no projection of this model; presets that do: mixers, attention, mlp, shared, links, all"),
    (r".*\.q_proj", "match no projection of this model"),
    (r".*(", "no regular expression"),
])  # fmt: skip
def test_targets_that_mean_nothing(targets, said):
    with pytest.raises(ZambaError, match=said):
        matched(random_model(CONFIGS["zamba2, plain"]), targets)


@pytest.mark.parametrize(("settings", "said"), [
    ({"rank": 0}, "rank is 0"), ({"dropout": 1.0}, "dropout is 1.0"), ({"targets": "al"}, r"did you mean all\?")
])  # fmt: skip
def test_settings_that_cannot_be_meant(settings, said):
    with pytest.raises(ZambaError, match=said):
        Lora(**settings)
