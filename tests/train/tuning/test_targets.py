"""The published presets for transformers' own classes: what they name is there and learns."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.model.tiny import CONFIGS, random_model
from zamba_lm.train.tuning.targets import STOCK_TARGETS

STOCK = {"zamba": transformers.ZambaForCausalLM, "zamba2": transformers.Zamba2ForCausalLM}
ROW = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("targets", STOCK_TARGETS)
@pytest.mark.parametrize("name", ["zamba", "zamba2, plain"])
def test_stock_targets_learn(name, targets, tmp_path):
    random_model(CONFIGS[name]).save(tmp_path)
    stock = STOCK[CONFIGS[name].family].from_pretrained(tmp_path, dtype=torch.float32, use_mamba_kernels=False)
    tuned = get_peft_model(stock, LoraConfig(target_modules=STOCK_TARGETS[targets], r=2))
    tuned(input_ids=ROW, labels=ROW, use_cache=False).loss.backward()
    factors = {n: p for n, p in tuned.named_parameters() if ".lora_B." in n}
    assert factors
    for n, p in factors.items():
        assert p.grad is not None and p.grad.abs().max() > 0, n
