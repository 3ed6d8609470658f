"""QLoRA: our projections replaced by bitsandbytes' four-bit ones, adapters on top, and both in effect."""

import sys

import pytest
import torch
from torch import nn

from tests.train.tuning.conftest import examples, sft_arguments, wrapped
from zamba_lm.errors import ZambaError
from zamba_lm.train.trainer.journal import read
from zamba_lm.train.tuning.lora import Lora, add_lora, peft_config
from zamba_lm.train.tuning.nf4 import to_nf4
from zamba_lm.train.tuning.sft import Sft

bitsandbytes = pytest.importorskip("bitsandbytes", reason="a wheel that not every platform has")
FAMILIES = ("zamba", "zamba2, everything")


def four_bits(name="zamba2, everything"):
    return to_nf4(wrapped(name), device="cpu", compute_dtype=torch.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_projection_but_the_models_own_adapters(name):
    model, before = four_bits(name), wrapped(name)
    for path, module in before.zamba.named_modules():
        if isinstance(module, nn.Linear):
            made = model.zamba.get_submodule(path)
            assert isinstance(made, bitsandbytes.nn.Linear4bit) == ("adapters" not in path), path
            assert (made.in_features, made.out_features) == (module.in_features, module.out_features)
    assert model.zamba.blocks[0].down.weight.dtype == torch.uint8
    assert torch.equal(model.zamba.embedding.weight, before.zamba.embedding.weight)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pass_multiplies_by_what_the_four_bits_say(name):
    """A model whose weights are the four-bit ones written out gives the same logits."""
    model, plain = four_bits(name), wrapped(name)
    for path, module in model.zamba.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            dense = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.zamba.get_submodule(path).weight.data.copy_(dense)
    row = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=row).logits, plain(input_ids=row).logits, rtol=1e-4, atol=1e-4)
        assert (model(input_ids=row).logits - wrapped(name)(input_ids=row).logits).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_over_four_bits_get_the_gradients_of_adapters_over_the_same_numbers(name):
    model, plain = four_bits(name), wrapped(name)
    for path, module in model.zamba.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            dense = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.zamba.get_submodule(path).weight.data.copy_(dense)
    row, found = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0)), []
    for one in (model, plain):
        one = add_lora(one, Lora(rank=2)).train()
        generator = torch.Generator().manual_seed(1)
        factors = {n.replace(".base_layer", ""): p for n, p in one.named_parameters() if p.requires_grad}
        for p in factors.values():
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
        one(input_ids=row, labels=row).loss.backward()
        found.append({n: p.grad for n, p in factors.items()})
    assert found[0].keys() == found[1].keys() and len(found[0]) >= 12
    for n, gradient in found[0].items():
        assert gradient.abs().max() > 0, n
        torch.testing.assert_close(gradient, found[1][n], rtol=1e-3, atol=1e-5, msg=n)


def test_it_learns_and_adapters_stay_float32(tmp_path, tokens):
    model = four_bits()
    weight = model.zamba.blocks[0].down.weight.data.clone()
    args = sft_arguments(tmp_path, learning_rate=1e-2, max_steps=10)
    config = peft_config(model, Lora(rank=2))
    run = Sft(model, args, train_dataset=examples(), processing_class=tokens, peft_config=config)
    assert {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.float32}
    run.fit()
    losses = [entry["loss"] for entry in read(tmp_path / "log.jsonl") if "loss" in entry]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert torch.equal(bitsandbytes_weight(run.model), weight)


def bitsandbytes_weight(model):
    return model.zamba.blocks[0].down.base_layer.weight.data


def test_without_bitsandbytes_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(ZambaError, match=r"four-bit weights need bitsandbytes .*; install zamba-lm\[train\] or use lora-sft"):
        four_bits()
