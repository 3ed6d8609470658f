"""Recomputation changes what a training pass keeps, and nothing else."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.model.tiny import CONFIGS, FAMILIES, model, random_ids, random_model
from tests.numerics.tolerances import assert_within
from zamba_lm.errors import ZambaError
from zamba_lm.model.recompute import again
from zamba_lm.ops.dispatch import OPS, force, record
from zamba_lm.ops.gpu import interpreted
from zamba_lm.ops.scan.triton import configs
from zamba_lm.ops.soon import soon

IDS = random_ids(2, 33)


def gradients(one) -> dict[str, torch.Tensor]:
    one.requires_grad_(True)
    one.logits(IDS).square().mean().backward()
    found = {name: parameter.grad for name, parameter in one.named_parameters()}
    assert all(grad is not None for grad in found.values())
    return found


def kept_bytes(one) -> int:
    """Bytes that a pass keeps for its backward pass, beside parameters."""
    kept = {}
    ours = {parameter.data_ptr() for parameter in one.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in ours:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = one.requires_grad_(True).logits(IDS)
    del out
    return sum(kept.values())


@pytest.mark.parametrize("parts", [("layers",), ("blocks",), ("mixers",), ("blocks", "mixers"), ("layers", "blocks", "mixers")])
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_same_bit_for_bit(name, parts):
    expected, found = gradients(copy.deepcopy(model(name))), gradients(copy.deepcopy(model(name)).recompute(*parts))
    for each in expected:
        assert torch.equal(found[each], expected[each]), each


@pytest.mark.parametrize("name", FAMILIES)
def test_less_is_kept(name):
    one = copy.deepcopy(model(name))
    everything = kept_bytes(one)
    layers, mixers, blocks = (kept_bytes(one.recompute(part)) for part in ("layers", "mixers", "blocks"))
    some, none = kept_bytes(one.recompute("layers", layers=[0, 1])), kept_bytes(one.recompute())
    assert layers < min(mixers, blocks) and max(mixers, blocks) < everything
    assert layers < some < everything == none


def test_random_parts_are_repeated():
    """Dropout in a replaced projection draws the same numbers again."""
    one = copy.deepcopy(model("zamba2, everything")).requires_grad_(True)
    for layer in one.layers:
        layer.mixer.out_proj = nn.Sequential(nn.Dropout(0.5), layer.mixer.out_proj)
    found = []
    for parts in ((), ("layers",)):
        one.recompute(*parts).zero_grad()
        torch.manual_seed(3)
        one.logits(IDS).square().mean().backward()
        found.append([parameter.grad.clone() for parameter in one.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_the_kernels_of_the_first_time_run_again():
    one = copy.deepcopy(model("zamba2, everything")).requires_grad_(True).recompute("layers")
    with force(linear="reference"):
        loss = one.logits(IDS).sum()
    with record() as calls:
        loss.backward()
    assert {name for op, name in calls if op == "linear"} == {"reference"}


def test_the_second_time_knows_that_a_backward_pass_follows():
    seen = []

    def run(x):
        seen.append(soon())
        return x.sin()

    again(nn.Identity(), run, torch.ones(1, requires_grad=True)).backward()
    assert seen == [False, True]
    assert not soon()


def test_a_scan_that_keeps_more_the_second_time(monkeypatch):
    """20 tokens are two stretches between states kept for later, and three tiles of which all states are kept at once."""
    monkeypatch.setattr(configs, "KEEP", 16)
    found, choices = [], dict.fromkeys(OPS, "reference") | {"scan": "triton"}
    with interpreted(), force(**choices):
        for parts in ((), ("mixers",)):
            one = random_model(replace(CONFIGS["zamba"], n_layers=1, hybrid_layers=())).recompute(*parts).requires_grad_(True)
            one.logits(IDS[:1, :20]).square().mean().backward()
            found.append({name: parameter.grad for name, parameter in one.named_parameters()})
    for name, expected in found[0].items():
        assert_within("gradient", found[1][name], expected)


def test_inference_takes_no_notice():
    one = copy.deepcopy(model("zamba2, everything")).recompute("layers")
    with torch.no_grad():
        assert torch.equal(one.logits(IDS), model("zamba2, everything").logits(IDS))
    assert torch.equal(one.requires_grad_(True).logits(IDS, one.new_state(2)), model("zamba2, everything").logits(IDS))


@pytest.mark.parametrize(
    ("parts", "layers", "says"), [(("layer",), None, "'layer', expected some of layers"), (("layers",), [4], "layer 4 of 4")]
)
def test_wrong_words_are_refused(parts, layers, says):
    with pytest.raises(ZambaError, match=says):
        model("zamba").recompute(*parts, layers=layers)
